"""The rules of Qwen2's tokenizer, by which AutoTokenizer replaces those of any tokenizer of a Qwen2 model."""

from __future__ import annotations

import json

# How the tokenizer of Qwen2 in transformers splits a text.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def has_rules_of_qwen2(tokenizer: bytes) -> bool:
    """Return whether a tokenizer.json normalises and splits texts as Qwen2's does."""
    rules = json.loads(tokenizer)
    steps = (rules.get("pre_tokenizer") or {}).get("pretokenizers", [])
    patterns = [step["pattern"].get("Regex") for step in steps if isinstance(step.get("pattern"), dict)]
    return (rules.get("normalizer") or {}).get("type") == "NFC" and patterns == [PATTERN]

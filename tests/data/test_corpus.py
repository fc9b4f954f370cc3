"""Preparation of shards: their content, the number of workers, crashes and concurrent processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import sentencepiece

from caat.data import corpus, encode
from caat.data.corpus import prepare, prepared_folder
from caat.data.shards import TokenShards, check_content, read_index
from caat.data.tokenizer import load_tokenizer, train_tokenizer
from caat.storage.checksums import wrong_files
from conf.data import DataConfig
from tests.data.conftest import write_documents

ROOT = Path(__file__).parents[2]


def settings(path, **more) -> DataConfig:
    kept = {"vocab_size": 400, "dir": str(Path(path).parent / "data"), "workers": 1, "validation": 0.1}
    return DataConfig(path=str(path), **{**kept, **more})


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def start(config: DataConfig, body: str = "") -> subprocess.Popen:
    """Start another process that runs ``body`` and then prepares ``config``."""
    code = f"""
import sys
from conf.data import DataConfig
from caat.data import corpus
{body}
if __name__ == "__main__":
    print(corpus.prepare(DataConfig(**{vars(config)!r})))
"""
    # A file, so that the workers it starts can import it.
    script = Path(config.dir).parent / "prepare.py"
    script.write_text(code)
    return subprocess.Popen(
        [sys.executable, str(script)],
        # A background job of a shell ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_shards_hold_the_documents(documents):
    folder = prepare(settings(documents))
    index = read_index(folder)
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    assert index.documents == len(texts) and index.bytes == sum(map(len, texts))
    held_out = [text for text in texts if crc32(text.encode()) < 0.1 * 2**32]
    assert 10 < len(held_out) < 90
    for split, expected in (
        ("train", [text for text in texts if text not in held_out]),
        ("validation", held_out),
    ):
        shards = TokenShards(folder, split)
        stream = shards.read(0, len(shards))
        ends = np.flatnonzero(stream == tokenizer.eos_id())
        found = np.split(stream, ends + 1)[:-1]
        assert ends[-1] == len(stream) - 1 and all(document[0] == tokenizer.bos_id() for document in found)
        assert [tokenizer.decode(document[1:-1].tolist()) for document in found] == expected
    unigram = np.load(folder / "unigram.npy")
    train = TokenShards(folder, "train")
    np.testing.assert_array_equal(unigram, np.bincount(train.read(0, len(train)), minlength=400))
    assert {path.suffix for path in folder.iterdir()} == {".json", ".model", ".npy", ".bin"}


def test_any_number_of_workers_writes_the_same(tmp_path, monkeypatch):
    path = write_documents(tmp_path / "documents.jsonl", 3500)
    one = prepare(settings(path, workers=1, dir=str(tmp_path / "one")))
    two = prepare(settings(path, workers=2, dir=str(tmp_path / "two")))
    assert len(read_index(one).train) == 3
    assert contents(one) == contents(two) and one.name == two.name


def test_prepared_once_per_setting(documents, monkeypatch):
    config = settings(documents)
    folder = prepare(config)
    assert folder == prepared_folder(config) and folder.name.startswith("documents-")
    monkeypatch.setattr(corpus, "tokenize", lambda *_: pytest.fail("prepared again"))
    assert prepare(config) == folder
    assert prepare(settings(documents, workers=2)) == folder
    assert prepare(DataConfig(path=str(folder))) == folder
    others = [
        prepared_folder(settings(documents, **change))
        for change in ({"vocab_size": 401}, {"validation": 0.2}, {"text_field": "id"})
    ]
    os.utime(documents, (1, 1))
    others.append(prepared_folder(config))
    assert len({folder, *others}) == 5


def test_every_file_is_held_against_the_index(documents, tmp_path):
    folder = prepare(settings(documents))
    names = {path.name for path in folder.iterdir()} - {"index.json"}
    assert read_index(folder).xxh3_128.keys() == names and check_content(folder)
    other = tmp_path / "other.model"
    train_tokenizer((f"another text {i * i}" for i in range(900)), 300, other)
    for name in names:
        content = (folder / name).read_bytes()
        changes = {
            ".bin": bytes(len(content)),
            ".model": other.read_bytes(),
            ".npy": content[:-8] + content[-16:-8],
        }
        for change in (changes[Path(name).suffix], None):
            if change is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(change)
            with pytest.raises(
                ValueError, match=rf"is damaged: {name} .*Remove the folder and prepare it again"
            ):
                check_content(folder)
        (folder / name).write_bytes(content)
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes() + b"-")
    shares = [
        wrong_files(folder, read_index(folder).xxh3_128, "index.json", rank=rank, world=3)
        for rank in range(3)
    ]
    assert sorted(line.split()[0] for share in shares for line in share) == sorted(names)
    assert all(shares)


def test_what_is_prepared_is_durable(documents, monkeypatch):
    """Every file is synced before the folder gets its final name, and then the name is synced."""
    synced, fsync = [], os.fsync

    def spy(descriptor):
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    folder = prepare(settings(documents))
    partial = f".{folder.name}.partial"
    assert {path.name for path in folder.iterdir()} <= set(synced[: synced.index(partial)])
    assert synced[-2:] == [partial, folder.parent.name]


def test_given_tokenizer_and_out(documents, tmp_path):
    first = prepare(settings(documents))
    model = first / "tokenizer.model"
    config = settings(documents, tokenizer=str(model), vocab_size=9)
    out = tmp_path / "chosen" / "folder"
    assert prepare(config, out) == out == prepare(config, out)
    assert (out / "tokenizer.model").read_bytes() == model.read_bytes()
    assert (out / "train-00000.bin").read_bytes() == (first / "train-00000.bin").read_bytes()
    with pytest.raises(ValueError, match="holds shards of another text or other settings"):
        prepare(settings(documents), out)
    with pytest.raises(ValueError, match="exists but holds no token shards"):
        prepare(config, tmp_path)
    with pytest.raises(ValueError, match="is already prepared"):
        prepare(DataConfig(path=str(first)), tmp_path / "again")


def test_wide_tokens(documents, monkeypatch):
    narrow = prepare(settings(documents))
    for module in (corpus, encode):
        monkeypatch.setattr(module, "token_dtype", lambda vocab_size: np.dtype("<u4"))
    wide = prepare(settings(documents, dir=str(documents.parent / "wide")))
    assert read_index(wide).dtype == "uint32"
    for split in ("train", "validation"):
        a, b = TokenShards(narrow, split), TokenShards(wide, split)
        assert b.dtype == np.uint32
        np.testing.assert_array_equal(a.read(0, len(a)), b.read(0, len(b)))


@pytest.mark.parametrize("validation", [1e-9, 1 - 1e-9])
def test_tiny_corpora_get_both_splits(tmp_path, validation):
    path = tmp_path / "tiny.txt"
    words = " ".join(f"{a}{b}{c}" for a in "abcde" for b in "fghij" for c in "klmno")
    path.write_text("\n\n".join(words + " " * number for number in range(1, 5)))
    folder = prepare(settings(path, vocab_size=300, validation=validation))
    lengths = sorted(len(TokenShards(folder, split)) for split in ("train", "validation"))
    assert 0 < lengths[0] * 2 < lengths[1]
    path.write_text(words)
    with pytest.raises(ValueError, match=r"has only one document.*give more text"):
        prepare(settings(path, vocab_size=300))
    path.write_text(" \n\n ")
    with pytest.raises(ValueError, match="holds no documents"):
        prepare(settings(path, vocab_size=300))


def test_a_place_that_cannot_be_made_is_named(documents, tmp_path):
    (tmp_path / "file").touch()
    for place in (str(tmp_path / "file" / "sub"), "/proc/nope"):
        with pytest.raises(
            ValueError, match=r"cannot be created \(.*\): choose another folder with data.dir="
        ) as error:
            prepare(settings(documents, dir=place))
        assert place in str(error.value)


def test_failure_leaves_nothing(documents, monkeypatch):
    monkeypatch.setattr(encode, "load_tokenizer", lambda path: 1 / 0)
    config = settings(documents)
    with pytest.raises(ZeroDivisionError):
        prepare(config)
    assert [path.name for path in Path(config.dir).iterdir() if path.suffix != ".lock"] == []


def test_a_full_disk_is_named(documents, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpus, "encode_pieces", full)
    config = settings(documents)
    with pytest.raises(ValueError, match=r"documents-\w+ could not be written \(No space left on device\)"):
        prepare(config)
    assert [path.name for path in Path(config.dir).iterdir() if path.suffix != ".lock"] == []


def test_a_bad_tokenizer_is_named_before_text_is_read(documents, tmp_path, monkeypatch):
    """The message has the path that the user gave, not that of a copy."""
    monkeypatch.setattr(corpus, "blocks_of", lambda *_, **__: pytest.fail("read the text"))
    monkeypatch.chdir(tmp_path)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a few words"]), model_prefix="mine", vocab_size=11, minloglevel=2, eos_id=-1
    )
    with pytest.raises(ValueError, match=r"^mine.model has no piece that begins or ends a document"):
        prepare(settings(documents, tokenizer="mine.model"))
    Path("tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^tokenizer.json is not a tokenizer.json"):
        prepare(settings(documents, tokenizer="tokenizer.json"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_preparation(tmp_path, how):
    """The workers of a killed process exit with it, and the next process starts over."""
    path = write_documents(tmp_path / "documents.jsonl", 3500)
    config = settings(path, workers=2)
    slow = """
import os, time
from caat.data import encode
def encoded(self, texts, encode_batch=encode._Encoder._encoded):
    (self.out.parent / f"pid-{os.getpid()}").touch()
    time.sleep(0.2)
    return encode_batch(self, texts)
encode._Encoder._encoded = encoded
"""
    process = start(config, slow)
    folder = prepared_folder(config)
    deadline = time.monotonic() + 60
    while len(workers := list(folder.parent.glob("pid-*"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(timeout=20) != 0
    assert not folder.exists()
    pids = [int(worker.name.removeprefix("pid-")) for worker in workers]
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    partial = folder.with_name(f".{folder.name}.partial")
    assert partial.exists() == (how == signal.SIGKILL)
    assert prepare(config) == folder
    assert not partial.exists() and len(read_index(folder).train) == 3


def test_two_at_once(documents):
    """One process works, the other waits, and both get the folder."""
    config = settings(documents)
    slow = """
import time
def tokenize(config, out, tokenize=corpus.tokenize):
    tokenize(config, out)
    (out / "done-once").open("x").close()
    print("worked", file=sys.stderr)
    time.sleep(1)
corpus.tokenize = tokenize
"""
    both = [start(config, slow), start(config, slow)]
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert {out.strip() for out, _ in results} == {str(prepared_folder(config))}
    said = "".join(err for _, err in results)
    assert said.count("worked") == 1 and said.count("waiting for another process") == 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("rows 1 to 2 hold bytes that are not UTF-8"), "rows 1 to 2"),
        (BrokenProcessPool(), "was killed"),
    ],
)
def test_what_a_process_raised_is_one_line(error, says):
    future: Future = Future()
    future.set_exception(error)
    with pytest.raises(ValueError, match=says) as found:
        encode._result(future)
    assert found.value.__cause__ is None and found.traceback[-1].name == "_result"

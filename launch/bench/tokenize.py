"""`caat bench tokenize`: our tokenising against bare SentencePiece on the same text, and its memory.

Each measurement runs in a separate process. Both sides read the same jsonl file and encode on one core;
ours also builds and writes the token shards. Memory is the peak of the largest process, for a small and a
large corpus of the same documents.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from subprocess import run

from caat.data.corpus import prepare, tokenize
from caat.data.quickstart import quickstart_text
from caat.training.memory import peak_resident_bytes
from conf.bench import BenchTokenizeConfig
from conf.data import DataConfig
from conf.reading.verb import load_verb
from launch.bench.report import Report


def main(argv: list[str]) -> None:
    config = load_verb(BenchTokenizeConfig, argv)
    report = Report("tokenize", config.out)
    data = DataConfig(vocab_size=config.vocab_size)
    tokenizer = prepare(data) / "tokenizer.model"
    text = quickstart_text(Path(data.dir))
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.jsonl", Path(folder) / "large.jsonl"
        _repeat(text, small, config.copies)
        _repeat(text, large, config.copies * 4)
        seconds: dict[str, list[float]] = {"bare SentencePiece": [], "caat tokenize": []}
        memory: dict[str, int] = {}
        for _ in range(config.rounds):
            for name, verb in (("bare SentencePiece", "bare"), ("caat tokenize", "ours")):
                result = _measure(verb, small, tokenizer)
                seconds[name].append(result["seconds"])
                memory[name] = result["peak"]
        memory["caat tokenize, 4 times the text"] = _measure("ours", large, tokenizer)["peak"]
        size = small.stat().st_size / 1e6
    bare = seconds["bare SentencePiece"]
    for name, peak in memory.items():
        times = seconds.get(name)
        report.add(
            variant=name,
            mb_per_second="" if times is None else f"{size / statistics.median(times):.2f}",
            speed_ratio=""
            if times is None
            else f"{statistics.median(b / t for b, t in zip(bare, times, strict=True)):.2f}",
            peak_mib=peak / 2**20,
        )
    report.finish(
        f"Tokenising {size:.0f} MB on one core with {config.vocab_size:,} pieces; whole processes",
    )


def _repeat(text: Path, path: Path, copies: int) -> None:
    """Write ``copies`` of the documents, numbered so that no two are the same."""
    lines = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for copy in range(copies):
            file.writelines(json.dumps({"text": f"{copy} {line}"}) + "\n" for line in lines)


def _measure(verb: str, text: Path, tokenizer: Path) -> dict:
    command = [sys.executable, "-m", f"{__package__}.tokenize", verb, str(text), str(tokenizer)]
    return json.loads(run(command, check=True, capture_output=True, text=True).stdout)


def _bare(text: Path, tokenizer: Path) -> None:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    with text.open(encoding="utf-8") as file:
        for line in file:
            processor.encode(json.loads(line)["text"])


def _ours(text: Path, tokenizer: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenize(
            DataConfig(path=str(text), tokenizer=str(tokenizer), dir=folder, workers=1), Path(folder) / "out"
        )


if __name__ == "__main__":
    started = time.perf_counter()
    {"bare": _bare, "ours": _ours}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    print(json.dumps({"seconds": time.perf_counter() - started, "peak": peak_resident_bytes()}))

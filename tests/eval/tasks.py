"""Small tasks for lm-eval: task files over local jsonl, of every kind of request. No hub, no network."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

NAMES = ["tiny_choice", "tiny_perplexity", "tiny_lambada", "tiny_generation"]


def write_tasks(folder: Path) -> Path:
    """The folder of four tasks, one for each kind of request and metric."""
    colours = ["brown", "grey", "red"]
    choices = [
        {"query": f"The {colours[n % 3]} fox of Paris jumped over", "choices": choices, "gold": n % 2}
        for n in range(10)
        for choices in [[f"{n} lazy dogs.", "Rome.", "the quick brown fox of Rome."][: 2 + n % 2]]
    ]
    texts = [{"text": f"The {colour} fox. " * repeats} for colour in colours for repeats in (1, 3, 12)]
    endings = [{"context": f"{n} lazy dogs of", "ending": " Rome" if n % 2 else " Paris"} for n in range(7)]
    questions = [
        {"question": f"The {colour}" + " fox" * n, "answer": "dogs"} for n, colour in enumerate(colours)
    ]
    _task(folder, "tiny_choice", choices, output_type="multiple_choice", doc_to_text="{{query}}",
          doc_to_choice="{{choices}}", doc_to_target="{{gold}}",
          metric_list=[_mean("acc"), _mean("acc_norm")])  # fmt: skip
    _task(folder, "tiny_perplexity", texts, output_type="loglikelihood_rolling", doc_to_text="",
          doc_to_target="{{text}}",
          metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}])  # fmt: skip
    _task(folder, "tiny_lambada", endings, output_type="loglikelihood", doc_to_text="{{context}}",
          doc_to_target="{{ending}}",
          metric_list=[{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                       _mean("acc")])  # fmt: skip
    _task(folder, "tiny_generation", questions, output_type="generate_until", doc_to_text="{{question}}",
          doc_to_target="{{answer}}", generation_kwargs={"until": ["\n", "e"], "max_gen_toks": 6},
          metric_list=[_mean("exact_match")])  # fmt: skip
    return folder


def _mean(metric: str) -> dict:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _task(folder: Path, name: str, rows: list[dict], **settings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    task = {"task": name, "dataset_path": "json", "dataset_kwargs": source, "test_split": "test", **settings}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))

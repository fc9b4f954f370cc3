"""Tasks for `caat evaluate` that measure the loss on each source of a jsonl file separately.

python docs/examples/tasks_by_source.py held-out.jsonl tasks    # rows {"text": ..., "source": ...}
caat evaluate checkpoint=outputs/first tasks=tasks/
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path


def main(rows: Path, out: Path) -> None:
    """Write a task file and its rows for each source to the folder ``out``."""
    texts: dict[str, list[str]] = defaultdict(list)
    with rows.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            texts[row["source"]].append(json.dumps({"text": row["text"]}))
    out.mkdir(parents=True, exist_ok=True)
    for source, kept in texts.items():
        data = out / f"{source}.jsonl"
        data.write_text("\n".join(kept) + "\n", encoding="utf-8")
        task = {
            "task": f"loss_{source}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
            "test_split": "test",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
        }
        # JSON is YAML.
        (out / f"{source}.yaml").write_text(json.dumps(task, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

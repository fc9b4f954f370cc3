"""What the scripts that train several runs share: starting one, and reading its loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

# On two cores, two runs of one thread trained 1.18 times the tokens/s of one run of two (bfloat16, compiled).
AT_ONCE = 2


def precision() -> str:
    """Return the type to train in: bfloat16 unless this machine is faster in float32."""
    import torch

    from caat.training.estimate import precision_note, product_rate

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "fp32" if precision_note(device, "bf16", product_rate(device, "bf16")) else "bf16"


def train(settings: list[str], at_once: int = 1) -> None:
    """Run `caat pretrain` with ``settings``, on its share of the cores if several train ``at_once``."""
    environment = dict(os.environ)
    if at_once > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // at_once))
    subprocess.run([sys.executable, "-m", "launch.pretrain", *settings], check=True, env=environment)


def side_by_side(jobs: Iterable[Callable[[], None]]) -> None:
    """Call each of ``jobs``, which train, ``AT_ONCE`` at a time. After an error or Ctrl-C, begin no more."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for done in as_completed([pool.submit(job) for job in jobs]):
                done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def loss_of(folder: Path) -> float | None:
    """Return the validation loss of the run in ``folder``; None if it has not ended."""
    summary = folder / "summary.json"
    return json.loads(summary.read_text())["validation_loss"] if summary.is_file() else None


def collect(
    out: Path, record: Path, runs: Iterable[str], read: Callable[[Path], Any] = loss_of
) -> dict[str, Any]:
    """Add what ``read`` finds of each of ``runs``, folders below ``out``, to ``record``; return all in it.

    By default, that is the validation loss. A run takes hours: the file keeps the figures of runs whose
    folders, on other machines, are gone.
    """
    known: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    found = {run: read(out / run) for run in runs}
    known |= {run: figures for run, figures in found.items() if figures is not None}
    record.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return known


def run_command(run: Callable[[str, Path], None], figures: Callable[[Path], None]) -> None:
    """Do what the command line says: `run TEXT FOLDER` or `figures FOLDER`."""
    match sys.argv[1:]:
        case ["run", text, out]:
            run(text, Path(out))
        case ["figures", out]:
            figures(Path(out))
        case _:
            sys.exit(f"usage: python {sys.argv[0]} run TEXT.jsonl FOLDER, or figures FOLDER")

"""What the scripts that train several runs share: starting one, and reading its loss."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def train(settings: list[str]) -> None:
    """Run `caat pretrain` with ``settings``."""
    subprocess.run([sys.executable, "-m", "launch.pretrain", *settings], check=True)


def loss_of(folder: Path) -> float | None:
    """Return the validation loss of the run in ``folder``; None if it has not ended."""
    summary = folder / "summary.json"
    return json.loads(summary.read_text())["validation_loss"] if summary.is_file() else None


def run_command(run: Callable[[str, Path], None], figures: Callable[[Path], None]) -> None:
    """Do what the command line says: `run TEXT FOLDER` or `figures FOLDER`."""
    match sys.argv[1:]:
        case ["run", text, out]:
            run(text, Path(out))
        case ["figures", out]:
            figures(Path(out))
        case _:
            sys.exit(f"usage: python {sys.argv[0]} run TEXT.jsonl FOLDER, or figures FOLDER")

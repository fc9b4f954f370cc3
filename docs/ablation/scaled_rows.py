"""Copies a checkpoint with the weights that write private channels divided by the square root of the shards.

    python docs/ablation/scaled_rows.py RUN/checkpoints/step-00005469 FOLDER

At a higher ratio, a channel that was private holds a sum over the N shards. With these weights, it has about
the variance that it had: a run that resumes from FOLDER and raises the ratio starts from a smaller jump.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from xxhash import xxh3_128

from caat.training.checkpoint.architecture import read_architecture
from caat.training.checkpoint.state import read_optimizer, read_state, write_state

WRITERS = ("o_proj.weight", "down_proj.weight")


def main(checkpoint: Path, out: Path) -> None:
    found = read_architecture(checkpoint)
    state, checksums = read_state(checkpoint)
    shutil.copytree(checkpoint, out)
    weights = load_file(out / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(WRITERS):
            weight[found.shared_channels :] /= found.shards**0.5
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    digest = xxh3_128((out / "model.safetensors").read_bytes()).hexdigest()
    write_state(out, state, read_optimizer(checkpoint), checksums | {"model.safetensors": digest})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} CHECKPOINT FOLDER")
    main(*map(Path, sys.argv[1:]))

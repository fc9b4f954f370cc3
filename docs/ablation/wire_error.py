"""Measure the error of the low-bit sums of variants.py in the layers of a trained model.

python docs/ablation/wire_error.py RUN held-out.txt    # the first 2,048 tokens of the text
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from variants import SUMS, VariedGPT

from caat.training.checkpoint.architecture import read_architecture
from caat.training.checkpoint.folder import find
from eval.open import open_model
from launch.command.trained import tokenizer_of


def main(run: str, text: Path) -> None:
    """Print |sum - exact| / |exact| for every kind of sum, over the forward and backward synchronisations."""
    folder = find(run)
    architecture = read_architecture(folder)
    model = open_model(folder, "cpu", "fp32")
    model.__class__ = VariedGPT
    errors: dict[str, list[float]] = defaultdict(list)

    def measured(direction: int):
        def add_up(parts: Tensor) -> Tensor:
            exact = parts.double().sum(0)
            for name in ("int8", "int8_parts", "bf16", "bf16_sums"):
                off = (SUMS[name][direction](parts) - exact).norm() / exact.norm()
                errors[f"{name}, {('forward', 'backward')[direction]}"].append(off.item())
            return exact.to(parts.dtype)

        return add_up

    VariedGPT.sums = measured(0), measured(1)
    tokens = torch.tensor(tokenizer_of(folder, architecture).encode(text.read_text())[:2049])
    if len(tokens) < 2049:
        sys.exit(f"{text} has {len(tokens)} tokens, but 2,049 are needed: give a longer text")
    sequence = architecture.model.sequence
    with torch.enable_grad():
        model(tokens[:-1].view(-1, sequence), tokens[1:].view(-1, sequence)).mean().backward()
    for name, found in errors.items():
        print(f"{name}: {mean(found):.2%} on average, {min(found):.2%} to {max(found):.2%}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} RUN TEXT")
    main(sys.argv[1], Path(sys.argv[2]))

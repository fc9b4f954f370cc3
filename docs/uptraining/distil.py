"""Uptrain at a lower ratio on the distribution of the original model.

python docs/uptraining/distil.py WEIGHT initialize=smollm2 ...    # settings as in `caat pretrain`

The loss of a token is (1 - WEIGHT) times the usual one plus WEIGHT times the Kullback-Leibler divergence of
the model's distribution from that of the initial weights at ratio 1, on the same batch. For one process.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

import launch.run.build
from caat.data.marks import IGNORED
from caat.training.checkpoint.folder import find
from conf.checks import require
from eval.open import load_model
from launch.command.errors import user_errors
from launch.pretrain import main
from launch.run.compose import compose
from layers import GPT
from layers.loss import vocab_parallel_cross_entropy


class Student(GPT):
    """A GPT whose loss includes the divergence from ``teacher``, while it trains."""

    teacher: GPT
    share: float

    @staticmethod
    def empty(*arguments, **named) -> GPT:  # type: ignore[override]
        model = GPT.empty(*arguments, **named)
        assert model.mesh.processes == 1, "every process would have a part of the vocabulary"
        model.__class__ = Student
        return model

    def forward(self, tokens: Tensor, targets: Tensor | None = None, *more, **named) -> Tensor:  # type: ignore[override]
        if targets is None or not torch.is_grad_enabled():
            return super().forward(tokens, targets, *more, **named)
        logits = super().forward(tokens, None, *more, **named)
        with torch.no_grad():
            teacher = self.teacher.to(tokens.device, logits.dtype)
            wanted = teacher(tokens, None, *more, **named).float().log_softmax(-1)
        ours = logits.float().log_softmax(-1)
        divergence = (wanted.exp() * (wanted - ours).masked_fill(wanted == -torch.inf, 0.0)).sum(-1)
        usual = vocab_parallel_cross_entropy(logits, targets, self.config.vocab_size, self.mesh)
        return (1 - self.share) * usual + self.share * divergence.masked_fill(targets == IGNORED, 0.0)


def run(share: float, settings: list[str]) -> int:
    """Train, and return the exit status."""
    with user_errors():
        config = compose(settings)
        alone = config.launch.processes == 1 and config.launch.max_restarts == 0
        require(
            alone, "other processes would train without this: leave launch.processes and max_restarts out"
        )
        folder = find(config.initialize, "initialize")
    Student.share = share
    build = launch.run.build._mesh

    def with_teacher(config):
        mesh = build(config)
        Student.teacher = load_model(Path(folder), mesh)
        return mesh

    launch.run.build._mesh = with_teacher
    launch.run.build.GPT = Student  # type: ignore[misc]
    return main(settings)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: python {sys.argv[0]} WEIGHT initialize=CHECKPOINT [setting=value ...]")
    sys.exit(run(float(sys.argv[1]), sys.argv[2:]))

"""Uptrain at a lower ratio on the distribution of the original model, and on its streams.

python docs/uptraining/distil.py LOGITS STREAMS initialize=smollm2 ...    # settings as in `caat pretrain`

The teacher is the model of the initial weights at ratio 1, on the same batch. The loss of a token is
(1 - LOGITS) times the usual one, plus LOGITS times the Kullback-Leibler divergence of the model's
distribution from the teacher's, plus STREAMS times the squared distance of its residual streams from the
teacher's, relative to their square: the mean over the blocks and shards. For one process.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import launch.run.build
from caat.data.marks import IGNORED
from caat.parallel.partial.stream import Stream
from caat.training.checkpoint.folder import find
from conf.checks import require
from eval.open import load_model
from launch.command.errors import user_errors
from launch.pretrain import main
from launch.run.compose import compose
from layers import GPT
from layers.loss import vocab_parallel_cross_entropy
from layers.norm import Normed


class Recorded(GPT):
    """A GPT that keeps the streams after its blocks, those of the last forward pass."""

    streams: list[Stream]

    def hidden(self, *arguments) -> Normed:  # type: ignore[override]
        self.streams = []
        return super().hidden(*arguments)

    def _run(self, block: nn.Module, *arguments) -> Stream:
        self.streams.append(super()._run(block, *arguments).settled())
        return self.streams[-1]


class Student(Recorded):
    """A GPT whose loss includes the divergence from ``teacher`` and the distance of streams, in training."""

    teacher: Recorded
    logits: float
    distances: float

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
        pairs = zip(self.streams, self.teacher.streams, strict=True)
        apart = torch.stack([distance(stream, wanted) for stream, wanted in pairs]).mean(0)
        distilled = self.logits * divergence + self.distances * apart
        return (1 - self.logits) * usual + distilled.masked_fill(targets == IGNORED, 0.0)


def distance(stream: Stream, wanted: Stream) -> Tensor:
    """Return (x - w)^2 / w^2 for each token [batch, seq], the mean over the shards.

    The stream w ``wanted`` is that of a model at ratio 1; it has no private channels.
    """
    whole, k = wanted.shared.float(), stream.shared_channels
    square = (stream.shared - whole[..., :k]).square().sum(-1)
    square = square + (stream.private - whole[..., k:]).square().sum(-1).mean(0)
    return square / whole.square().sum(-1)


def run(logits: float, distances: float, settings: list[str]) -> int:
    """Train, and return the exit status."""
    with user_errors():
        config = compose(settings)
        alone = config.launch.processes == 1 and config.launch.max_restarts == 0
        require(
            alone, "other processes would train without this: leave launch.processes and max_restarts out"
        )
        folder = find(config.initialize, "initialize")
    Student.logits, Student.distances = logits, distances
    build = launch.run.build._mesh

    def with_teacher(config):
        mesh = build(config)
        Student.teacher = load_model(Path(folder), mesh)  # type: ignore[assignment]
        Student.teacher.__class__ = Recorded
        return mesh

    launch.run.build._mesh = with_teacher
    launch.run.build.GPT = Student  # type: ignore[misc]
    return main(settings)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(f"usage: python {sys.argv[0]} LOGITS STREAMS initialize=CHECKPOINT [setting=value ...]")
    sys.exit(run(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))

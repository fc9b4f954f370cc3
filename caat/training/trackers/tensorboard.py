"""TensorBoard: event files in the run folder, with trained tokens as the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caat.training.trackers.samples import Sample
from caat.training.trackers.tracker import Tracker


class TensorBoard(Tracker):
    """Writes scalars, and samples as text.

    Events logged after ``done_tokens`` by a killed run are dropped when training repeats these steps; None:
    nothing is trained, and all events are kept.
    """

    def __init__(self, folder: Path, settings: str, done_tokens: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if done_tokens is None else done_tokens + 1
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        if done_tokens is not None:
            self._writer.add_text("config", _preformatted(settings), done_tokens)

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if value is not None and name != "tokens":
                self._writer.add_scalar(name, value, record["tokens"])
        self._writer.flush()

    def samples(self, record: Mapping[str, Any], samples: Sequence[Sample]) -> None:
        for number, sample in enumerate(samples):
            text = f"{sample.context}\n{sample.continuation}\n\n{sample.loss:.3f} nats: {sample.spelled}"
            self._writer.add_text(f"validation_sample_{number}", _preformatted(text), record["tokens"])

    def close(self, summary: Mapping[str, Any]) -> None:
        self._writer.close()


def _preformatted(text: str) -> str:
    """Indent the lines: TensorBoard renders Markdown, in which indented text is preformatted."""
    return "\n".join(f"    {line}" for line in text.splitlines())

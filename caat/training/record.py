"""The record of a step, for metrics.jsonl and all trackers, and its status line."""

from __future__ import annotations

import math
from typing import Any

import torch

from caat.parallel.data_axis import PURPOSES
from caat.parallel.island_axis import ISLAND_PURPOSES
from caat.parallel.mesh import Mesh
from caat.planning.costs import flops_per_token
from caat.training.checkpoint.state import State
from caat.training.islands.outer_steps import OuterStep
from caat.training.memory import memory_gib
from caat.training.peak import peak_tflops
from caat.training.progress import loss_text
from caat.training.step import TakenStep
from conf.schema import Config


class Recorder:
    """Creates the records of one run on this rank."""

    def __init__(self, config: Config, mesh: Mesh, device: torch.device) -> None:
        c = config.train
        self._mesh, self._device = mesh, device
        self._tokens = c.global_batch * c.sequence
        processes = mesh.processes * mesh.replicas
        self._tflop = flops_per_token(config.model, c.sequence) * self._tokens / 1e12 / processes
        self._peak = peak_tflops(device, c.peak_tflops)

    def record(self, taken: TakenStep, state: State, *, ratio: float, learning_rate: float) -> dict[str, Any]:
        """Return the record of the step ``taken``, after which the training state is ``state``."""
        tflops = self._tflop / taken.seconds
        tensor = self._mesh.tensor.ledger.totals("forward", "backward")
        data = self._mesh.data.ledger.totals(*PURPOSES)
        return {
            "step": state.step,
            "tokens": state.tokens,
            "loss": finite(taken.result.loss),
            "ratio": ratio,
            "learning_rate": learning_rate,
            "grad_norm": finite(taken.result.grad_norm),
            "tokens_per_second": self._tokens / taken.seconds,
            "step_seconds": taken.seconds,
            "tflops_per_process": tflops,
            "mfu": tflops / self._peak if self._peak else None,
            "memory_gib": memory_gib(self._device),
            "data_wait_seconds": taken.waited,
            "skipped_steps": state.skipped,
            "tensor_parallel_processes": self._mesh.processes,
            "replicas": self._mesh.replicas,
            **{f"tensor_parallel_{name}": n for name, n in tensor.items()},
            **{f"data_parallel_{name}": n for name, n in data.items()},
            **self._outer(taken.outer),
        }

    def _outer(self, outer: OuterStep | None) -> dict[str, Any]:
        """Return what islands exchanged; nothing if there are none."""
        if outer is None:
            return {}
        sent = self._mesh.islands.ledger.totals(*ISLAND_PURPOSES)
        record: dict[str, Any] = {f"islands_{name}": n for name, n in sent.items()}
        record["islands_wait_seconds"] = outer.wait_seconds
        if outer.norm is not None:
            record |= {"islands_outer_norm": outer.norm, "islands_distance": outer.distance}
        return record | outer.figures


def finite(value: float) -> float | None:
    """Replace a non-finite value by None: JSON has no nan, and the step counts as skipped."""
    return value if math.isfinite(value) else None


def status_line(record: dict[str, Any]) -> str:
    """Format the record as one line: loss, speed, learning rate and, if present, validation loss."""
    loss = loss_text(record["loss"]) + (", skipped" if record["loss"] is None else "")
    text = f"loss {loss}  {record['tokens_per_second']:,.0f} tokens/s  lr {record['learning_rate']:.2e}"
    if "validation_loss" in record:
        text += f"  validation {loss_text(record['validation_loss'])}"
        sources = [name for name in record if name.startswith("validation_loss/")]
        parts = (f"{name.partition('/')[2]} {loss_text(record[name])}" for name in sources)
        text += f" ({', '.join(parts)})" if sources else ""
    if "test_loss" in record:
        text += f"  test {loss_text(record['test_loss'])}"
    return text

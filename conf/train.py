"""Settings of the steps of a run: `train.*`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conf.checks import require, require_choice, require_positive
from conf.field import setting


@dataclass
class TrainConfig:
    steps: int = setting(100, "Number of optimizer steps.")
    sequence: int = setting(256, "Tokens per sequence, at most model.sequence.")
    micro_batch: int = setting(
        4,
        "Sequences per replica and forward pass. The number of gradient accumulation steps follows from "
        "global_batch.",
    )
    global_batch: int = setting(16, "Sequences per optimizer step, over all replicas of all islands.")
    precision: str = setting(
        "bf16",
        "Numeric format: bf16 (with float32 master weights and optimizer state) or fp32.",
    )
    activation_checkpointing: str = setting(
        "none",
        "What to recompute in the backward pass: none, full (every block; results of collectives are kept, "
        "not sent again) or selective (attention core and SwiGLU: large to store, cheap to recompute).",
    )
    compile: bool = setting(
        False,
        "Compile the code between the matrix multiplications (attention with its rotary embedding, "
        "SwiGLU) with torch.compile. Steps are faster, but the start takes tens of seconds longer. "
        "Needs a C++ compiler.",
    )
    documents: str = setting(
        "packed",
        "What a sequence is that holds several documents: one text (packed), or documents apart, each of "
        "which attends to itself only, with positions from 0 (masked).",
    )
    eval_every: int = setting(
        50,
        "Number of steps between validations on `eval_sequences` held-out sequences. 0: validate only at "
        "the end.",
    )
    eval_sequences: int = setting(64, "Number of held-out sequences per validation.")
    log_every: int = setting(10, "Number of steps between log lines. metrics.jsonl has every step.")
    deterministic: bool = setting(
        False,
        "Use deterministic kernels only, so that every run gives identical results. Slower on a GPU.",
    )
    tf32: bool = setting(
        False,
        "With fp32 on an NVIDIA GPU: multiply in TF32, with 10 instead of 23 bits of mantissa, which is "
        "several times as fast.",
    )
    max_skipped: int = setting(
        10,
        "Stop after this many consecutive steps were skipped because the loss or gradient was not finite.",
    )
    check_replicas_every: int = setting(
        100,
        "Number of steps between checks that replicated tensors are identical on all their processes. 0: "
        "never check.",
    )
    profile: Any = setting(
        None,
        "Steps to profile on the first rank: {10:13} writes a trace of steps 10 to 13, both included, and a "
        "table of their slowest operations to the run folder. Default: none.",
    )
    peak_tflops: float | None = setting(
        None,
        "Peak of the device in TFLOP/s, for MFU. Needed only if the device is not in caat's table.",
    )

    def __post_init__(self) -> None:
        require_positive(
            train__steps=self.steps,
            train__sequence=self.sequence,
            train__micro_batch=self.micro_batch,
            train__global_batch=self.global_batch,
            train__eval_sequences=self.eval_sequences,
            train__log_every=self.log_every,
            train__max_skipped=self.max_skipped,
        )
        require(
            self.eval_every >= 0,
            f"train.eval_every={self.eval_every} must not be negative (0: only at the end)",
        )
        require(
            self.check_replicas_every >= 0,
            f"train.check_replicas_every={self.check_replicas_every} must not be negative (0: never)",
        )
        require_choice("train.precision", self.precision, ("fp32", "bf16"))
        require_choice(
            "train.activation_checkpointing", self.activation_checkpointing, ("none", "full", "selective")
        )
        require_choice("train.documents", self.documents, ("packed", "masked"))
        require(
            not self.tf32 or self.precision == "fp32",
            f"train.tf32=true needs train.precision=fp32, not {self.precision}, which has no such products",
        )
        if self.profile is not None:
            self._check_profile()
        if self.peak_tflops is not None:
            require_positive(train__peak_tflops=self.peak_tflops)

    def _check_profile(self) -> None:
        how = f"give a first and a last step from 1 to {self.steps}, as in 'train.profile={{10:13}}'"
        require(
            isinstance(self.profile, dict) and len(self.profile) > 0, f"train.profile={self.profile}: {how}"
        )
        for first, last in self.profile.items():
            whole = type(first) is type(last) is int
            require(whole and 1 <= first <= last <= self.steps, f"train.profile has {first}:{last}: {how}")

    def accumulation(self, data_parallel: int) -> int:
        """Return the micro-batches per step. Raise ``ValueError`` if ``global_batch`` is not a multiple."""
        per_pass = self.micro_batch * data_parallel
        require(
            self.global_batch % per_pass == 0,
            f"train.global_batch={self.global_batch} is not a multiple of train.micro_batch="
            f"{self.micro_batch} times {data_parallel} data-parallel replicas: change one of the two",
        )
        return self.global_batch // per_pass

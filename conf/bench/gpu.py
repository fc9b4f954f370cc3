"""The benchmark of one GPU by all the others."""

from __future__ import annotations

from dataclasses import dataclass

from conf.checks import require, require_choice, require_positive
from conf.field import setting

# In this order; generate uses the run of train-half.
PARTS = (
    "doctor",
    "kernels",
    "mfu-1.1b",
    "mfu-1.1b-eager",
    "mfu-130m",
    "shards",
    "codecs",
    "step",
    "prefill",
    "profile",
    "tokenize",
    "train-half",
    "train-full",
    "generate",
)
# What a part reads of an earlier one.
NEEDS = {"train-half": "tokenize", "train-full": "tokenize", "generate": "train-half"}


@dataclass
class BenchGpuConfig:
    """`caat bench gpu`: run the benchmarks that use a GPU, train 130m at ratio 0.5 and 1, and generate, on
    one GPU in about ten minutes. Writes one JSON with all figures, and one page with the machine, the
    commands and their tables. A part that fails or takes too long does not stop the next one."""

    parts: list[str] = setting(list(PARTS), "Parts to run, in the order of the default.")
    minutes: float = setting(12.0, "Time for all parts; those that are not reached are listed as such.")
    data: str | None = setting(
        None, "Text to train on, as data.path of `caat pretrain`. Default: the quick-start text."
    )
    device: str = setting(
        "cuda", "Device: cuda, or cpu: every part in a small size, in order to try the command without a GPU."
    )
    out: str | None = setting(
        None,
        "Path of the JSON; the page is written next to it, and files of the parts to a folder of that name. "
        "Default: outputs/bench-gpu-<time>.json.",
    )

    def __post_init__(self) -> None:
        require_positive(minutes=self.minutes)
        require_choice("device", self.device, ("cpu", "cuda"))
        require(bool(self.parts), f"parts=[] is empty: give one or more of {', '.join(PARTS)}")
        for part in self.parts:
            require_choice("parts", part, PARTS)
        whole = set(self.parts)
        while missing := {NEEDS[part] for part in whole if part in NEEDS} - whole:
            whole |= missing
        require(
            whole == set(self.parts),
            f"parts=[{','.join(self.parts)}] need others: give "
            f"parts=[{','.join(part for part in PARTS if part in whole)}]",
        )

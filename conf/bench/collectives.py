"""The benchmark of all-reduces on an emulated network."""

from __future__ import annotations

from dataclasses import dataclass

from conf.bench.link import ShapedLinkConfig
from conf.checks import require, require_positive
from conf.field import setting
from conf.units import size_bytes


@dataclass
class BenchCollectivesConfig(ShapedLinkConfig):
    """`caat bench collectives`: time all-reduces on a network of links that this machine emulates (needs
    root, ip and tc): gloo's own, and schedules that fit the network. For comparison: the simulated time of
    each, and the optimum."""

    topology: str = setting(
        "mesh:2x2",
        "Network: ring:8, full:8, mesh:4x4, torus:4x4, fattree:LEAVESxHOSTSxSPINES or the path of a JSON "
        "file. Each node is a process with a network namespace of its own.",
    )
    rate: str = setting("100mbit", "Rate of links that name none of their own, in tc's notation.")
    delay: str = setting("0ms", "One-way delay of links that name none of their own, in tc's notation.")
    size: str = setting("40mb", "Size of the float32 buffer: 40mb is 40 million bytes.")
    method: str | None = setting(
        None,
        "Measure one schedule: ring, two-way-ring, 2d-ring, double-binary-tree or multitree. Default: all "
        "that the network has.",
    )
    schedule: str | None = setting(
        None,
        "JSON file of a schedule. If it exists, the schedule is measured too, and the file is left as it "
        "is; if not, the fastest schedule is written to it.",
    )
    pieces: int | None = setting(
        None,
        "Pieces in which each chunk of a schedule is sent. Default: as in training, pieces of about 256 KiB, "
        "but no more than make 64 messages on a link.",
    )
    simulate: bool = setting(False, "Predict only: start no processes, and need no root.")
    rounds: int = setting(5, "All-reduces of each kind, taken in turn; the median is reported.")
    out: str | None = setting(
        None,
        "Path of the JSON; the plot is written next to it. Default: outputs/bench-collectives-<time>.json.",
    )

    def __post_init__(self) -> None:
        require_positive(rounds=self.rounds, pieces=1 if self.pieces is None else self.pieces)
        require(len(self.rates) == 1, f"rate={self.rate}: this benchmark measures one rate at a time")
        self.check_rates()
        require(
            self.schedule is None or self.schedule.endswith(".json"),
            f"schedule={self.schedule} is not a JSON file: give a path that ends in .json, or method=NAME",
        )
        require(self.numbers > 0, f"size={self.size} is below 4 bytes, one number of float32")

    @property
    def numbers(self) -> int:
        """Numbers of float32 in the buffer."""
        return size_bytes(self.size) // 4

    @property
    def processes(self) -> int:
        """One on each host."""
        return 1

    @property
    def device(self) -> str:
        """The hosts are namespaces of one machine, whose GPUs would share its network."""
        return "cpu"

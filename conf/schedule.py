"""The settings `schedule` and `topology` of an axis: how its large messages travel. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conf.checks import require

SCHEDULE_HELP = (
    "none (the backend's collectives, or slices), auto (the schedule that is fastest on `topology`, by "
    "simulation, for the size of each message), or a JSON file with the schedule of an all-reduce. Node r of "
    "a schedule is {node} r. Partial sums travel in the type of the message, and every {node} gets the same "
    "bits."
)
TOPOLOGY_HELP = (
    "With schedule=auto: the network between {nodes}, in the order of their numbers: ring:8, full:8, "
    "mesh:2x2, torus:4x4, fattree:4x4, or a JSON file with its links. Links without a rate and a delay of "
    "their own have 1 Gbit/s and 0.1 ms."
)


@dataclass(frozen=True)
class ScheduleSpec:
    """The two settings of the ``axis`` data_sync or islands, whose ranks are ``ranks`` in messages.

    Raises ``ValueError`` unless they go together.
    """

    axis: str
    ranks: str
    schedule: str = "none"
    topology: str | None = None

    def __post_init__(self) -> None:
        if self.schedule == "auto":
            require(
                self.topology is not None,
                f"{self.axis}.schedule=auto needs the network between {self.ranks}: give "
                f"{self.axis}.topology=mesh:2x2, say, or the JSON file of a network",
            )
        else:
            require(
                self.topology is None,
                f"{self.axis}.topology={self.topology} has no effect with {self.axis}.schedule="
                f"{self.schedule}: set {self.axis}.schedule=auto, or leave it out",
            )

    def __bool__(self) -> bool:
        """Whether messages travel along a schedule."""
        return self.schedule != "none"

    def describe(self) -> str:
        """Return how messages travel, in a few words."""
        return (
            f"the fastest schedule on {self.topology}" if self.topology else f"the schedule {self.schedule}"
        )

    @property
    def names(self) -> list[str]:
        """The settings that are given; the last one may name a file."""
        return [f"{self.axis}.schedule"] + [f"{self.axis}.topology"] * (self.topology is not None)

    @property
    def file(self) -> Path | None:
        """The file of the schedule or of the network; None if it has a name."""
        path = Path((self.topology or "") if self.schedule == "auto" else self.schedule).expanduser()
        return path if self and (self.schedule != "auto" or path.is_file()) else None

    def refuse_codec(self, codec: str) -> None:
        """Raise ``ValueError`` if the axis has a schedule and a ``codec`` of the numbers that it sums."""
        require(
            not self or codec == "none",
            f"{self.axis}.codec={codec} does not go with {self.axis}.schedule={self.schedule}: a schedule "
            f"adds numbers on their way, which a codec would round again at each of the {self.ranks}; leave "
            "one of the two out",
        )

"""One run of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from caat.runs.status import read_status
from conf.checks import require
from conf.deployment import DEPLOYMENT
from conf.reading.explain import SETTINGS
from conf.reading.saved import read_config
from conf.schema import Config


@dataclass(frozen=True)
class Run:
    """One combination of values: ``name`` says what varies; ``config`` is composed from ``overrides``."""

    name: str
    overrides: list[str]
    config: Config

    @property
    def folder(self) -> Path:
        return Path(str(self.config.run.dir))

    def finished(self) -> bool:
        """Return whether the run is finished. Raises ``ValueError`` if its folder holds a different one."""
        if read_status(self.folder) != "finished":
            return False
        there = read_config(self.folder / "config.yaml")
        for name in (name for name in SETTINGS if not name.startswith(DEPLOYMENT)):
            ours, theirs = attrgetter(name)(self.config), attrgetter(name)(there)
            require(
                ours == theirs,
                f"{name}={ours}, but the finished run in {self.folder} has {theirs}: give another "
                "hydra.sweep.dir=..., or leave it out",
            )
        return True

"""The start of a run: decided once, before its processes start, and verified by each of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from caat.data.prepared import Prepared, prepare_text
from caat.storage.records import Whole, parse_record
from conf.checks import require
from conf.reading.saved import config_text
from conf.schema import Config
from launch.run.disk_space import check_space
from launch.run.initial import check_initial
from launch.run.resume import check_resume_data
from launch.run.tokens import check_tokens
from launch.run.validate import check_data


@dataclass(frozen=True)
class Start:
    """The prepared text and the number of steps already done.

    ``text`` and ``settings`` are fingerprints of the text in ``tokens`` and of the configuration. ``folder``
    is the run folder; None if the first rank still has to create it.
    """

    tokens: Prepared
    text: str
    settings: str
    step: Whole
    folder: Path | None = None

    def to_argument(self) -> str:
        """Return the start as an argument for a worker's command line."""
        return json.dumps(asdict(self), default=str)

    @staticmethod
    def from_argument(text: str) -> Start:
        """Parse what :meth:`to_argument` returned."""
        return parse_record(text, Start, "the start of the run")

    def verify(self, config: Config) -> None:
        """Raise ``ValueError`` unless this is the start of ``config`` and its text has not changed."""
        require(
            self.settings == fingerprint(config),
            f"the settings in {self.folder} changed while the run was starting: start it again",
        )
        require(
            self.text == self.tokens.fingerprint(),
            f"the text in {self.tokens} changed while the run was starting: start it again",
        )


def make_start(config: Config, world: int, folder: Path | None = None) -> Start:
    """Prepare the text if it is missing, and check everything that depends on it.

    ``world`` is the number of processes, and ``folder`` is the run folder if it exists already. Raises
    ``ValueError`` for a mistake of the user.
    """
    tokens = prepare_text(config.data)
    check_tokens(tokens)
    check_data(config, tokens)
    state = check_resume_data(config, tokens, folder)
    if state is None:
        check_initial(config, tokens)
    step = state.step if state else 0
    if step < config.train.steps:
        check_space(config, world, folder)
    return Start(tokens, tokens.fingerprint(), fingerprint(config), step, folder)


def fingerprint(config: Config) -> str:
    """Return a hash of the settings."""
    return sha256(config_text(config).encode()).hexdigest()[:16]

"""The configuration of `caat pretrain` and Hydra's help, without training."""

from __future__ import annotations

import sys
from itertools import pairwise

import hydra
from omegaconf import DictConfig, OmegaConf

from conf.checks import require
from conf.reading.from_file import take_file
from conf.reading.options import search_path
from launch.run.compose import compose

SHOW_FLAGS = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"}
SHOW_FLAGS |= {"--shell-completion", "-sc"}
# Of no use without one of those.
FLAGS = SHOW_FLAGS | {"--resolve", "--package", "-p"}


def show(argv: list[str]) -> int:
    """Print what ``argv``, which has one of `SHOW_FLAGS`, asks for, and return the exit status.

    `--cfg job` is ours: what would be trained, with all that is taken over from checkpoints and experiments.
    Raises ``ValueError`` for a mistake in its settings.
    """
    if (job := _settings_of_job(argv)) is not None:
        print(OmegaConf.to_yaml(OmegaConf.structured(compose(job))), end="")
        return 0

    files, _ = take_file(argv)
    require(not files, f"{' '.join(files)} is shown with --cfg job: Hydra itself knows nothing of it")

    def train(_: DictConfig) -> None:
        raise AssertionError("Hydra is to show something, not to run it")

    # hydra.main reads the command line of the process.
    sys.argv = ["caat pretrain", *argv, *search_path()]
    hydra.main(config_path="pkg://conf", config_name="config", version_base="1.3")(train)()
    return 0


def _settings_of_job(argv: list[str]) -> list[str] | None:
    """What comes with `--cfg job`, if that is all that is asked."""
    # Ours is always resolved.
    given = [text for text in argv if text != "--resolve"]
    words = [word for text in given for word in (text.split("=", 1) if text.startswith("--cfg=") else [text])]
    for number, pair in enumerate(pairwise(words)):
        if pair in (("--cfg", "job"), ("-c", "job")):
            rest = words[:number] + words[number + 2 :]
            return None if any(text.startswith("-") for text in rest) else rest
    return None

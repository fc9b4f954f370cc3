"""Prints the configuration of `caat pretrain` or Hydra's help, without training."""

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
# The added flags are valid only with a show flag.
FLAGS = SHOW_FLAGS | {"--resolve", "--package", "-p"}


def show(argv: list[str]) -> int:
    """Print what the show flag in ``argv`` asks for and return the exit status.

    We handle `--cfg job` ourselves, to show what would be trained, including what comes from checkpoints and
    experiments. Raises ``ValueError`` for a mistake in its settings.
    """
    if (job := _settings_of_job(argv)) is not None:
        print(OmegaConf.to_yaml(OmegaConf.structured(compose(job))), end="")
        return 0

    files, _ = take_file(argv)
    require(not files, f"{' '.join(files)} works only with --cfg job: Hydra itself does not know it")

    def train(_: DictConfig) -> None:
        raise AssertionError("Hydra should show something, not run it")

    # hydra.main reads the command line of the process.
    sys.argv = ["caat pretrain", *argv, *search_path()]
    hydra.main(config_path="pkg://conf", config_name="config", version_base="1.3")(train)()
    return 0


def _settings_of_job(argv: list[str]) -> list[str] | None:
    """Return the settings next to `--cfg job`; None if it is missing or another flag is given."""
    # Our output is always resolved.
    given = [text for text in argv if text != "--resolve"]
    words = [word for text in given for word in (text.split("=", 1) if text.startswith("--cfg=") else [text])]
    for number, pair in enumerate(pairwise(words)):
        if pair in (("--cfg", "job"), ("-c", "job")):
            rest = words[:number] + words[number + 2 :]
            return None if any(text.startswith("-") for text in rest) else rest
    return None

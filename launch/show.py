"""What Hydra itself shows for `caat pretrain`: help and the configuration, without training."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

SHOW_FLAGS = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"}
SHOW_FLAGS |= {"--shell-completion", "-sc"}
# Of no use without one of those.
FLAGS = SHOW_FLAGS | {"--resolve", "--package", "-p"}


def show(argv: list[str]) -> int:
    """Hand ``argv``, which has one of `SHOW_FLAGS`, to Hydra, and return the exit status."""

    def train(_: DictConfig) -> None:
        raise AssertionError("Hydra is to show something, not to run it")

    # hydra.main reads the command line of the process.
    sys.argv = ["caat pretrain", *argv]
    hydra.main(config_path="pkg://conf", config_name="config", version_base="1.3")(train)()
    return 0

"""Settings as fields: descriptions are inherited with a field, and no object shares a list with another."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from conf.field import descriptions, setting
from conf.reading.settings import settings_of


@dataclass
class Base:
    size: int = setting(4, "Number of blocks.")
    folder: str = setting("???", "Folder to read.")
    ratios: list[float] = setting([1.0], "Ratios to measure.")
    plain: int = 1


@dataclass
class Derived(Base):
    size: int = 8
    ratios: list[float] = setting([0.5])
    folder: str = setting("here", "Folder to write.")


def test_a_changed_default_keeps_the_description():
    assert descriptions(Base) == {
        "size": "Number of blocks.",
        "folder": "Folder to read.",
        "ratios": "Ratios to measure.",
    }
    shown = {name: (each.default, each.description) for name, each in settings_of(Derived).items()}
    assert shown == {
        "size": (8, "Number of blocks."),
        "ratios": ([0.5], "Ratios to measure."),
        "folder": ("here", "Folder to write."),
        "plain": (1, ""),
    }


def test_every_object_has_its_own_list():
    one, other = Base(), Base()
    one.ratios.append(0.5)
    assert other.ratios == Base().ratios == [1.0]


def test_omegaconf_knows_what_is_missing_and_which_types_are_wanted():
    config = OmegaConf.structured(Base)
    assert OmegaConf.is_missing(config, "folder") and config.ratios == [1.0]
    with pytest.raises(MissingMandatoryValue):
        OmegaConf.to_object(config)
    with pytest.raises(ValueError, match="many"):
        config.size = "many"

"""YAML is read as OmegaConf reads it."""

from __future__ import annotations

import pytest
import yaml
from omegaconf import OmegaConf

from conf.reading.yaml_values import read, read_as_typed, read_file

NUMBERS = "1 -1 +1 010 0x1F 0b11 1_000 1:30 1.5 1. .5 1e3 1E3 1e-3 1e+3 1.5e3 1.e3 1.5e-3 .5e3 .5e+3 1_0e3 "
NUMBERS += "1__0e3 -1e3 1e 1e- e3 1.0.0 .inf -.inf 1:30.5 1e3x 0e0 08 1,5"
OTHERS = "true yes On null ~ text 2024-01-01 2024-01-01T00:00:00 '1e3' [1e3,a] 1gbit ${x} \\${x}"


@pytest.mark.parametrize(
    "text", [*NUMBERS.split(" "), *OTHERS.split(" "), "", "{a: 1e3, b: [1e-3, ~]}", "{1: 1e3}"]
)
def test_a_value_is_what_omegaconf_makes_of_it(text):
    loaded = OmegaConf.to_container(OmegaConf.create(f"value: {text or '~'}"))
    found = read(f"value: {text or '~'}")
    assert repr(found) == repr(loaded)


@pytest.mark.parametrize("text", ["{a: 1, a: 2}", "a: 1\nb: {c: 1, c: 1}", "[1", "!!python/name:os.system"])
def test_what_omegaconf_does_not_read(text):
    with pytest.raises(yaml.YAMLError):
        OmegaConf.create(text)
    with pytest.raises(yaml.YAMLError):
        read(text)


def test_a_file_as_it_was_typed(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("name: 1.10\nlr: 1e-3\n")
    assert read_file(path) == {"name": 1.1, "lr": 1e-3}
    assert read_file(path, as_typed=True) == read_as_typed(path.read_text()) == {"name": "1.10", "lr": "1e-3"}
    path.write_text("name: " + "1" * 5000)
    with pytest.raises(ValueError, match="is not YAML"):
        read_file(path)

"""constraints.txt, used by `make`: it pins every requirement of pyproject.toml, for any torch."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
# The Makefile pins torch. megatron-core is only for `caat bench peers`, and no target installs it.
ASKED = [
    requirement
    for text in PROJECT["dependencies"] + [text for extra in OPTIONAL.values() for text in extra]
    if (requirement := Requirement(text)).name not in ("caat", "torch", "megatron-core")
]


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    """Versions by name. The file must contain only names and versions."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    matches = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert all(matches), lines
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


@pytest.mark.parametrize("requirement", ASKED, ids=str)
def test_what_is_asked_for_has_a_version_that_will_do(requirement, pinned):
    name = canonicalize_name(requirement.name)
    assert name in pinned, f"{name} is not in constraints.txt: run make constraints"
    assert requirement.specifier.contains(pinned[name])


def test_it_is_the_same_for_torch_with_and_without_cuda(pinned):
    assert not [name for name in pinned if re.match(r"torch$|triton|pytorch-|nvidia-|cuda-", name)]


def test_every_extra_that_a_target_installs_is_there():
    extras = set(re.findall(r"/with-([a-z]+)", (ROOT / "Makefile").read_text()))
    assert extras and extras <= OPTIONAL.keys()


def test_the_hosted_workflow_runs_every_supported_python():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    tested = set(re.findall(r'"(3\.\d+)"', text))
    supported = SpecifierSet(PROJECT["requires-python"])
    assert tested == {f"3.{minor}" for minor in range(20) if f"3.{minor}" in supported}

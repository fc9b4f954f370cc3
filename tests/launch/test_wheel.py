"""An installed wheel works without the checkout, and importing caat does nothing else."""

from __future__ import annotations

import shutil
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest

from tests.launch.test_runs import command, losses

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_a_wheel_works_elsewhere(tmp_path, monkeypatch):
    """Build the wheel from the tree, install it into another environment, run it in an empty folder."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    # Build from a copy: setuptools leaves a build folder in the tree and reuses files of an old one.
    tree = tmp_path / "tree"
    unwanted = shutil.ignore_patterns(".*", "build", "outputs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=unwanted)
    command(
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(tree),
        cwd=tmp_path,
    )
    (wheel,) = tmp_path.glob("caat-*.whl")
    venv.create(tmp_path / "other", with_pip=True)
    python = tmp_path / "other/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    # The other environment uses our dependencies but not our checkout: Python searches the path named in
    # a .pth file for packages, but does not read .pth files there, such as that of the editable install.
    (site,) = (tmp_path / "other/lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(str(Path(np.__file__).parents[1]) + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    caat = str(tmp_path / "other/bin/caat")
    assert {each.name for each in site.iterdir() if "caat" in each.name} == {"caat", "caat-0.1.0.dist-info"}
    assert not any((site / name).exists() for name in ("conf", "eval", "launch", "layers", "slurm"))
    names = "import caat.layers.linear, caat.conf.schema; print(caat.layers.__file__)"
    where = subprocess.run([python, "-c", names], cwd=empty, capture_output=True, text=True)
    assert str(site / "caat" / "layers") in where.stdout
    assert "-m caat.launch.pretrain" in (site / "caat/slurm/train.sh").read_text()
    shown = subprocess.run([caat, "--help"], cwd=empty, capture_output=True, text=True, check=True)
    assert "pretrain" in shown.stdout
    settings = ["model=tiny", "train.steps=1", "optim.warmup_steps=0", "train.eval_sequences=4"]
    result = subprocess.run(
        [caat, "pretrain", *settings, "launch.processes=2", "run.dir=run"],
        cwd=empty,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert len(losses(empty / "run")) == 1


def test_imports_have_no_side_effects():
    code = "import sys, layers, caat, caat.parallel.mesh; print('deepspeed' in sys.modules)"
    assert command("-c", code, cwd=ROOT).strip() == "False"

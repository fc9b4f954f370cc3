"""Puts everything into one package in the wheel: `layers` of the source tree is `caat.layers` there.

A wheel that installs `conf` and `eval` as packages of their own would collide with those of others. The
source tree, and an editable install of it, keep the names.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

PACKAGES = ("conf", "eval", "launch", "layers", "slurm")
OURS = "|".join(PACKAGES)
# Statements, and the modules that scripts and messages name.
RENAMED = [
    (re.compile(rf"^(\s*)from ({OURS})(?=[. ])", re.MULTILINE), r"\1from caat.\2"),
    (re.compile(rf"^(\s*)import ({OURS})\.", re.MULTILINE), r"\1import caat.\2."),
    (re.compile(rf"^(\s*)import ({OURS})$", re.MULTILINE), r"\1from caat import \2"),
    (re.compile(rf"-m ({OURS})\."), r"-m caat.\1."),
]


class BuildInOnePackage(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        built = Path(self.build_lib)
        for name in PACKAGES:
            (built / name).rename(built / "caat" / name)
        for path in built.glob("caat/**/*"):
            if path.suffix in (".py", ".sh", ".sbatch", ".yaml"):
                text = path.read_text(encoding="utf-8")
                for old, new in RENAMED:
                    text = old.sub(new, text)
                path.write_text(text, encoding="utf-8")


class WheelOfOnePackage(bdist_wheel):
    def egg2dist(self, egginfo_path: str, distinfo_path: str) -> None:
        super().egg2dist(egginfo_path, distinfo_path)
        Path(distinfo_path, "top_level.txt").write_text("caat\n")


setup(cmdclass={"build_py": BuildInOnePackage, "bdist_wheel": WheelOfOnePackage})

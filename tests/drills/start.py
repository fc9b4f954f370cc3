"""`caat pretrain` whose processes run `tests.drills.faulty` instead of `launch.pretrain`."""

from __future__ import annotations

import sys

from launch import pretrain
from launch.run import local
from tests.drills.faulty import install_if_told

if __name__ == "__main__":
    if "launch.processes=1" in sys.argv:
        install_if_told()
    run_workers = local.run_workers
    local.run_workers = lambda module, *rest: run_workers("tests.drills.faulty", *rest)
    sys.exit(pretrain.main())

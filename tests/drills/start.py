"""`caat pretrain` whose processes run `tests.drills.faulty` instead of `launch.pretrain`."""

from __future__ import annotations

import sys

from launch import pretrain

if __name__ == "__main__":
    run_workers = pretrain.run_workers
    pretrain.run_workers = lambda module, *rest: run_workers("tests.drills.faulty", *rest)
    sys.exit(pretrain.main())

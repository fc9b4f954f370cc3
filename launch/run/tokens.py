"""Prepared tokens are verified before a run starts: all files once, by those who are there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from caat.data.shards import check_content


def check_tokens(folder: Path) -> None:
    """Hold the files of ``folder`` against their checksums; under torchrun each rank of a node its share.

    Raises ``ValueError`` if one is damaged. Says so if there are no checksums.
    """
    rank, world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not check_content(folder, rank, world) and os.environ.get("RANK", "0") == "0":
        print(
            f"note: {folder} was prepared before its files had checksums: their sizes and token numbers are "
            "checked, their content is not. Prepare it again to have them",
            file=sys.stderr,
        )

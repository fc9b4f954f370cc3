"""Verifies prepared tokens before a run starts; the ranks of a node share the files."""

from __future__ import annotations

import sys

from caat.data.prepared import Prepared
from caat.data.shards import check_content
from caat.parallel.world import is_first_rank, local_rank, local_world_size


def check_tokens(tokens: Prepared) -> None:
    """Check the files of ``tokens`` against their checksums; under torchrun, this rank's share of them.

    Raises ``ValueError`` if one is damaged. Prints a note if there are no checksums.
    """
    # A rank that does not know its local world size checks all files.
    shares = local_world_size(unknown=1)
    for folder in tokens.folders.values():
        if not check_content(folder, local_rank(), shares) and is_first_rank():
            print(
                f"note: {folder} was prepared before its files had checksums: their sizes and token ids are "
                "checked, their content is not. Prepare it again to add checksums",
                file=sys.stderr,
            )

"""Read wandb's offline files. wandb has dropped its reader in Python but still ships the record type."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline run. The log is LevelDB's: 32 KiB blocks, records may span several."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, pending = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        pending += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(pending)
            pending = b""


def values(items: Any) -> dict[str, Any]:
    """Return the values of a history, a configuration or a summary by dotted key."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def wandb_history(path: Path) -> list[dict[str, Any]]:
    """Return the logged rows."""
    return [values(r.history.item) for r in wandb_records(path) if r.HasField("history")]

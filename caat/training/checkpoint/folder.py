"""The folder of checkpoints: its content, the `latest` pointer, and retention. All updates are atomic."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from caat.storage.durable import sync_folder, write_bytes
from caat.training.checkpoint.state import read_state
from conf.checks import check_path, require

NAME = re.compile(r"step-(\d{8,})")
LATEST = "latest"
# The last one, and the one before it in case the last one is damaged.
KEPT_BY_TIME = 2


def checkpoint_name(step: int) -> str:
    return f"step-{step:08}"


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint folder."""
    match = NAME.fullmatch(folder.name)
    assert match, folder
    return int(match[1])


def whole_checkpoints(checkpoints: Path) -> list[Path]:
    """Return all checkpoints, newest first. A folder gets its name only once it is complete."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if path.is_dir() and NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def latest(checkpoints: Path) -> Path | None:
    """Return the checkpoint that `latest` names, if it exists."""
    folder = named_latest(checkpoints)
    return folder if folder is not None and folder.is_dir() else None


def named_latest(checkpoints: Path) -> Path | None:
    """Return the path that `latest` names, which may not exist; None if it names no checkpoint."""
    try:
        name = (checkpoints / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return checkpoints / name if NAME.fullmatch(name) else None


def find(path: str | Path, setting: str = "checkpoint") -> Path:
    """Return the checkpoint that ``path`` refers to: itself, or the latest of a run or checkpoints folder.

    Raises ``ValueError``, naming the ``setting``, if there is none.
    """
    check_path(str(path), setting)
    start = Path(path).expanduser()
    require(start.is_dir(), f"{setting}={path} is not a folder: give a run folder or a checkpoint in it")
    if (start / "config.json").is_file():
        return start
    for checkpoints in (start, start / "checkpoints"):
        if whole := [folder for folder in (latest(checkpoints), *whole_checkpoints(checkpoints)) if folder]:
            return whole[0]
        require(not (checkpoints / LATEST).is_file(), f"{checkpoints / LATEST} names no existing checkpoint")
    raise ValueError(f"{setting}={path} holds no checkpoint: no config.json, and no step-... folder in it")


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill, then rename it to the new or empty ``folder``; remove it on error.

    Raises ``ValueError`` if another process writes to ``folder`` now.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Hidden names, which no folder of the user has: leftovers of a killed conversion are removed.
    aside, lock = folder.with_name(f".{folder.name}.tmp"), FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another process writes to {folder}: wait for it, or choose another folder"
        ) from None
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        sync_folder(aside)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        # While it is locked: nobody waits for the lock, and nothing but the folder shall remain.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
    sync_folder(folder.parent)


def publish(aside: Path, folder: Path) -> None:
    """Give the durable folder ``aside`` its name, then point `latest` at it."""
    sync_folder(aside)
    if folder.exists():
        _remove(folder)
    aside.rename(folder)
    sync_folder(folder.parent)
    point_latest_at(folder)


def point_latest_at(folder: Path) -> None:
    """Point `latest` at ``folder``, atomically: a reader finds the old name or the new one."""
    pointer = folder.parent / f".{LATEST}.tmp"
    write_bytes(pointer, f"{folder.name}\n".encode())
    pointer.rename(folder.parent / LATEST)
    sync_folder(folder.parent)


def retain(checkpoints: Path, keep: int | None, keep_every: int, *, spare: Collection[Path] = ()) -> None:
    """Delete all but the last ``keep`` (0: delete none) and the multiples of ``keep_every`` steps.

    If ``keep`` is None, delete only checkpoints saved by time, and keep the last two of these. The checkpoint
    that `latest` names and those in ``spare`` are always kept.
    """
    if keep == 0:
        return
    whole = whole_checkpoints(checkpoints)
    old = [path for path in whole if _saved_by_time(path)][KEPT_BY_TIME:] if keep is None else whole[keep:]
    kept = {latest(checkpoints), *spare}
    for folder in old:
        if folder not in kept and not (keep_every and step_of(folder) % keep_every == 0):
            _remove(folder)


def roll_back(checkpoints: Path, to: Path) -> list[Path]:
    """Make ``to`` the latest, rename later checkpoints and remove leftovers of killed saves.

    Returns the new paths of the later ones, which are not deleted so that the user can examine them.
    """
    if latest(checkpoints) != to:
        point_latest_at(to)
    aside = []
    for folder in whole_checkpoints(checkpoints):
        if step_of(folder) > step_of(to):
            place = folder.with_name(f"{folder.name}.aside")
            if place.exists():
                shutil.rmtree(place)
            aside.append(folder.rename(place))
    clear_leftovers(checkpoints)
    return aside


def clear_leftovers(checkpoints: Path) -> None:
    """Remove :func:`leftovers`.

    Files that cannot be removed yet, such as open files on NFS, are left for the next time.
    """
    for folder in leftovers(checkpoints):
        shutil.rmtree(folder, ignore_errors=True)


def leftovers(checkpoints: Path) -> list[Path]:
    """Return the folders that killed saves and deletions have left behind."""
    return [folder for pattern in ("step-*.tmp", "step-*.deleted") for folder in checkpoints.glob(pattern)]


def _saved_by_time(folder: Path) -> bool:
    try:
        return read_state(folder)[0].by_time
    except ValueError:
        return False  # unreadable: do not delete it


def _remove(folder: Path) -> None:
    """Rename before deleting, so that a killed deletion leaves no incomplete checkpoint."""
    doomed = folder.with_name(f"{folder.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    # Failing to delete an old checkpoint must not make the save fail.
    with suppress(OSError):
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)

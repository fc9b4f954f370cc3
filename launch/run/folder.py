"""The folder of one run: its configuration and environment, written before anything else."""

from __future__ import annotations

import atexit
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import caat
from caat.runs.status import write_status
from caat.training.checkpoint.after import After
from conf.checks import require
from conf.reading.saved import save_config
from conf.schema import Config
from launch.run.resume import continues

PACKAGES = (
    "caat",
    "torch",
    "deepspeed",
    "hydra-core",
    "omegaconf",
    "sentencepiece",
    "tokenizers",
    "datasets",
    "safetensors",
    "wandb",
    "numpy",
)


def open_run_folder(config: Config, *, queued: bool = False) -> Path:
    """Create a new run's folder, or reopen the one that ``resume`` continues; claim it as ``starting``.

    A run that is only ``queued`` keeps the status of its last start. Raises ``ValueError`` if that fails or
    if another job has claimed the folder.
    """
    if continues(config):
        folder = Path(str(config.run.dir)).expanduser()
        claim(folder)
        with _writing(folder):
            reopen_run_folder(config, folder)
    else:
        folder = create_run_folder(config)
        claim(folder)
    if not queued:
        write_status(folder, "starting")
    return folder


def create_run_folder(config: Config) -> Path:
    """Create the folder of a new run, with ``config.yaml`` and ``environment.json``, and return its path.

    The path is ``run.dir``, or ``outputs/<date>-<time>-<model>-n<N>-r<ratio>-s<seed>`` with a number
    appended if that is taken. Two runs that start at once get different folders.

    Raises ``ValueError`` if the folder cannot be created, or if ``run.dir`` is not empty.
    """
    folder = _given_folder(config.run.dir) if config.run.dir else _new_folder(config)
    with _writing(folder):
        try:
            save_config(config, folder / "config.yaml")
        except FileExistsError as error:
            raise ValueError(f"run.dir={folder} was just taken by another run: give another one") from error
        _write_environment(folder / "environment.json")
    return folder


def reopen_run_folder(config: Config, folder: Path) -> Path:
    """Continue in the folder of an earlier run and save ``config`` as its configuration.

    The environment of each start is kept: ``environment-2.json`` and so on. The final figures of an earlier,
    shorter run are removed. Raises ``ValueError`` if a folder has the name of a file that the run writes.
    """
    aside, final = folder / "config.yaml.tmp", [folder / name for name in ("summary.json", "loss.png")]
    for path in (aside, *final, *(folder / name for name in ("metrics.jsonl", "status.json"))):
        require(not path.is_dir(), f"{path} is a folder, where a run keeps a file: move it away")
    aside.unlink(missing_ok=True)
    save_config(config, aside)
    aside.rename(folder / "config.yaml")
    for path in final:
        path.unlink(missing_ok=True)
    numbered = (folder / f"environment-{number}.json" for number in count(2))
    _write_environment(next(path for path in numbered if not path.exists()))
    return folder


def leave_finished(config: Config, folder: Path | None = None) -> None:
    """Mark a run that has done all its steps as finished, and do or print what is left to do.

    The run may have been killed just before it could do so. ``folder`` is claimed already; without it, this
    claims ``run.dir``. Raises ``ValueError`` if another job is still writing the final figures.
    """
    if folder is None:
        folder = Path(str(config.run.dir)).expanduser()
        claim(folder)
    write_status(folder, "finished")
    print(f"nothing to do: all train.steps={config.train.steps} steps are done")
    after = After(config.checkpoint.after, folder / "checkpoints")
    after.start_again()
    after.finish(print)
    if not (folder / "summary.json").is_file():
        print(
            f"the run ended before it wrote its final figures: caat evaluate checkpoint={folder} measures "
            f"the model, and caat report {folder} shows what was recorded"
        )


def describe_environment() -> dict[str, Any]:
    """Return what a reader needs to repeat the run. Omits environment variables: they may hold secrets."""
    source = Path(str(caat.__file__)).parents[1]
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "folder": str(Path.cwd()),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        # The checkout that caat runs from, if any, else that of the project using it.
        "git": _git(source, top=True) or _git(Path.cwd()),
    }


def claim(folder: Path) -> None:
    """Lock the run folder against other jobs until this process ends, however it ends."""
    lock = FileLock(folder / ".lock", is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another job is using run.dir={folder}: wait until it ends, or give another folder"
        ) from None
    except OSError as error:
        raise ValueError(f"run.dir={folder} cannot be written ({error.strerror})") from error
    except NotImplementedError:
        return  # some clusters' file systems have no locks
    # Also keeps the lock from being garbage-collected.
    atexit.register(lock.release)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = error.strerror or error
        raise ValueError(f"{folder} cannot be written ({problem}): make room, or give run.dir=...") from error


def _write_environment(path: Path) -> None:
    path.write_text(json.dumps(describe_environment(), indent=2) + "\n", encoding="utf-8")


def _given_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"run.dir={name} cannot be created ({error.strerror}): give another one") from error
    if any(folder.iterdir()):
        raise ValueError(f"run.dir={name} exists and is not empty: give a new folder, or leave run.dir out")
    return folder


def in_a_name(text: str) -> str:
    """Return ``text`` as a part of a folder's name, without separators such as "/", "=" and ","."""
    return re.sub(r"[^\w.+-]+", "-", text)


def _new_folder(config: Config) -> Path:
    ratios = "-".join(f"{ratio:g}" for ratio in config.sync.schedule.values())
    stem = (
        f"{datetime.now():%Y-%m-%d-%H%M%S}-{in_a_name(config.model.name)}-n{config.parallel.tensor}"
        f"-r{ratios}-s{config.seed}"
    )
    for number in count(1):
        folder = Path("outputs", stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True, exist_ok=False)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise ValueError(f"{folder} cannot be created ({error.strerror}): give run.dir=...") from error
    raise AssertionError("count() does not end")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(folder: Path, top: bool = False) -> dict[str, Any] | None:
    """Return the revision of the checkout that contains ``folder``, and whether it is dirty.

    ``top``: only if ``folder`` is the checkout's root.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        # Git prints paths as bytes, in any encoding.
        return os.fsdecode(
            subprocess.run(command, capture_output=True, check=True, timeout=20).stdout
        ).strip()

    try:
        root = git("rev-parse", "--show-toplevel")
        if top and Path(root).resolve() != folder.resolve():
            return None
        dirty = bool(git("status", "--porcelain"))
        return {"checkout": root, "revision": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return None

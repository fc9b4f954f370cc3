"""A trained model for the verbs: its checkpoint is checked before any process starts, then loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from caat.data.tokenizer import Tokenizer, load_tokenizer
from caat.parallel.world import launched, world_size
from caat.training.checkpoint.architecture import Architecture, read_architecture
from caat.training.checkpoint.folder import find
from caat.training.checkpoint.tokenizer import checked_tokenizer
from conf.checks import require
from conf.processes import ProcessesConfig
from launch.command.processes import run_workers
from launch.command.results import result_file

if TYPE_CHECKING:
    from layers.gpt import GPT


def processes_of(launch: ProcessesConfig) -> int:
    """Return how many processes the verb runs on: the launcher's, or those to be started."""
    return world_size() if launched() else launch.processes


def find_trained(
    checkpoint: str, launch: ProcessesConfig, replicas: bool = False
) -> tuple[Path, Architecture]:
    """Return the folder that ``checkpoint`` refers to, and its architecture.

    Raises ``ValueError`` if there is none, or if the processes do not divide its shards. With ``replicas``,
    several replicas of the model may share the processes, and the number is not checked.
    """
    folder, world = find(checkpoint), processes_of(launch)
    architecture = read_architecture(folder)
    shards = architecture.shards
    require(
        shards % world == 0 or replicas,
        f"{world} processes do not divide the checkpoint's {shards} shards: "
        "choose a launch.processes that does",
    )
    return folder, architecture


def tokenizer_of(folder: Path, architecture: Architecture) -> Tokenizer:
    """Return the checkpoint's tokenizer; raises ``ValueError`` if missing, damaged or another model's."""
    path = checked_tokenizer(folder)
    tokenizer = load_tokenizer(path)
    pieces, known = tokenizer.vocab_size(), architecture.model.vocab_size
    require(
        pieces <= known,
        f"{path} has {pieces:,} pieces, but the model knows {known:,}: it belongs to another model. Restore "
        "the one that this model was trained with",
    )
    return tokenizer


def ran_in_processes(module: str, argv: Sequence[str], launch: ProcessesConfig) -> bool:
    """Run ``module`` in ``launch.processes`` processes, if that is more than one, and wait for them.

    Returns False if this process has to do the work. Exits with the status of the first process to fail.
    """
    if launched() or launch.processes == 1:
        return False
    if status := run_workers(module, argv, launch.processes):
        raise SystemExit(status)
    return True


@contextmanager
def on_mesh(folder: Path, launch: ProcessesConfig, precision: str) -> Iterator[GPT]:
    """Load the checkpoint's model on all processes; end their process group when the context exits."""
    from caat.supervision.device import stop_process_group
    from eval.open import open_model

    yield open_model(folder, launch.device, precision, launch.backend)
    if processes_of(launch) > 1:
        stop_process_group()


def run_of(folder: Path) -> Path | None:
    """Return the run folder of the checkpoint ``folder``; None if no run wrote it."""
    checkpoints = folder.resolve().parent
    return checkpoints.parent if checkpoints.name == "checkpoints" else None


def result_path(folder: Path, out: str | None, name: str) -> Path:
    """Return ``out``, or the path of ``name`` in the run folder of checkpoint ``folder``, else in ``folder``.

    Raises ``ValueError`` if it cannot be written, or if ``out`` is a file of the checkpoint.
    """
    path = result_file(out or (run_of(folder) or folder) / name)
    # An earlier result may lie among the files of the checkpoint.
    replaces = path.exists() and path.parent.samefile(folder) and path.name != name
    require(not replaces, f"out={out} is a file of the checkpoint: give another name")
    return path

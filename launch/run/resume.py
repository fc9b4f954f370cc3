"""Decides where a run resumes from and checks it, before any process starts. Reads JSON files only."""

from __future__ import annotations

import os
from pathlib import Path

from caat.data.prepared import Prepared
from caat.parallel.world import local_world_size, may_restart, restarted, world_size
from caat.runs.status import read_earlier_status
from caat.training.checkpoint.architecture import Architecture, read_architecture
from caat.training.checkpoint.folder import find, named_latest, whole_checkpoints
from caat.training.checkpoint.state import State, read_optimizer, read_state
from conf.checks import require
from conf.reading.yaml_values import read_file
from conf.schema import Config
from launch.run.agreement import check_model, check_private


def check_restartable(config: Config) -> None:
    """Raise ``ValueError`` if torchrun may restart processes that could not find their run again."""
    require(
        config.run.dir is not None or not may_restart(),
        "torchrun --max-restarts needs run.dir=...: restarted processes continue in that folder",
    )
    one_node = local_world_size(unknown=1) == world_size()
    require(
        config.resume == "auto" or _begins_again(config) or not may_restart() or one_node,
        "torchrun --max-restarts on several nodes needs resume=auto: each node counts restarts by itself",
    )
    require(
        config.launch.max_restarts == 0,
        f"launch.max_restarts={config.launch.max_restarts} is for processes that caat starts, but torchrun "
        "started these: give torchrun --max-restarts (MAX_RESTARTS in the batch scripts) instead",
    )


def where_it_began(config: Config) -> str | None:
    """Return the path that the run in ``run.dir`` began from, if it has not saved a checkpoint of its own.

    ``resume=auto`` and a repeated command begin there again.
    """
    run = given_folder(config)
    if run is None or not (run / "config.yaml").is_file() or whole_checkpoints(run / "checkpoints"):
        return None
    began = (read_file(run / "config.yaml") or {}).get("resume")
    return began if isinstance(began, str) and began not in ("never", "auto") else None


def _begins_again(config: Config) -> bool:
    return config.resume not in ("never", "auto") and config.resume == where_it_began(config)


def continues(config: Config) -> bool:
    """Return whether the run continues in a folder of an earlier start, ``run.dir``."""
    run = given_folder(config)
    if run is None or not (run / "config.yaml").is_file():
        return False
    if restarted() or config.resume == "auto" or _begins_again(config):
        return True
    from_path = Path(config.resume).expanduser().resolve()
    return config.resume != "never" and run.resolve() in (from_path, *from_path.parents)


def checkpoints_to_try(config: Config, folder: Path | None = None) -> list[Path]:
    """Return the checkpoints to resume from, best first; empty: train from the start.

    The first one may be missing if `latest` names it; the reader then treats it as damaged. Raises
    ``ValueError`` if the path of ``resume`` has none, or if a run has saved some and none is left.
    """
    run = folder or given_folder(config)
    if run is not None and (restarted() or config.resume == "auto" or _begins_again(config)):
        found = _of_run(run)
        if found or config.resume in ("auto", "never"):
            return found
    if config.resume == "never":
        return []
    require(
        Path(config.resume).expanduser().is_dir(),
        f"resume={config.resume} is not a folder: give never, auto, a run folder or a checkpoint in it",
    )
    chosen = find(config.resume, "resume")
    own = run is not None and chosen.parent.resolve() == (run / "checkpoints").resolve()
    require(
        not own or chosen.name in [each.name for each in whole_checkpoints(chosen.parent)],
        f"resume={config.resume} lies with the checkpoints of run.dir={run}, but has another name: rename it "
        "to step- and its step, such as step-00000200, or give a new run.dir=...",
    )
    given = Path(config.resume).expanduser()
    return [chosen] if chosen == given else _from_latest(chosen.parent)


def check_resume(config: Config, folder: Path | None = None) -> State | None:
    """Return the state that the run would resume from, if any; raise ``ValueError`` if it cannot.

    The contents of large files are not read here: the workers verify them together.
    """
    problem = ""
    candidates = checkpoints_to_try(config, folder)
    for checkpoint in candidates:
        try:
            state, architecture = read_state(checkpoint)[0], read_architecture(checkpoint)
            optimizer = read_optimizer(checkpoint).name
        except ValueError as error:
            require(config.checkpoint.on_damage == "previous", f"{error} (checkpoint.on_damage=stop)")
            problem = problem or str(error)
            continue
        _check_architecture(config, architecture, checkpoint, state.step)
        _check_state(config, state, checkpoint)
        require(
            optimizer == config.optim.name,
            f"optim.name={config.optim.name}, but {checkpoint} holds the state of {optimizer}: give "
            f"optim.name={optimizer}, or start a new run from its weights with initialize={checkpoint}",
        )
        return state
    own = "Restore a good one, or give a new run.dir=... to train from the start"
    path = "Give another checkpoint, or leave resume out to train from the start"
    remedy = own if config.resume in ("auto", "never") else path
    require(not candidates, f"no checkpoint to resume from is intact: {problem}. {remedy}")
    return None


def check_resume_data(config: Config, tokens: Prepared, folder: Path | None = None) -> State | None:
    """Do :func:`check_resume`, and check that the state was trained on the prepared ``tokens``."""
    state = check_resume(config, folder)
    if state is None:
        return None
    require(
        state.data in (tokens.fingerprint(), tokens.fingerprint(checksums=False)),
        f"the checkpoint to resume from was trained with a different text{', mixture' * tokens.mixed} or "
        f"tokenizer than {tokens}, where its position has no meaning: give the data settings that it was "
        "trained with",
    )
    return state


def _check_architecture(config: Config, found: Architecture, checkpoint: Path, step: int) -> None:
    check_model(config, found, checkpoint, "start a new run")
    ratio = config.sync.ratio_of(step)
    of_step = f" is {ratio} in step {step}" if len(config.sync.schedule) > 1 else ""
    require(
        ratio == found.ratio,
        f"sync.ratio={config.sync.ratio}{of_step}, but {checkpoint} was trained at {found.ratio}, which is "
        f"another function: give sync.ratio={found.ratio} up to that step, or start a new run from its "
        "weights with initialize=... instead of resume",
    )
    # At ratio 1 every shard count computes the same function.
    if ratio < 1:
        check_private(config, found, checkpoint)


def _check_state(config: Config, state: State, checkpoint: Path) -> None:
    for name, ours, theirs in (
        ("train.sequence", config.train.sequence, state.sequence),
        ("seed", config.seed, state.seed),
    ):
        require(
            ours == theirs,
            f"{name}={ours}, but {checkpoint} was trained with {theirs}: its position in the data counts "
            f"sequences of that length in the order of that seed. Give {name}={theirs}",
        )
    require(
        state.step < config.train.steps or config.resume == "auto" or restarted(),
        f"{checkpoint} has done {state.step} steps, and train.steps={config.train.steps}: give more steps",
    )


def _of_run(run: Path) -> list[Path]:
    """Return :func:`_from_latest`; raise ``ValueError`` if the run has saved some and all are gone."""
    checkpoints = run / "checkpoints"
    remedy = "restore its checkpoints, or give a new run.dir=... to train from the start"
    require(
        checkpoints.is_dir() or not os.path.lexists(checkpoints),
        f"{checkpoints} does not lead to a folder ({checkpoints.resolve()}): mount its target, {remedy}",
    )
    found, status = _from_latest(checkpoints), read_earlier_status(run)
    require(
        bool(found) or status not in ("stopped", "finished"),
        f"run.dir={run} is {status}, so it was saved, but {checkpoints} holds no checkpoint: {remedy}",
    )
    return found


def _from_latest(checkpoints: Path) -> list[Path]:
    """Return what `latest` names, then older ones; if that is missing or unset, all others."""
    whole, newest = whole_checkpoints(checkpoints), named_latest(checkpoints)
    if newest is None:
        return whole
    return whole[whole.index(newest) :] if newest in whole else [newest, *whole]


def given_folder(config: Config) -> Path | None:
    return None if config.run.dir is None else Path(config.run.dir).expanduser()

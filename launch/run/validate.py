"""Finds mistakes in a run before its processes start, beyond the schema's own rules."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from caat.data.marks import BLOCK, COUNTS
from caat.data.prepared import Prepared, check_given, find_prepared, given_tokenizer
from caat.data.shards import TokenShards, read_index, read_unigram, sequence_count
from caat.data.tokenizer import load_tokenizer
from caat.planning.layouts import check_schedules, layout_of
from conf.checks import require
from conf.reading.settings import typed
from conf.schema import CheckpointConfig, Config
from launch.command.available import installed, wandb_login
from launch.run.initial import check_initial
from launch.run.joining import check_joining
from launch.run.resume import check_resume, continues


def validate(config: Config, world: int) -> None:
    """Raise ``ValueError`` for any mistake that can be found before ``world`` processes start."""
    config.check_layout(world)
    check_schedules(config, layout_of(config, world))
    tokens = find_prepared(config.data)
    if tokens is not None:
        check_data(config, tokens)
    elif tokenizer := given_tokenizer(config.data):
        _check_vocabulary(config, load_tokenizer(tokenizer).vocab_size(), f"the tokenizer {tokenizer}")
    else:
        _check_vocabulary(config, config.data.vocab_size, f"data.vocab_size={config.data.vocab_size}")
    if check_resume(config) is None:
        check_initial(config, tokens)
    _check_tracker(config)
    _check_compiler(config)
    if config.eval.every:
        from eval.quality.tasks import find_tasks

        find_tasks(config.eval.tasks).check(config.model.sequence)
    _check_run_folder(config)
    _check_keep_every(config.checkpoint)
    _check_after(config.checkpoint.after)
    check_joining(config)


def check_device(config: Config) -> None:
    """Raise ``ValueError`` unless each process started here can use the requested device."""
    c = config.launch
    if c.device == "cuda" or c.backend == "nccl":
        # Imported late: importing torch takes seconds.
        from caat.supervision.device import choose_device

        choose_device(c.device, 0, c.processes, c.backend)


def check_data(config: Config, tokens: Prepared) -> None:
    """Raise ``ValueError`` unless the prepared ``tokens`` fit the model and sequence length."""
    for folder in tokens.folders.values():
        _check_folder(config, folder)


def _check_folder(config: Config, folder: Path) -> None:
    index = read_index(folder)
    _check_vocabulary(config, index.vocab_size, f"the tokenizer of {folder}")
    # initialize= takes over the checkpoint's tokenizer, and check_initial compares it with the text's.
    check_given(config.data, folder, tokenizer=config.initialize is None)
    sequence = config.train.sequence
    for split in index.splits:
        tokens = index.tokens(split)
        require(
            tokens > sequence,
            f"train.sequence={sequence} is too long for the {split} split of {folder}, which has {tokens:,} "
            "tokens, and the last is only a target: lower train.sequence or give more text"
            + ("" if split == "train" else f" (or raise data.{split})"),
        )
        if index.rows != "text":
            _check_counted(config, folder, split)
    # Only the final figures need the counts: check them before training, not after.
    counts = read_unigram(folder, index.vocab_size)
    require(
        counts.sum() == index.tokens("train"),
        f"{folder / 'unigram.npy'} does not match the token count in index.json: remove the folder {folder} "
        "and prepare it again",
    )


def _check_counted(config: Config, folder: Path, split: str) -> None:
    """Raise ``ValueError`` unless some target of ``split`` counts in the sequences that a run reads of it."""
    shards, sequence = TokenShards(folder, split), config.train.sequence
    count = sequence_count(shards, sequence)
    if split == "validation":
        count = min(count, config.train.eval_sequences)
    targets = count * sequence
    blocks = (shards.marks(1 + first, min(BLOCK, targets - first)) for first in range(0, targets, BLOCK))
    require(
        any((block & COUNTS).any() for block in blocks),
        f"no target counts in the {count:,} {split} sequences of {folder}, so they have no loss: raise "
        + ("train.eval_sequences or " if split == "validation" else "")
        + "train.sequence, or give more rows",
    )


def _check_compiler(config: Config) -> None:
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++"]
    require(
        not config.train.compile or any(map(shutil.which, compilers)),
        f"train.compile=true needs a C++ compiler, but none was found ({', '.join(compilers)}): install g++, "
        "or leave train.compile out",
    )


def _check_vocabulary(config: Config, pieces: int, what: str) -> None:
    size = config.model.vocab_size
    require(
        pieces <= size,
        f"{what} has {pieces:,} pieces, but the model has only model.vocab_size={size}: "
        f"give model.vocab_size={pieces} or a smaller tokenizer",
    )


def _check_tracker(config: Config) -> None:
    """Raise ``ValueError`` unless the chosen trackers can be used here."""
    require(
        not config.tracker.tensorboard or installed("tensorboard"),
        "tracker=tensorboard needs TensorBoard: pip install tensorboard, or leave it out",
    )
    require(
        config.tracker.wandb != "online" or wandb_login(),
        "tracker=wandb needs an account: run `wandb login`, or give tracker=wandb_offline and run "
        "`wandb sync` later",
    )


def _check_keep_every(c: CheckpointConfig) -> None:
    """Raise ``ValueError`` if `checkpoint.keep_every` has no effect: nothing is saved then, or all stays."""
    kept = f"checkpoint.keep_every={c.keep_every}"
    require(
        not c.keep_every or c.keep != 0,
        f"{kept} has no effect: checkpoint.keep=0 keeps all. Leave one of them out",
    )
    require(
        not c.keep_every or (c.every > 0 and c.keep_every % c.every == 0),
        f"{kept} keeps only what is saved: set checkpoint.every to it or to a divisor of it",
    )


def _check_after(command: Sequence[str]) -> None:
    """Raise ``ValueError`` unless the program of `checkpoint.after` is there."""
    program = command[0] if command else None
    require(
        program is None or shutil.which(program) is not None,
        f"checkpoint.after={typed(list(command))}: there is no program {program} on this machine: give "
        "one that exists, or its path",
    )


def _check_run_folder(config: Config) -> None:
    """Raise ``ValueError`` unless the run folder is writable and is new, empty or to be continued."""
    name = config.run.dir
    folder = Path(name or "outputs").expanduser()
    what = f"run.dir={name}" if name else f"the folder of runs {folder.absolute()}"
    at = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    require(at.is_dir(), f"{what} cannot be created, {at} is a file: give another run.dir=...")
    require(
        os.access(at, os.W_OK | os.X_OK),
        f"{what} cannot be created, {at} is not writable: give another run.dir=...",
    )
    require(
        not name or at != folder.absolute() or not any(at.iterdir()) or continues(config),
        f"{what} exists and is not empty"
        + (
            ": give resume=auto to continue the run in it, "
            if (folder / "config.yaml").is_file()
            else ", and holds no run (no config.yaml): "
        )
        + "give a new folder, or leave run.dir out to create one",
    )

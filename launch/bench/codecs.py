"""`caat bench codecs`: the speed of the codecs of gradients on a core or GPU, with bytes and error."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from caat.compression import make_codec
from caat.compression.codec import Shapes
from caat.data.loader import Loader
from caat.data.prepared import find_prepared
from caat.supervision.device import choose_device
from caat.training.checkpoint.folder import find
from conf.bench import BenchCodecsConfig
from conf.checks import require
from conf.reading.saved import read_config
from conf.reading.verb import load_verb
from eval.open import open_model
from eval.speed.codecs import gradient_like, gradient_of, measure
from launch.bench.memory import check_memory
from launch.bench.plots import plot_codecs
from launch.bench.report import Column, Report
from launch.command.trained import run_of

# Peak memory in messages, besides one for each codec: a copy, and two in float64, which measure the error.
MESSAGES = 8


def main(argv: list[str]) -> None:
    config = load_verb(BenchCodecsConfig, argv)
    if config.checkpoint is None:
        needed = (MESSAGES + len(config.codecs)) * 4 * config.numbers
        check_memory(f"numbers={config.numbers}", needed, "give fewer numbers")
    codecs = {name: make_codec(name) for name in config.codecs}
    report = Report(
        "codecs",
        config.out,
        {
            "mode": Column("codec"),
            "encode_gbps": Column("encode GB/s"),
            "encode_spread": Column("±"),
            "memcpy_share": Column("of memcpy"),
            "decode_gbps": Column("decode GB/s"),
            "decode_spread": Column("±"),
            "relative_bytes": Column("bytes"),
            "error": Column("error"),
        },
    )
    device = choose_device(config.device, 0, 1, prefix="")
    if config.checkpoint is None:
        message, what = gradient_like(config.numbers).to(device), "random numbers with heavy tails"
    else:
        folder = find(config.checkpoint)
        message, shapes = _gradient(folder, config.device)
        what = f"numbers of a gradient at {folder}"
        for codec in codecs.values():
            codec.shapes = shapes
    rows, copied = measure(codecs, message, config.rounds)
    for row in rows:
        report.add(**row, memcpy_gbps=copied)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "one core"
    report.finish(f"{len(message):,} {what} on {where}, copied at {copied:.3g} GB/s", plot_codecs)


def _gradient(folder: Path, device: str) -> tuple[Tensor, Shapes]:
    """Return a checkpoint's gradient [n] on its run's first micro-batch, and the shapes of its parameters.

    Raises ``ValueError`` if no run wrote it, or if the run's tokens are not where it prepared them.
    """
    run = run_of(folder)
    require(
        run is not None and (run / "config.yaml").is_file(),
        f"checkpoint={folder} is not in a run folder, whose config.yaml names its text: give a run folder",
    )
    assert run is not None
    config = read_config(run / "config.yaml")
    tokens = find_prepared(config.data)
    require(
        tokens is not None,
        f"the tokens of {run} are not in {config.data.dir}: prepare them with `caat tokenize`, in the folder "
        "where the run was started",
    )
    assert tokens is not None
    train = config.train
    sizes = (train.sequence, train.micro_batch, train.micro_batch)
    masked = train.documents == "masked"
    loader = Loader(tokens.open("train"), *sizes, config.seed, shares=tokens.shares, masked=masked)
    model = open_model(folder, device, "fp32")
    where = model.norm.weight.device
    return gradient_of(model, [tuple(part.to(where) for part in batch) for batch in loader.step()])

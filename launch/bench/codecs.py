"""`caat bench codecs`: the speed of the codecs of gradients on a core or GPU, with bytes and error."""

from __future__ import annotations

import torch

from caat.compression import make_codec
from caat.supervision.device import choose_device
from conf.bench import BenchCodecsConfig
from conf.reading.verb import load_verb
from eval.speed.codecs import gradient_like, measure
from launch.bench.plots import plot_codecs
from launch.bench.report import Column, Report


def main(argv: list[str]) -> None:
    config = load_verb(BenchCodecsConfig, argv)
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
    device = choose_device(config.device, 0, 1)
    rows, copied = measure(codecs, gradient_like(config.numbers).to(device), config.rounds)
    for row in rows:
        report.add(**row, memcpy_gbps=copied)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "one core"
    report.finish(
        f"{config.numbers:,} random numbers with heavy tails on {where}, copied at {copied:.3g} GB/s",
        plot_codecs,
    )

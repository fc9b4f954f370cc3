"""The rows of `caat bench data`, on two processes of this machine."""

from __future__ import annotations

import pytest

from caat.parallel.mesh import Mesh
from conf.bench import BenchDataConfig, BenchIslandsConfig
from eval.speed.data import data_rows
from eval.speed.islands import island_rows
from layers.gpt import GPT
from layers.weights import gpt_weights
from tests.models import SMALL

CODECS = ["none", "bfloat16", "int8", "int4", "topk:0.1"]


def powersgd_bytes(rank: int) -> int:
    """PowerSGD's factors of matrices that are at least twice as large; other weights as they are."""
    numbers = 0
    for weight in gpt_weights(SMALL):
        rows, columns = sum(shape[0] for shape in weight.shapes), weight.shapes[0][1:]
        whole = rows * (columns[0] if columns else 1)
        factors = rank * (rows + columns[0]) if columns else whole
        numbers += factors if 2 * factors < whole else whole
    return 4 * numbers


def test_rows(ranks):
    """They take the same steps (or data_rows raises), and each sends what its messages hold."""
    config = BenchDataConfig(model=SMALL, codecs=CODECS, micro_batch=2, rounds=2)
    rows = ranks(2).run(data_rows, config)[0]
    by = {row["mode"]: row for row in rows}
    peers = ["deepspeed", "deepspeed, bf16", "ddp, powersgd:4"]
    assert list(by) == ["nothing sent", *peers, *CODECS]
    assert by["nothing sent"]["bytes"] == by["nothing sent"]["exposed_ms"] == 0
    plain = by["deepspeed"]
    assert plain["speed_up"] == 1 and plain["bytes_gradients"] == pytest.approx(
        2 * plain["bytes_weights"], rel=1e-3
    )
    shares = {"deepspeed, bf16": (1 / 2, 1), "none": (1 / 2, 1), "bfloat16": (1 / 4, 1 / 2)}
    shares |= {"int8": (65 / 512, 65 / 256), "int4": (33 / 512, 33 / 256), "topk:0.1": (0.1, 65 / 256)}
    for mode, (gradients, weights) in shares.items():
        # Blocks of 256 numbers, and replicas that own a few numbers more than others.
        assert by[mode]["bytes_gradients"] == pytest.approx(gradients * plain["bytes_gradients"], rel=0.02)
        assert by[mode]["bytes_weights"] == pytest.approx(weights * plain["bytes_weights"], rel=0.02)
    assert by["ddp, powersgd:4"]["bytes"] == powersgd_bytes(4)
    for mode, row in by.items():
        assert row["bytes"] == row["bytes_gradients"] + row["bytes_weights"] and row["step_ms"] > 0
        assert (row["encode_ms"] is None) == (mode not in CODECS)
        assert (row["error"] is None) == (mode not in CODECS[1:])
    assert [by[codec]["weights_codec"] for codec in CODECS] == ["none", "bfloat16", "int8", "int4", "int8"]
    # Levels are 127 / 7 times as far apart, and the loss of a 10th of a vector is below its length.
    assert by["int4"]["error"] / by["int8"]["error"] == pytest.approx(127 / 7, rel=0.1)
    assert 2**-10 < by["bfloat16"]["error"] < 2**-8 < by["int4"]["error"] < by["topk:0.1"]["error"] < 1


def test_rows_of_islands(ranks):
    config = BenchIslandsConfig(
        model=SMALL, codecs=["none", "int8"], micro_batch=2, every=4, island_delay=1, rounds=2
    )
    rows = ranks(2).run(island_rows, config)[0]
    by = {row["mode"]: row for row in rows}
    synchronous = ["deepspeed", "synchronous, none", "synchronous, int8"]
    assert list(by) == [
        "nothing sent", *synchronous, "torchft, diloco", "diloco, none", "diloco, int8",
        "diloco, int8, delay 1", "diloco, int8, eager", "slamb, int8", "dcs3gd, int8",
    ]  # fmt: skip
    numbers = sum(weight.numel() for weight in GPT(SMALL, Mesh(1), 1.0).parameters())
    # The mean loss and skips of each step, by a ring of two, and the norms of one exchange.
    small = 4 * 24
    assert by["nothing sent"]["bytes"] == small
    assert by["diloco, none"]["bytes"] == pytest.approx(4 * numbers + small, abs=64)
    # The change of all weights, by a ring of two.
    assert by["torchft, diloco"]["bytes"] == 4 * numbers
    assert by["diloco, int8, delay 1"]["bytes"] == by["diloco, int8"]["bytes"]
    assert by["diloco, int8, eager"]["bytes"] == by["diloco, int8"]["bytes"]
    # All weights in each of four steps; a tenth of the momentum, and norm weights, in each.
    assert by["dcs3gd, int8"]["bytes"] == pytest.approx(4 * by["diloco, int8"]["bytes"], rel=0.01)
    momenta = by["slamb, int8"]["bytes"] - by["diloco, int8"]["bytes"]
    assert momenta == pytest.approx(4 * 4 * numbers / 10, rel=0.1)
    # Gradients and weights at each of four steps: an all-reduce and a gather.
    assert by["deepspeed"]["bytes"] == pytest.approx(4 * (8 + 4) / 2 * numbers, rel=0.01)
    assert by["diloco, int8"]["bytes"] < 0.3 * by["diloco, none"]["bytes"]
    assert all(row["step_ms"] > 0 for row in rows) and by["deepspeed"]["speed_up"] == 1

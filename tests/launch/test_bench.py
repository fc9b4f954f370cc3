"""The benchmarks: their rows and output files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conf.bench import (
    BenchPredictConfig,
)
from conf.reading.saved import save_config
from conf.reading.verb import load_verb
from conf.units import delay_seconds, rate_bytes
from eval.open import open_model
from eval.speed.namespaces import shaped_hosts
from launch.bench import main
from launch.run.compose import compose
from tests.data.conftest import write_shards
from tests.trained import MODEL, write_checkpoint

SMALL = [
    "layers=1",
    "hidden=64",
    "ffn=96",
    "heads=2",
    "sequence=32",
    "batch=2",
    "rounds=2",
    "ratios=[1.0,0.5]",
]
COMMAND = [sys.executable, "-m", "launch.cli", "bench"]
MAY_NAMESPACE = os.geteuid() == 0 and shutil.which("ip") is not None and shutil.which("tc") is not None
namespaces = pytest.mark.skipif(not MAY_NAMESPACE, reason="network namespaces need root, ip and tc")


def bench(tmp_path: Path, *arguments: str, plot: bool = True) -> list[dict]:
    result = subprocess.run(
        [*COMMAND, *arguments, f"out={tmp_path / 'result.json'}"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == str(tmp_path / "result.json")
    assert not plot or (tmp_path / "result.png").stat().st_size > 1000
    return json.loads((tmp_path / "result.json").read_text())["rows"]


def check_rows(rows: list[dict], size: int = 4, others: tuple[str, ...] = ()) -> None:
    """1 layer, 64 tokens of 64 channels of 4 bytes: 2 sums of 16 KiB per direction; half at ratio 0.5.

    ``others`` sends 8-bit integers with their scales.
    """
    by = {(row["mode"], row["ratio"]): row for row in rows}
    assert {mode for mode, _ in by} == {"none", "full", "partial", "overlap", *others}
    for (mode, ratio), row in by.items():
        token = 64 * ratio + 4 if mode in others else 64 * ratio * size
        expected = 0 if mode == "none" else 2 * 64 * token
        assert row["bytes_forward"] == row["bytes_backward"] == expected, (mode, ratio)
        assert row["step_ms"] > 0 and row["spread_ms"] >= 0 and row["predicted_ms"] > 0
    assert by["full", 1.0]["bytes_ends"] == 64 * 64 * size


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 2)])
def test_step(tmp_path, precision, size):
    rows = bench(tmp_path, "step", *SMALL, f"precision={precision}", "wire_dtypes=[int8]")
    check_rows(rows, size, ("overlap, int8",))


@pytest.mark.slow
@namespaces
def test_link(tmp_path):
    rows = bench(tmp_path, "link", *SMALL, "rate=100mbit,1gbit", "wire_dtypes=[int8]")
    for rate in ("100mbit", "1gbit"):
        check_rows([row for row in rows if row["rate"] == rate], others=("overlap, int8",))


@pytest.mark.slow
@namespaces
def test_data(tmp_path):
    """A step takes at least as long as the link needs for its bytes."""
    small = ["model.layers=1", "model.hidden=128", "model.ffn=256", "model.heads=4", "model.kv_heads=4"]
    small += ["model.vocab_size=512", "model.sequence=64", "micro_batch=1", "rounds=2"]
    rows = bench(tmp_path, "data", *small, "rate=20mbit,1gbit", "codecs=[int8,topk:0.01,index=bitmap]")
    modes = [
        "nothing sent",
        "deepspeed",
        "deepspeed, bf16",
        "ddp, powersgd:4",
        "int8",
        "topk:0.01,index=bitmap",
    ]
    assert [(row["rate"], row["mode"]) for row in rows] == [
        (r, m) for r in ("20mbit", "1gbit") for m in modes
    ]
    burst = 2 * 128e3
    for row in rows[: len(modes)]:
        assert row["step_ms"] >= 8e3 * (row["bytes"] - burst) / 20e6, row["mode"]


@pytest.mark.slow
@namespaces
def test_cache(tmp_path):
    """A checkpoint on a text; fetching all takes at least as long as the link needs for its bytes."""
    folder = write_checkpoint(tmp_path / "run", 2, 0.5)
    (tmp_path / "text.txt").write_text(
        "A cache is not a store of what was seen, but of keys and values. " * 40
    )
    where = [f"checkpoint={folder}", f"text={tmp_path / 'text.txt'}", "sequence=50", "rate=20mbit"]
    rows = bench(tmp_path, "cache", *where, "rounds=2", "keeps=[4,200]", "sparq=8")
    assert [row["mode"] for row in rows[:4]] == ["device", "full fetch", "host, keep 4", "host, keep 200"]
    assert rows[1]["token_ms"] >= 8e3 * (rows[1]["bytes"] - 2 * 128e3) / 20e6
    assert rows[3]["error"] == 0 < rows[2]["error"] and len(rows) == 6
    for wrong, says in (
        ("batch=900", "900 x 54 are needed"),
        ("sequence=65", "longer than the model's context"),
    ):
        with pytest.raises(ValueError, match=says):
            main(["cache", *where, "rounds=2", wrong, f"out={tmp_path / 'x.json'}"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", [["cache.place=host", "cache.keep=8"], pytest.param(["rate=1gbit"], marks=namespaces)]
)
def test_generate(tmp_path, where):
    rows = bench(tmp_path, "generate", *SMALL, "new_tokens=3", *where, plot=False)
    by = {(row["mode"], row["ratio"]): row for row in rows}
    assert {mode for mode, _ in by} == {"none", "full", "partial", "overlap"}
    for (mode, ratio), row in by.items():
        assert row["bytes_forward"] == (0 if mode == "none" else int(2 * 64 * 64 * 4 * ratio)), (mode, ratio)
        assert row["prefill_ms"] > 0 and row["decode_tokens_per_second"] > 0
    assert by["full", 1.0]["exposed_share"] == 1


@pytest.mark.slow
def test_peers(tmp_path):
    """The peers compute the same loss (or the command fails); megatron-core is included if installed."""
    rows = bench(tmp_path, "peers", *SMALL, "heads=4")
    peers = {"torch parallelize_module", "DeepSpeed AutoTP", "DeepSpeed-Domino"}
    assert {"none", "overlap", "halves"} | peers <= {row["mode"] for row in rows}


@pytest.mark.slow
def test_profile(tmp_path):
    """Our linears save less for backward than Megatron's, and copy nothing except the messages."""
    rows = {(row["mode"], row["ratio"]): row for row in bench(tmp_path, "profile", *SMALL, plot=False)}
    full, ours = rows["full", 1.0], rows["overlap", 0.5]
    assert 0 < ours["saved_bytes"] < full["saved_bytes"]
    assert ours["gemm_ms"] > 0 and ours["copies"] > 0


def test_predict(tmp_path):
    rows = bench(tmp_path, "predict", "model=7b", "parallel.tensor=8", "link=100gbit", "ratios=[0.5]")
    times = {row["mode"]: row["step_ms"] for row in rows}
    assert times["none"] < times["overlap"] < times["partial"] < times["full"]
    rows = bench(tmp_path, "predict", "model=7b", "parallel.tensor=8", "ratios=[0.5]", "wire_dtype=int8")
    sent = {row["mode"]: row["bytes_forward"] for row in rows}
    of_layers = 2 * 32 * 4096
    rows = bench(tmp_path, "predict", "model=7b", "parallel.tensor=8", "parallel.processes=1", "ratios=[0.5]")
    assert {row["bytes_forward"] for row in rows} == {0}
    # Without a model given, the default is a real model on the network of real GPUs.
    default = BenchPredictConfig().hardware
    assert (load_verb(BenchPredictConfig, []).model.name, default.link, default.peak) == (
        "7b",
        "400gbit",
        989,
    )
    assert (sent["full"], sent["overlap"]) == (of_layers * 4096 * 2, of_layers * (2048 + 4))


def test_codecs(tmp_path):
    """A codec may have options, which commas separate from it."""
    specs = ["none", "bfloat16", "int8", "sign", "topk:0.125", "index=bitmap", "values=int8"]
    rows = bench(tmp_path, "codecs", "numbers=4096", "rounds=2", f"codecs=[{','.join(specs)}]")
    assert [row["mode"] for row in rows] == [*specs[:4], "topk:0.125,index=bitmap,values=int8"]
    scaled = 256 + 4
    whole = 4096 * 4
    sizes = [whole, whole / 2, 16 * scaled, 16 * 36, 4096 / 8 + 2 * scaled]
    assert [row["relative_bytes"] for row in rows] == [size / whole for size in sizes]
    by = {row["mode"]: row["error"] for row in rows}
    # Rounding to 8 bits of mantissa: at most 2^-9 of each number, and a uniform share of that on average.
    assert by["none"] == 0 and 2**-10 < by["bfloat16"] < 2**-9 < by["int8"] < by["sign"] < 1
    for row in rows[1:]:
        assert min(row["encode_gbps"], row["decode_gbps"], row["memcpy_share"], row["memcpy_gbps"]) > 0
        assert row["encode_best_gbps"] >= row["encode_gbps"] and row["encode_spread"] >= 0


def test_codecs_encode_the_gradient_of_a_run(tmp_path):
    """On the first micro-batch of its text; in this process, for the sake of time."""
    run = tmp_path / "run"
    write_checkpoint(run, 2, 0.5)
    tokens = write_shards(tmp_path / "tokens", [200], MODEL.vocab_size)
    settings = [f"data.path={tmp_path / 'tokens'}", "train.micro_batch=1", "train.sequence=64", "seed=5"]
    save_config(compose(settings), run / "config.yaml")
    main(["codecs", f"checkpoint={run}", "codecs=[topk:0.01]", "rounds=1", f"out={tmp_path / 'r.json'}"])
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    # 200 tokens are three sequences, of which the order of seed 5 begins with one.
    errors = []
    for first in (0, 64, 128):
        model = open_model(run / "checkpoints" / "step-00000001", "cpu", "fp32")
        text = torch.from_numpy(tokens[first : first + 65]).unsqueeze(0)
        model(text[:, :-1], text[:, 1:]).mean().backward()
        square = torch.cat([p.grad.view(-1) for p in model.parameters()]).double().square().sort().values
        errors.append(float((square[: -round(0.01 * len(square))].sum() / square.sum()).sqrt()))
    assert min(abs(error - row["error"]) for error in errors) < 1e-6
    (run / "config.yaml").unlink()
    with pytest.raises(ValueError, match="is not in a run folder, whose config"):
        main(["codecs", f"checkpoint={run}", f"out={tmp_path / 'other.json'}"])


def hosts_of(pid: int) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith(f"caat-{pid}-")]


@namespaces
@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_reach_each_other_at_the_rate_and_are_taken_away(hosts):
    with shaped_hosts(hosts, "100mbit", "0ms", "32kb") as made:
        for host in made:
            shaped = subprocess.run(
                ["tc", "-n", host.namespace, "qdisc", "show", "dev", host.interface],
                capture_output=True,
                text=True,
                check=True,
            )
            assert "rate 100Mbit" in shaped.stdout
        last = made[-1]
        address = (last.address, 5000)
        code = f"import socket; socket.create_server({address}).accept()[0].send(b'yes')"
        server = subprocess.Popen(last.command(sys.executable, "-c", code))
        code = (
            "import socket, time\n"
            "for _ in range(100):\n"
            "    try:\n"
            f"        print(socket.create_connection({address}, 1).recv(3)); break\n"
            "    except OSError:\n"
            "        time.sleep(0.1)\n"
        )
        heard = subprocess.run(
            made[0].command(sys.executable, "-c", code),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        server.wait(10)
        assert heard.stdout.strip() == "b'yes'"
    assert not hosts_of(os.getpid())


@pytest.mark.slow
@namespaces
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_benchmark_takes_its_hosts_away(tmp_path, number):
    process = subprocess.Popen(
        [*COMMAND, "link", "rounds=1000", f"out={tmp_path / 'never.json'}"],
        stderr=subprocess.PIPE,
        # A background job of a shell ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(300):
        if hosts_of(process.pid):
            break
        time.sleep(0.1)
    time.sleep(3)
    assert hosts_of(process.pid)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not hosts_of(process.pid) and not (tmp_path / "never.json").exists()


def test_units():
    assert rate_bytes("1gbit") == 1.25e8 and rate_bytes("200mbit") == 2.5e7
    assert delay_seconds("5us") == pytest.approx(5e-6) and delay_seconds("1ms") == pytest.approx(1e-3)

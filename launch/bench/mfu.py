"""`caat bench mfu`: the share of the device's peak that a training step in one process reaches, by shards."""

from __future__ import annotations

import time
from statistics import median

import torch
from rich.progress import track

from caat.parallel.mesh import Mesh
from caat.planning.costs import flops_per_token
from caat.supervision.device import PRECISIONS, choose_device
from caat.training.memory import memory_gib
from caat.training.peak import peak_tflops
from conf.bench import BenchMfuConfig
from conf.reading.verb import load_verb
from eval.speed.timing import Times
from launch.bench.report import Report
from layers.gpt import GPT
from layers.weights import initial_weights

WARM_UP = 3


def main(argv: list[str]) -> None:
    config = load_verb(BenchMfuConfig, argv)
    for shards in config.shards:
        config.model.check_shards(shards, "shards")
    device = choose_device(config.device, 0, 1, prefix="")
    peak = peak_tflops(device, config.peak_tflops)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    of_peak = f", peak {peak:g} TFLOP/s" if peak else ""
    report = Report("mfu", config.out)
    for shards in config.shards:
        seconds = _seconds(config, shards, device)
        tokens = config.micro_batch * config.model.sequence
        tflops = flops_per_token(config.model, config.model.sequence) * tokens / median(seconds) / 1e12
        report.add(
            shards=shards,
            ratio=config.ratio,
            step_ms=median(seconds) * 1e3,
            spread_ms=Times(seconds).spread * 1e3,
            fastest_ms=min(seconds) * 1e3,
            tokens_per_second=tokens / median(seconds),
            tflops=tflops,
            mfu=tflops / peak if peak else None,
            # On a CPU this would be the peak over all rows so far.
            memory_gib=memory_gib(device) if device.type == "cuda" else None,
        )
    report.finish(
        f"{config.model.name}, {config.micro_batch} x {config.model.sequence} tokens a step, "
        f"{config.precision}{', compiled' if config.compile else ''}, one process, {name}{of_peak}",
    )


def _seconds(config: BenchMfuConfig, shards: int, device: torch.device) -> list[float]:
    """Return the seconds of each step: forward, backward, AdamW."""
    dtype = PRECISIONS[config.precision]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    full = initial_weights(config.model, 1)
    model = GPT.empty(config.model, Mesh(shards), config.ratio, device=device, dtype=dtype).fill(full)
    if config.compile:
        torch.compiler.reset()  # dynamo gives up on functions that it has compiled for several models
        model.compile_cores()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    shape = (config.micro_batch, config.model.sequence + 1)
    text = torch.randint(config.model.vocab_size, shape, device=device)
    seconds = []
    for step in track(range(config.rounds + WARM_UP), f"{shards} shards", transient=True):
        started = time.perf_counter()
        model(text[:, :-1], text[:, 1:]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if step >= WARM_UP:
            seconds.append(time.perf_counter() - started)
    return seconds

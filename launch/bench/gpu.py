"""`caat bench gpu`: all that is worth measuring on one GPU, as one JSON and one page."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from caat.machine import available_cores, processor
from caat.supervision.device import choose_device
from conf.bench import BenchGpuConfig
from conf.reading.verb import load_verb
from launch.bench.gpu_parts import Part, parts_of
from launch.command.results import result_file, write_json

# A part that takes longer is stopped, so that the others are reached.
LIMIT_SECONDS = 150.0
# A part that is stopped may still write what it has.
GRACE_SECONDS = 10.0
# Lines of a part's output on the page: the largest table has fewer.
SHOWN_LINES = 40


@dataclass(frozen=True)
class Outcome:
    """``status`` 0: done. ``printed``: what the part wrote to the terminal; ``figures``: to its file."""

    part: Part
    status: int | str
    seconds: float
    printed: str
    figures: Any


def main(argv: list[str]) -> int:
    """Return 0 if all parts ran, else 1."""
    config = load_verb(BenchGpuConfig, argv)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "caat bench gpu needs a CUDA GPU, and torch finds none here: run it where `caat doctor` has one, "
            "or try it in small sizes with device=cpu"
        )
    out = result_file(config.out or f"outputs/bench-gpu-{datetime.now():%Y%m%d-%H%M%S}.json")
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    machine = _machine(choose_device(config.device, 0, 1, prefix=""))
    outcomes = []
    for outcome in _run(parts_of(config, folder), folder, time.monotonic() + 60 * config.minutes):
        outcomes.append(outcome)
        # After each part, so that an interruption loses only the last one.
        write_json(out, {"benchmark": "gpu", "machine": machine, "parts": list(map(_as_json, outcomes))})
        out.with_suffix(".md").write_text(page(machine, outcomes), encoding="utf-8")
    print(out.with_suffix(".md"))
    print(out)
    return int(any(outcome.status != 0 for outcome in outcomes))


def _run(parts: list[Part], folder: Path, deadline: float) -> Iterator[Outcome]:
    for number, part in enumerate(parts, 1):
        print(f"[{number}/{len(parts)}] {part.line()}", flush=True)
        left = deadline - time.monotonic()
        if left <= 0:
            yield Outcome(part, "not reached", 0.0, "", None)
            continue
        started = time.monotonic()
        status, printed = _run_command(part, min(LIMIT_SECONDS, left), folder / f"{part.name}.log")
        seconds = time.monotonic() - started
        print(f"        {_how(status)} after {seconds:.0f} s", flush=True)
        yield Outcome(part, status, seconds, printed, _figures(folder / part.name))


def _run_command(part: Part, seconds: float, log: Path) -> tuple[int | str, str]:
    """Run the part in a session of its own; return its exit status, and what it printed."""
    environment = os.environ | {"COLUMNS": "140", "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "caat", *part.command],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        status: int | str
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = f"stopped at its limit of {seconds:.0f} s"
        finally:
            _end(process)
    return status, log.read_text(errors="replace")


def _end(process: subprocess.Popen) -> None:
    """End what is left of the process and of those that it started."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _figures(path: Path) -> Any:
    """Return what a part wrote to a JSON file, or the records of its run; None if it is not whole."""
    file, records = path.with_name(f"{path.name}.json"), path / "metrics.jsonl"
    try:
        if file.is_file():
            return json.loads(file.read_text())
        # Without an incomplete last line, of a part that was stopped.
        lines = records.read_text().split("\n")[:-1] if records.is_file() else []
        return [json.loads(line) for line in lines] or None
    except json.JSONDecodeError:
        return None


def _machine(device: torch.device) -> dict[str, Any]:
    machine: dict[str, Any] = {
        "processor": processor(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "started": datetime.now().isoformat(timespec="seconds"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu": properties.name, "gpu_gib": properties.total_memory / 2**30}
        machine |= {"cuda": torch.version.cuda or torch.version.hip}
    return machine


def _as_json(outcome: Outcome) -> dict[str, Any]:
    part = outcome.part
    return {
        "name": part.name,
        "command": part.line(),
        "status": outcome.status,
        "seconds": outcome.seconds,
        "figures": outcome.figures,
    }


def page(machine: dict[str, Any], outcomes: list[Outcome]) -> str:
    """Return the page in Markdown: the machine, and each part's command and table."""
    lines = [f"# caat on {machine.get('gpu', 'a CPU, in small sizes')}", "", "| | |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {_text(value)} |" for name, value in machine.items()]
    for outcome in outcomes:
        part = outcome.part
        lines += ["", f"## {part.name}: {part.about}", "", f"    {part.line()}", ""]
        lines += [f"{_how(outcome.status)}, {outcome.seconds:.0f} s", "", "```text"]
        lines += [line.rstrip() for line in outcome.printed.strip().splitlines()[-SHOWN_LINES:]] + ["```"]
    return "\n".join(lines) + "\n"


def _how(status: int | str) -> str:
    if isinstance(status, str):
        return status
    return "done" if status == 0 else f"failed with status {status}"


def _text(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)

"""Measures all-reduces between ranks by size, and what they cost a core: ``python -m launch.doctor.link``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from caat.parallel.world import is_first_rank, local_rank, local_world_size, world_size
from caat.supervision.device import choose_device, start_process_group, stop_process_group
from conf.checks import require
from eval.speed.messages import measure_messages
from launch.command.processes import worker_environment

ROUNDS, SECONDS_EACH = 30, 1.5
PROCESSES = 2
TIMEOUT_SECONDS = 60


def measure_ranks(sizes: Sequence[int]) -> dict:
    """Return seconds by size in bytes, the rate and delay they imply, and the cost. Collective."""
    device = choose_device("auto", local_rank(), local_world_size(unknown=world_size()))
    start_process_group(device)
    rows = [{"bytes": size, "seconds": _seconds(size, device)} for size in sizes]
    result = {
        "processes": dist.get_world_size(),
        "backend": dist.get_backend(),
        "device": device.type,
        "messages": rows,
        **measure_messages(device).figures(),
        **fit(rows, dist.get_world_size()),
    }
    stop_process_group()
    return result


def measure_here(sizes: Sequence[int]) -> dict:
    """Measure the same between two processes started for it. Raises ``ValueError`` if they fail."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "link.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={PROCESSES}", "-m", f"{__package__}.link", str(out), *map(str, sizes)]
        env = os.environ | worker_environment(PROCESSES) | {"TORCH_CPP_LOG_LEVEL": "ERROR"}
        torchrun = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            lines = torchrun.communicate(timeout=TIMEOUT_SECONDS)[1].strip().splitlines()
        except BaseException as error:
            # terminate(), not kill(): torchrun has to end its workers.
            torchrun.terminate()
            torchrun.communicate()
            require(
                not isinstance(error, subprocess.TimeoutExpired),
                f"two processes took more than {TIMEOUT_SECONDS} s for a few messages: try again when this "
                "machine is idle, or give link=false",
            )
            raise
        why = lines[-1] if lines else f"status {torchrun.returncode}"
        require(torchrun.returncode == 0, f"two processes could not communicate ({why})")
        return json.loads(out.read_text())


def fit(rows: Sequence[dict], processes: int) -> dict[str, float]:
    """Return rate (bytes/s each way) and delay (s one way) of a ring that fits the largest and smallest.

    t(n) = 2 (P - 1) delay + 2 (P - 1) / P · n / rate, as in :mod:`caat.planning.prediction`.
    """
    small, large = rows[0], rows[-1]
    steps = 2 * (processes - 1)
    more = large["bytes"] - small["bytes"], large["seconds"] - small["seconds"]
    # Noise can make the smaller message the slower one: then attribute all of the time to the rate.
    per_byte = more[1] / more[0] if min(more) > 0 else large["seconds"] / large["bytes"]
    delay = max(0.0, small["seconds"] - small["bytes"] * per_byte) / steps
    return {"bytes_per_second": steps / processes / per_byte, "delay_seconds": delay}


def _seconds(size: int, device: torch.device) -> float:
    """Return the median of some rounds; all ranks stop after the same round."""
    message = torch.zeros(size // 4, device=device)
    seconds: list[float] = []
    begun = time.perf_counter()
    for number in range(ROUNDS + 2):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(message)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            seconds.append(time.perf_counter() - started)
        enough = torch.tensor(float(time.perf_counter() - begun > SECONDS_EACH), device=device)
        dist.all_reduce(enough, dist.ReduceOp.MAX)
        if enough.item() and seconds:
            break
    return median(seconds)


if __name__ == "__main__":
    measured = measure_ranks([int(size) for size in sys.argv[2:]])
    if is_first_rank():
        Path(sys.argv[1]).write_text(json.dumps(measured))

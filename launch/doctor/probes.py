"""The probes of `caat doctor`: each examines one part of the machine and names remedies."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

from caat.machine import available_cores, host_memory, processor
from launch.command.available import installed, wandb_login

GIB = 2**30
# With less than this, training is likely to fail.
LITTLE_DISK, LITTLE_SHARED = 20 * GIB, GIB
# Module, package, purpose, and how to install it.
OPTIONAL = (
    ("tensorboard", "tensorboard", "tracker=tensorboard", "pip install tensorboard"),
    ("wandb_workspaces", "wandb-workspaces", "caat dashboard", "pip install wandb-workspaces"),
    ("torchft", "torchft", "caat islands, islands.join", "pip install 'torchft>=0.2'"),
    ("lm_eval", "lm-eval", "caat evaluate", "pip install lm-eval"),
    ("transformers", "transformers", "Hugging Face models", "pip install 'transformers>=5.0'"),
    ("megatron", "megatron-core", "caat bench peers", "pip install megatron-core"),
)


@dataclass(frozen=True)
class Finding:
    """One line: ``state`` is good, note (works without) or bad (does not work)."""

    what: str
    state: str
    found: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Yield all findings except the link's; a probe that fails gives a finding too."""
    for probe in (_machine, _gpus, _backends, _packages, _optional, _trackers, _slurm, _network_tools, _disk):
        yield from guarded(probe, probe.__name__.strip("_").replace("_", " "))


def guarded(probe: Callable[[], Iterator[Finding]], what: str) -> Iterator[Finding]:
    """Yield the findings of ``probe``; if it raises, yield the error as a finding."""
    try:
        yield from probe()
    except Exception as error:
        yield Finding(what, "bad", f"could not be examined: {type(error).__name__}: {error}")


def _machine() -> Iterator[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    tested = ("3.11", "3.12")
    supported = ".".join(platform.python_version_tuple()[:2]) in tested
    remedy = "" if supported else f"caat is tested with Python {' and '.join(tested)}"
    yield Finding("Python", "good" if supported else "bad", found, remedy)
    yield Finding("CPU", "good", f"{available_cores()} cores, {processor()}")
    total, free = host_memory()
    yield Finding("memory", "good", f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB free")


def _gpus() -> Iterator[Finding]:
    import torch

    cuda = torch.version.cuda
    driver = shutil.which("nvidia-smi") is not None
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(number)
            bf16 = "bf16" if device.major >= 8 else "no fast bf16"
            memory = f"{device.total_memory / GIB:.0f} GiB"
            yield Finding(f"GPU {number}", "good", f"{device.name}, {memory}, {bf16}, CUDA {cuda}")
    elif driver and cuda is None:
        remedy = "install the CUDA build of torch"
        yield Finding(
            "GPU", "bad", f"there is an NVIDIA driver, but torch {torch.__version__} is for CPUs", remedy
        )
    elif driver:
        yield Finding(
            "GPU", "bad", f"torch (CUDA {cuda}) cannot use the driver", "see what nvidia-smi reports"
        )
    else:
        yield Finding("GPU", "note", f"none; torch {torch.__version__} trains on the CPU")


def _backends() -> Iterator[Finding]:
    import torch
    import torch.distributed as dist

    gloo = dist.is_gloo_available()
    yield Finding(
        "gloo", "good" if gloo else "bad", "available for CPUs" if gloo else "not in this build of torch"
    )
    if torch.cuda.is_available():
        nccl = dist.is_nccl_available()
        version = ".".join(map(str, torch.cuda.nccl.version())) if nccl else ""
        yield Finding("NCCL", "good" if nccl else "bad", version or "not in this build of torch")


def _packages() -> Iterator[Finding]:
    """Yield whether installed packages satisfy the lower bounds that the caat package declares."""
    good = []
    try:
        requirements = requires("caat") or []
    except PackageNotFoundError:
        yield Finding("caat", "note", "runs from its folder, requirements not known", "pip install -e .")
        return
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
        if match is None:
            continue
        name, lowest = match.groups()
        try:
            there = version(name)
        except PackageNotFoundError:
            yield Finding(name, "bad", "missing", f"pip install '{requirement}'")
            continue
        if _numbers(there) < _numbers(lowest):
            yield Finding(name, "bad", f"{there}, older than {lowest}", f"pip install '{requirement}'")
        else:
            good.append(f"{name} {there}")
    yield Finding("packages", "good", ", ".join(good))


def _optional() -> Iterator[Finding]:
    distributions = packages_distributions()
    for module, package, purpose, remedy in OPTIONAL:
        if installed(module):
            names = distributions.get(module, [])
            number = version(names[0]) if names else "version not known"
            yield Finding(package, "good", f"{number}, for {purpose}")
        else:
            yield Finding(package, "note", f"missing, for {purpose}", remedy)


def _trackers() -> Iterator[Finding]:
    if not installed("wandb"):
        yield Finding("wandb", "bad", "missing", "pip install wandb")
    elif wandb_login():
        yield Finding("wandb login", "good", "logged in")
    else:
        yield Finding("wandb login", "note", "none", "wandb login, or tracker=wandb_offline")


def _slurm() -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        yield Finding("Slurm", "note", "none", "without it: torchrun on each node")
        return
    asked = subprocess.run(
        ["sinfo", "--noheader", "--format=%P %D nodes %t"], capture_output=True, text=True, timeout=5
    )
    if asked.returncode == 0 and asked.stdout.strip():
        yield Finding(
            "Slurm", "good", "; ".join(" ".join(line.split()) for line in asked.stdout.splitlines())
        )
    else:
        why = (asked.stderr.strip().splitlines() or ["no partitions"])[-1]
        yield Finding(
            "Slurm", "note", f"installed, but does not answer: {why}", "is this a node of the cluster?"
        )


def _network_tools() -> Iterator[Finding]:
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        why = f"{' and '.join(missing)} missing" if missing else "not root"
        yield Finding("slow networks", "note", why, "caat bench link needs root, ip and tc (iproute2)")
    else:
        yield Finding("slow networks", "good", "root, ip and tc: caat bench link works")


def _disk() -> Iterator[Finding]:
    for name, little, why in (
        ("outputs", LITTLE_DISK, "checkpoints of a large model do not fit: give run.dir on another disk"),
        (
            "/dev/shm",
            LITTLE_SHARED,
            "NCCL and data workers need shared memory: in a container, --shm-size=8g",
        ),
    ):
        at = next(
            place for place in (Path(name).absolute(), *Path(name).absolute().parents) if place.exists()
        )
        free = shutil.disk_usage(at).free
        enough = free >= little
        yield Finding(name, "good" if enough else "note", f"{free / GIB:.1f} GiB free", "" if enough else why)


def _numbers(text: str) -> tuple[int, ...]:
    """Return a version as numbers, for comparison."""
    return tuple(int(number) for number in re.findall(r"\d+", text.split("+")[0])[:3])

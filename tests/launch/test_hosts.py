"""torchrun over two hosts: network namespaces with separate addresses, and a link that can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from eval.speed.namespaces import Host, shaped_hosts
from tests.drills.run import ROOT, STEPS, Run
from tests.paragraphs import PARAGRAPHS

MAY_NAMESPACE = os.geteuid() == 0 and shutil.which("ip") is not None and shutil.which("tc") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MAY_NAMESPACE, reason="network namespaces need root, ip and tc"),
]
# Each host has its own name, by which the watchdog distinguishes hosts.
NAMED = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"']


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    with shaped_hosts(2, "1gbit", "0ms", "256kb") as both:
        yield both


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Run:
    """The same run on one host, in two processes."""
    base = tmp_path_factory.mktemp("hosts")
    text = base / "own.txt"
    text.write_text("\n\n".join(PARAGRAPHS))
    run = Run(base / "reference", text)
    assert run.run() == 0, run.output
    return run


@contextmanager
def torchrun(hosts: list[Host], run: Run, *settings: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Start one process on each host; they are killed when the block is left."""
    processes = []
    for number, host in enumerate(hosts):
        launcher = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "run"]
        launcher += ["--rdzv-endpoint", f"{hosts[0].address}:29533", "--local-addr", host.address]
        # No host name resolves to the address, so torchrun cannot tell by it that this is the first host.
        launcher += ["--rdzv-conf", f"is_host={int(number == 0)}"]
        command = [sys.executable, "-m", "torch.distributed.run", *launcher]
        command += ["-m", "launch.pretrain", *run.settings, *settings]
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        environment["GLOO_SOCKET_IFNAME"] = host.interface
        processes.append(
            subprocess.Popen(
                host.command(*NAMED, f"host{number}", *command),
                cwd=run.folder.parent,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ended(run: Run, processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Return exit status and output by host."""
    ends = [(run.end(process), run.output) for process in processes]
    return [status for status, _ in ends], [output for _, output in ends]


def fork(reference: Run, name: str) -> Run:
    return Run(reference.folder.parent / name, reference.folder.parent / "own.txt")


def test_tensor_parallelism_across_hosts(hosts, reference):
    run = fork(reference, "tensor")
    with torchrun(hosts, run) as processes:
        statuses, printed = ended(run, processes)
    assert statuses == [0, 0], printed
    assert "4 shards on 2 processes, 1 replica" in "".join(printed)
    assert run.losses() == reference.losses()


def test_data_parallelism_across_hosts(hosts, reference):
    run = fork(reference, "replicas")
    with torchrun(hosts, run, "parallel.processes=1") as processes:
        statuses, printed = ended(run, processes)
    assert statuses == [0, 0], printed
    assert "4 shards on 1 process, 2 replicas" in "".join(printed)
    want, got = ([loss for _, loss in which.losses()] for which in (reference, run))
    assert len(got) == STEPS and got == pytest.approx(want, abs=2e-4)


def link(host: Host, state: str) -> None:
    subprocess.run(["ip", "-n", host.namespace, "link", "set", host.interface, state], check=True)


def test_a_cut_link_ends_the_run_on_both_sides_and_it_goes_on_later(hosts, reference):
    run = fork(reference, "cut")
    with torchrun(hosts, run, "launch.hang_seconds=30") as processes:
        assert run.until(lambda: run.steps_done() >= 7, processes[0])
        link(hosts[1], "down")
        statuses, printed = ended(run, processes)
    assert 0 not in statuses
    for here, there in ((0, 1), (1, 0)):
        lost = f"rank {there} on host{there} does not answer: frozen, or the network to it is down"
        assert f"no progress for 30 s; {lost}; rank {here} on host{here} waits" in printed[here], printed
    assert 0 < run.saved() < STEPS
    link(hosts[1], "up")
    with torchrun(hosts, run, "resume=auto") as processes:
        statuses, printed = ended(run, processes)
    assert statuses == [0, 0], printed
    assert "resumed from" in "".join(printed)
    assert run.losses() == reference.losses()
    assert run.checksums() == reference.checksums()

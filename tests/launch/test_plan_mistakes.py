"""Settings that `caat plan` refuses in one line."""

from __future__ import annotations

import pytest

from conf.units import memory_bytes
from launch import plan


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["topology=torus:8x8"], ["torus:8x8 is for 64 replicas, but there are 2"]),
        (["topology=torus"], ["topology=torus"]),
        (
            ["topology=mesh:1x2", "data_sync.topology=ring:2"],
            ["is short for", "or data_sync.topology=ring:2"],
        ),
        (["topology=mesh:1x2", "data_sync.codec=int8"], ["data_sync.codec=int8 does not go with"]),
    ],
)
def test_mistakes_about_a_network(argv, says, tmp_path):
    with pytest.raises(ValueError) as mistake:
        plan.main(["model=7b", "nodes=2", *argv, f"out={tmp_path / 'plan.json'}"])
    assert all(text in str(mistake.value) for text in says), mistake.value
    assert not list(tmp_path.iterdir())


def test_the_plan_does_not_overwrite_its_network(tmp_path):
    file = tmp_path / "network.json"
    file.write_text('{"nodes": 2, "links": [[0, 1], [1, 0]]}')
    with pytest.raises(ValueError, match=r"would overwrite data_sync\.topology="):
        plan.main(["model=7b", "gpus=2", "parallel.processes=1", f"topology={file}", f"out={file}"])
    assert "links" in file.read_text()


def test_units():
    assert memory_bytes("80gb") == 80 * 2**30 and memory_bytes("512mb") == 2**29


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["memory=lots"], "memory=lots is not a size"),
        (["memory=0gb"], "memory=0gb is below 1 byte"),
        ([f"memory={'9' * 400}tb"], "memory=9{60}... is not finite"),
        ([f"link={'9' * 40}gbit"], "link=9{40}gbit is too large"),
        (["tflops=1e300"], r"tflops=1e\+300 is too large: give a magnitude from 1e-30 to 1e\+30"),
        (["tokens=1e-31"], "tokens=1e-31 is too close to 0"),
        (["link=fast"], "link=fast is not a rate"),
        (["link=0gbit"], "link=0gbit must be above 0"),
        (["node_link=fast"], "node_link=fast is not a rate"),
        (["spare=1"], "spare=1.0 is outside"),
        (["ratios=[2.0]"], "ratios: 2.0 is outside"),
        (["gpus=0"], "gpus=0 must be above 0"),
        (["waiting=0"], r"waiting=0.0 is outside \(0, 1\)"),
        (["gemm=1.5"], r"gemm=1.5 is outside \(0, 1\]"),
        (["gemm=0.6", "tflops=400"], "gemm=0.6 and tflops=400.0 both say how fast"),
        (["memory_rate=2e12"], r"memory_rate=2\d+\.0 has no effect without gemm"),
        (["island_link=1gbit", "island_delay=20"], "island_delay=20 is not a time"),
        (["gemm=0.6", "memory_rate=0"], "memory_rate=0.0 must be above 0"),
        (["gpus=3", "parallel.processes=2"], "3 processes cannot be cut"),
        (["gpu=3"], "gpu=3 is not known: choose from a100, .*h100, .*4090"),
        (["gpus_=3"], "there is no setting gpus_"),
        (["model=9b"], "there is no model 9b"),
    ],
)
def test_mistakes(settings, says):
    with pytest.raises(ValueError, match=says):
        plan.main(settings)

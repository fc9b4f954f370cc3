"""`caat plan`: its sums hang together, and mistakes are said at once."""

from __future__ import annotations

import json

import pytest

from caat.planning.costs import flops_per_token
from conf.plan import PlanConfig
from conf.units import memory_bytes
from launch import plan
from launch.config import compose
from launch.plan import make_plan


def test_a_plan_of_7b(tmp_path, capsys):
    plan.main(["model=7b", "nodes=4", "gpus=8", "link=200gbit", f"out={tmp_path / 'plan.json'}"])
    printed = capsys.readouterr().out
    assert printed.strip().splitlines()[-1] == str(tmp_path / "plan.json")
    made = json.loads((tmp_path / "plan.json").read_text())
    assert made["parameters"] == pytest.approx(6.738e9, rel=1e-3)
    assert made["layout"] == {
        "processes": 8, "replicas": 4, "stage": 1, "checkpointing": "none", "micro_batch": 1
    }  # fmt: skip
    parts = [
        made["memory"][name]
        for name in ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
    ]
    assert sum(parts) == made["memory"]["total"] <= made["memory_limit"]
    assert made["tokens"] == 32130 * 1024 * 4096
    rows = {row["ratio"]: row for row in made["steps"]}
    assert list(rows) == [1.0, 0.75, 0.5, 0.25, 0.0]
    for ratio, row in rows.items():
        waits = row["tensor_exposed_seconds"] + row["data_exposed_seconds"]
        assert row["step_seconds"] == pytest.approx(row["compute_seconds"] + waits)
        assert row["days"] == pytest.approx(32130 * row["step_seconds"] / 86400), ratio
    assert rows[0.5]["step_seconds"] < rows[1.0]["step_seconds"]
    # With nothing to wait for, MFU is what is sustained of the peak.
    flops = flops_per_token(compose(["model=7b"]).model, 4096) * 1024 * 4096
    assert rows[0.0]["mfu"] == pytest.approx(flops / rows[0.0]["step_seconds"] / (32 * 989e12))


def test_a_schedule_is_planned_with_all_its_ratios():
    plan_ = PlanConfig(gpus=2, ratios=[])
    alone = {ratio: make_plan(plan_, compose(["model=130m", f"sync.ratio={ratio}"])) for ratio in (0.25, 1.0)}
    made = make_plan(plan_, compose(["model=130m", "sync.ratio={0:1,1000:0.25}"]))
    assert made["ratio"] == "1 (0.25 after 1000 steps)"
    assert made["steps"] == [*alone[1.0]["steps"], *alone[0.25]["steps"]]
    assert made["memory"] == max((each["memory"] for each in alone.values()), key=lambda m: m["total"])
    assert alone[1.0]["memory"] != alone[0.25]["memory"]


def test_a_step_in_one_process_is_arithmetic_alone():
    config = compose(["model=130m"])
    (row, *_) = make_plan(PlanConfig(gpus=1, tflops=1.0, ratios=[0.5]), config)["steps"]
    flops = flops_per_token(config.model, 1024) * 256 * 1024
    assert row["step_seconds"] == pytest.approx(flops / 1e12)
    assert row["tensor_bytes"] == row["data_bytes"] == 0


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_without_overlap_all_counted_bytes_are_waited_for(ratio):
    config = compose(["model=130m", f"sync.ratio={ratio}", "sync.overlap=false"])
    plan_ = PlanConfig(gpus=8, node_link="1gbit", delay="0us", ratios=[ratio])
    (row,) = make_plan(plan_, config)["steps"]
    # As a ring of eight.
    assert row["tensor_exposed_seconds"] == pytest.approx(2 * 7 / 8 * row["tensor_bytes"] / 125e6)


def test_recomputation_takes_time_and_is_no_progress():
    def step(checkpointing: str) -> dict:
        config = compose(["model=130m", f"train.activation_checkpointing={checkpointing}"])
        return make_plan(PlanConfig(gpus=1, tflops=1.0, ratios=[0.5]), config)["steps"][0]

    c = compose(["model=130m"]).model
    tokens = 256 * 1024
    matrices = c.layers * (4 * c.hidden**2 + 3 * c.hidden * c.ffn)
    attention = 4 * c.layers * c.hidden * 1024
    none, selective, full = (step(name) for name in ("none", "selective", "full"))
    added = [row["compute_seconds"] - none["compute_seconds"] for row in (selective, full)]
    assert added == pytest.approx([attention * tokens / 1e12, (2 * matrices + attention) * tokens / 1e12])
    assert full["mfu"] < selective["mfu"] < none["mfu"]


def test_a_batch_that_replicas_do_not_divide_is_not_called_too_large():
    rows = make_plan(PlanConfig(), compose(["train.global_batch=4"]))["layouts"]
    by_processes = {row["processes"]: row["none"] for row in rows}
    assert by_processes[1] is None and by_processes[2] == 1


def test_more_memory_lets_more_fit():
    def sizes(memory: str) -> list[int]:
        rows = make_plan(PlanConfig(memory=memory), compose(["model=7b"]))["layouts"]
        return [row[mode] for row in rows for mode in ("none", "selective", "full")]

    small, large = sizes("24gb"), sizes("141gb")
    assert 0 in small and all(a <= b for a, b in zip(small, large, strict=True)) and small != large
    rows = make_plan(PlanConfig(), compose(["model=7b"]))["layouts"]
    assert all(row["none"] <= row["selective"] <= row["full"] for row in rows)


def test_units():
    assert memory_bytes("80gb") == 80 * 2**30 and memory_bytes("512mb") == 2**29


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["memory=lots"], "memory=lots is not a size"),
        (["link=fast"], "link=fast is not a rate"),
        (["link=0gbit"], "link=0gbit carries nothing"),
        (["node_link=fast"], "node_link=fast is not a rate"),
        (["spare=1"], "spare=1.0 is outside"),
        (["ratios=[2.0]"], "ratios: 2.0 is outside"),
        (["gpus=0"], "gpus=0 must be above 0"),
        (["gpus=3", "parallel.processes=2"], "3 processes cannot be cut"),
        (["gpu=3"], "there is no setting gpu"),
        (["model=9b"], "there is no model 9b"),
    ],
)
def test_mistakes(settings, says):
    with pytest.raises(ValueError, match=says):
        plan.main(settings)

"""Figures of several runs against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from caat.runs.comparison import baseline, paired_difference
from caat.runs.reading import find_runs
from caat.runs.statistics import scores, table
from caat.runs.variants import compared, t_95, variants
from launch.run.compose import compose
from tests.runs.folders import write_run, write_sweep

# Student's t with one degree of freedom is Cauchy's distribution, whose quantiles are tangents.
T_1 = math.tan(math.pi * 0.475)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep"))


def test_figures_by_hand(sweep):
    runs, problems = find_runs([str(sweep)])
    assert len(runs) == 6 and [problem.folder.name for problem in problems] == ["damaged"]
    groups = variants(runs)
    assert [group.ratio for group in groups] == [1.0, 0.5, 0.0]
    full, half, none = table(groups)
    assert full["validation_loss"] == pytest.approx(3.1, abs=1e-12)
    # Two values a distance d apart have the standard deviation d / sqrt(2).
    assert full["validation_loss_spread"] == pytest.approx(0.2 / 2**0.5, abs=1e-12)
    assert full["difference_to_ratio_1"] is None
    # 0.1 and 0.2, seed by seed: mean 0.15, standard error 0.1 / sqrt(2) / sqrt(2), times t.
    assert half["difference_to_ratio_1"] == pytest.approx(0.15, abs=1e-12)
    assert half["difference_to_ratio_1_interval"] == pytest.approx(T_1 * 0.05, abs=1e-12)
    assert [row["synchronised"] for row in (full, half, none)] == [1.0, 0.5, 0.0]
    assert half["bytes_per_step"] == 2**20 and half["trained_tokens"] == 5000
    assert (half["data_bytes_per_step"], half["data_calls_per_step"]) == (0.75 * 2**20, 5)
    assert (none["data_bytes_per_step"], none["data_calls_per_step"]) == (None, None)
    # The median of steps 3, 4 and 5: the first two warm up.
    assert half["step_seconds"] == pytest.approx(0.4, abs=1e-12)
    # Of 0.3, 0.3, 0.4, 0.4, 0.5, 0.5; and of one run's 0.3, 0.4, 0.5.
    assert half["step_seconds_middle_half"] == pytest.approx((0.325, 0.475), abs=1e-12)
    assert none["step_seconds_middle_half"] == pytest.approx((0.35, 0.45), abs=1e-12)
    # Seed 3 was not trained at ratio 1, and one seed has no spread.
    assert (none["difference_to_ratio_1"], none["validation_loss_spread"]) == (None, None)


def test_benchmarks_are_compared_as_the_loss_is(sweep):
    groups = variants(find_runs([str(sweep)])[0])
    (row,) = scores(groups)
    assert (row["task"], row["metric"]) == ("news", "bits_per_byte")
    full, half, none = row["figures"]
    assert full["mean"] == pytest.approx(6.2, abs=1e-12)
    assert half["difference_to_ratio_1"] == pytest.approx(0.3, abs=1e-12)
    assert half["difference_to_ratio_1_interval"] == pytest.approx(T_1 * 0.1, abs=1e-12)
    assert none["difference_to_ratio_1"] is None


def test_student_t_against_its_own_integral():
    """97.5 % of the density lies below it: the trapezoidal rule in float64, tails as far as they count."""
    for freedom in (*range(1, 13), 30):
        x = np.linspace(0, t_95(freedom), 200_001)
        scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
        density = scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2)
        assert np.trapezoid(density, x) == pytest.approx(0.475, abs=1e-8), freedom


def test_a_variant_of_synchronisation_is_compared_with_the_only_ratio_1(tmp_path):
    for name, loss, settings in (
        ("full", 3.0, ["sync.ratio=1"]),
        ("scaled", 3.25, ["sync.ratio=0.5", "sync.private_scale=sqrt"]),
        ("changing", 3.5, ["sync.ratio={0:0,3:0.5}"]),
    ):
        write_run(tmp_path / name, compose(settings), [8.0, 7.0, 6.0, loss])
    found = {group.label: group for group in variants(find_runs([str(tmp_path)])[0])}
    rows = {row["label"]: row for row in table(list(found.values()))}
    assert {label: row["difference_to_ratio_1"] for label, row in rows.items()} == {
        "ratio 1, sync.private_scale=1": None,
        "ratio 0.5, sync.private_scale=sqrt": 0.25,
        "ratio 0 (0.5 after 3 steps), sync.private_scale=1": 0.5,
    }
    # Three steps of four at 0, one at 0.5.
    assert rows["ratio 0 (0.5 after 3 steps), sync.private_scale=1"]["synchronised"] == 0.125


def test_what_a_type_on_the_wire_costs_is_seen_against_ratio_1_without(tmp_path):
    losses = {(1, "auto"): 3.0, (0.5, "auto"): 3.125, (1, "int8"): 3.25, (0.5, "bfloat16"): 3.5}
    for (ratio, dtype), loss in losses.items():
        config = compose([f"sync.ratio={ratio}", f"sync.wire_dtype={dtype}"])
        write_run(tmp_path / f"{ratio}-{dtype}", config, [loss])
    rows = table(variants(find_runs([str(tmp_path)])[0]))
    found = {(row["ratio"], row["settings"]["sync.wire_dtype"]): row["difference_to_ratio_1"] for row in rows}
    assert found == {key: loss - 3.0 or None for key, loss in losses.items()}
    (tmp_path / "1-auto" / "config.yaml").unlink()
    rows = table(variants(find_runs([str(tmp_path)])[0]))
    assert {row["label"]: row["difference_to_ratio_1"] for row in rows} == {
        "ratio 0.5, sync.wire_dtype=auto": -0.125,
        "ratio 0.5, sync.wire_dtype=bfloat16": 0.25,
        "ratio 1, sync.wire_dtype=int8": None,
    }


def test_only_differences_are_named(sweep):
    same, differing = compared(find_runs([str(sweep)])[0])
    assert set(differing) == {"sync.ratio", "seed"}
    assert same["model.layers"] == 4 and not any(name.startswith("run.") for name in same)


def test_ratio_1_is_looked_for_among_runs_with_the_same_other_settings(tmp_path):
    for lr in ("1e-3", "2e-3"):
        for ratio in (1.0, 0.5):
            loss = 3.0 + 1000 * float(lr) - ratio
            config = compose([f"sync.ratio={ratio}", f"optim.lr={lr}"])
            write_run(tmp_path / f"{lr}-{ratio}", config, [loss])
    groups = variants(find_runs([str(tmp_path)])[0])
    assert [group.label for group in groups] == [
        f"ratio {ratio}, optim.lr={lr}" for lr in ("0.001", "0.002") for ratio in ("1", "0.5")
    ]
    for group in groups[1::2]:
        difference = paired_difference(group, baseline(group, groups), lambda run: run.validation_loss)
        assert difference is not None and difference.mean == pytest.approx(0.5, abs=1e-12)


def test_the_effect_of_islands_is_not_that_of_the_ratio(tmp_path):
    for settings in (["sync.ratio=1"], ["sync.ratio=0.5", "parallel.islands=2", "launch.processes=2"]):
        write_run(tmp_path / settings[0], compose(settings), [3.0])
    groups = variants(find_runs([str(tmp_path)])[0])
    assert not any(baseline(group, groups) for group in groups if group.ratio != 1)


def test_a_label_leaves_out_what_was_left_to_its_default(tmp_path):
    for limit in ("null", "5"):
        config = compose(["sync.ratio=0.5", "eval.every=1", f"eval.limit={limit}"])
        write_run(tmp_path / limit, config, [8.0, 7.0])
    groups = variants(find_runs([str(tmp_path)])[0])
    assert {group.label for group in groups} == {"ratio 0.5", "ratio 0.5, eval.limit=5"}


def test_seeds_are_one_variant_wherever_they_were_kept(tmp_path):
    for seed in (1, 2):
        config = compose([f"seed={seed}", f"data.dir=of-{seed}", f"train.log_every={seed}"])
        write_run(tmp_path / str(seed), config, [8.0, 7.0])
    (group,) = variants(find_runs([str(tmp_path)])[0])
    assert len(group.runs) == 2


def test_a_seed_trained_twice_is_one_seed(tmp_path):
    for name, ratio, seed, loss in (
        ("a", 1, 1, 3.0), ("b", 0.5, 1, 3.1), ("c", 0.5, 1, 3.3), ("d", 1, 2, 3.4), ("e", 0.5, 2, 3.2)
    ):  # fmt: skip
        # How often it was validated is no other training.
        often = ["train.eval_every=20"] if ratio == 1 else []
        write_run(tmp_path / name, compose([f"sync.ratio={ratio}", f"seed={seed}", *often]), [8.0, loss])
    full, half = variants(find_runs([str(tmp_path)])[0])
    row = table([full, half])[1]
    assert row["seeds"] == [1, 2] and len(row["runs"]) == 3
    assert row["validation_loss"] == pytest.approx(3.2)
    assert paired_difference(half, [full], lambda run: run.validation_loss).values == pytest.approx(
        (0.2, -0.2)
    )
    (once,) = variants([run for run in find_runs([str(tmp_path)])[0] if run.folder.name in "bc"])
    assert once.sample(lambda run: run.validation_loss).interval is None


def test_a_ratio_that_changes_is_a_variant(tmp_path):
    for ratio in ("1", "{0:0,3:0.5}"):
        write_run(tmp_path / ratio[0], compose([f"sync.ratio={ratio}"]), [8.0, 7.0])
    groups = variants(find_runs([str(tmp_path)])[0])
    assert [group.label for group in groups] == ["ratio 1", "ratio 0 (0.5 after 3 steps)"]


def test_ratio_1_may_have_been_trained_on_another_layout(tmp_path):
    for name, loss, settings in (
        ("full", 3.0, ["sync.ratio=1"]),
        ("half", 3.25, ["sync.ratio=0.5", "launch.processes=2", "zero.stage=3"]),
    ):
        write_run(tmp_path / name, compose(settings), [8.0, loss])
    rows = {row["ratio"]: row for row in table(variants(find_runs([str(tmp_path)])[0]))}
    assert rows[0.5]["difference_to_ratio_1"] == 0.25


def test_variants_are_in_the_order_of_their_numbers(tmp_path):
    for steps in (100, 30, 10):
        write_run(tmp_path / str(steps), compose([f"train.steps={steps}"]), [3.0])
    found = variants(find_runs([str(tmp_path)])[0])
    assert [variant.settings["train.steps"] for variant in found] == [10, 30, 100]

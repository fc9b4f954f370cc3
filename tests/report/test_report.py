"""`caat report`: figures against numbers worked out by hand, and a page that needs nothing else."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from caat.runs.reading import find_runs
from caat.runs.statistics import baseline, compared, difference_to_full, scores, t_95, table, variants
from conf.reading.saved import save_config
from conf.schema import Config
from launch import report
from launch.run.compose import compose

LOSSES = {(1.0, 1): 3.0, (1.0, 2): 3.2, (0.5, 1): 3.1, (0.5, 2): 3.4, (0.0, 3): 3.9}
# Student's t with one degree of freedom is Cauchy's distribution, whose quantiles are tangents.
T_1 = math.tan(math.pi * 0.475)
VOID = {"meta", "link", "br", "img", "hr"}


def write_run(
    folder: Path, config: Config, losses: list[float], status: str = "finished", sent: int = 0
) -> None:
    """A run folder as training leaves it: a record a step, the last of them validated."""
    folder.mkdir(parents=True)
    save_config(config, folder / "config.yaml")
    (folder / "status.json").write_text(json.dumps({"status": status}))
    lines = []
    for step, loss in enumerate(losses, 1):
        record = {
            "step": step,
            "tokens": 1000 * step,
            "loss": loss + 0.5,
            "step_seconds": 0.1 * step,
            "tokens_per_second": 100.0,
            "mfu": None,
            "tensor_parallel_bytes_forward": sent // 2,
            "tensor_parallel_bytes_backward": sent // 2,
        }
        if sent:  # older runs did not record these
            record |= {"data_parallel_bytes_gradients": 2**19, "data_parallel_bytes_weights": 2**18}
            record |= {"data_parallel_calls_gradients": 2, "data_parallel_calls_weights": 3}
        lines.append(json.dumps(record | {"validation_loss": loss}))
    # As `caat evaluate` adds them: the later replaces the earlier, but not that of a later checkpoint.
    for step, off in ((len(losses), 1.0), (len(losses), 0.0), (1, 2.0)):
        scores = {"eval/news/bits_per_byte": 2 * loss + off} if losses else {}
        lines.append(json.dumps({"step": step, "tokens": 1000 * step, **scores}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    top = tmp_path_factory.mktemp("sweep")
    for (ratio, seed), loss in LOSSES.items():
        config = compose([f"sync.ratio={ratio}", f"seed={seed}", f"run.dir=r{ratio}-s{seed}"])
        write_run(top / f"r{ratio}-s{seed}", config, [9.0, 8.0, 7.0, 5.0, loss], sent=int(ratio * 2**21))
    write_run(top / "deep" / "cut", compose(["sync.ratio=0.25"]), [8.0, 7.5], status="running")
    # wandb keeps a file of this name inside a run.
    inside = top / "r0.0-s3" / "wandb" / "files"
    inside.mkdir(parents=True)
    (inside / "config.yaml").write_text("wandb_version: 1\n")
    damaged = top / "damaged"
    damaged.mkdir()
    (damaged / "config.yaml").write_text("model: {layers: many}\n")
    return top


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


def test_a_run_that_ended_before_its_last_benchmarks_has_none(tmp_path):
    for status, expected in (("finished", {}), ("stopped", {("news", "bits_per_byte"): 10.0})):
        run = tmp_path / status
        write_run(run, compose([]), [4.0, 3.0], status)
        kept = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
        early = json.dumps({"step": 1, "tokens": 1000, "eval/news/bits_per_byte": 10.0})
        (run / "metrics.jsonl").write_text("\n".join([*kept, early]) + "\n")
        ((found,), _) = find_runs([str(run)])
        assert found.scores == expected and found.validation_loss == 3.0


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
        difference = difference_to_full(group, baseline(group, groups), lambda run: run.validation_loss)
        assert difference is not None and difference.mean == pytest.approx(0.5, abs=1e-12)


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
    assert difference_to_full(half, [full], lambda run: run.validation_loss).values == pytest.approx(
        (0.2, -0.2)
    )
    (once,) = variants([run for run in find_runs([str(tmp_path)])[0] if run.folder.name in "bc"])
    assert once.sample(lambda run: run.validation_loss).interval is None


def test_figures_are_whole_in_a_narrow_terminal_and_labels_are_no_markup(tmp_path, monkeypatch, capsys):
    for number in range(6):
        for seed in (1, 2):
            config = compose([f"data.text_field='a$^{number}$[/b]'", f"seed={seed}"])
            write_run(tmp_path / f"{number}-{seed}", config, [8.0, 7.12345678])
    monkeypatch.setenv("COLUMNS", "60")
    report.main([str(tmp_path), "title=[/7b] draft"])
    printed = capsys.readouterr().out
    assert printed.startswith("[/7b] draft") and "…" not in printed
    assert printed.count("7.1235 ± 0.0000") == 6 and "data.text_field=a$^5$[/b]" in printed


def test_a_ratio_that_changes_is_a_variant(tmp_path):
    for ratio in ("1", "{0:0,3:0.5}"):
        write_run(tmp_path / ratio[0], compose([f"sync.ratio={ratio}"]), [8.0, 7.0])
    groups = variants(find_runs([str(tmp_path)])[0])
    assert [group.label for group in groups] == ["ratio 1", "ratio 0 (0.5 after 3 steps)"]


def test_a_last_validation_that_was_not_finite_is_not_an_earlier_one(tmp_path):
    write_run(tmp_path / "run", compose([]), [8.0, 7.0])
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"validation_loss": 7.0', '"validation_loss": null'))
    (run,) = find_runs([str(tmp_path)])[0]
    assert run.validation_loss is None and variants([run]) == []


def test_ratio_1_may_have_been_trained_on_another_layout(tmp_path):
    for name, loss, settings in (
        ("full", 3.0, ["sync.ratio=1"]),
        ("half", 3.25, ["sync.ratio=0.5", "launch.processes=2", "zero.stage=3"]),
    ):
        write_run(tmp_path / name, compose(settings), [8.0, loss])
    rows = {row["ratio"]: row for row in table(variants(find_runs([str(tmp_path)])[0]))}
    assert rows[0.5]["difference_to_ratio_1"] == 0.25


def test_of_several_ratios_1_the_one_trained_alike_is_compared_with(tmp_path):
    """Micro-batch 2: 5.00, 4: 5.10; ratio 0.5 at micro-batch 2 is worse by 0.05, not better by 0.05."""
    for ratio, micro, seed, loss in (
        (1, 2, 1, 5.0), (1, 4, 1, 5.1), (0.5, 2, 1, 5.05), (0.5, 4, 1, 5.05), (0.5, 8, 1, 5.05),
        # With a seed that only one of them has, the others cannot be compared.
        (1, 2, 2, 5.2), (0.5, 4, 2, 5.3),
        (0.25, 4, 2, 5.4),
    ):  # fmt: skip
        config = compose([f"sync.ratio={ratio}", f"train.micro_batch={micro}", f"seed={seed}"])
        write_run(tmp_path / f"{ratio}-{micro}-{seed}", config, [loss])
    rows = table(variants(find_runs([str(tmp_path)])[0]))
    found = {(row["ratio"], row["settings"]["train.micro_batch"]): row for row in rows}
    two, four = "ratio 1, train.micro_batch=2", "ratio 1, train.micro_batch=4"
    for key, difference, bases in (
        ((1.0, 2), None, []),
        ((1.0, 4), None, []),
        ((0.5, 2), 0.05, [two]),
        ((0.5, 4), -0.05, [four]),
        ((0.5, 8), 0.0, [two, four]),
        ((0.25, 4), 0.2, [two]),
    ):
        row = found[key]
        assert row["compared_with"] == bases, key
        assert row["difference_to_ratio_1"] == (difference and pytest.approx(difference, abs=1e-12)), key
    report.main([str(tmp_path)])
    assert f"the mean of {two} and {four} |" in (tmp_path / "report.md").read_text()


class Outside(HTMLParser):
    """Collects what a browser would ask for elsewhere, and checks that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.open: list[str] = []
        self.names: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.asked += [
            v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "srcset") and v[0] != "#"
        ]
        self.names += [values["id"]] if "id" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing(sweep, tmp_path, capsys):
    report.main([str(sweep), f"out={tmp_path / 'report'}"])
    printed = capsys.readouterr().out
    assert printed.strip().splitlines()[-1] == str(tmp_path / "report" / "report.json")
    assert "running, 2 of 200 steps" in printed
    text = (tmp_path / "report" / "report.html").read_text()
    page = Outside()
    page.feed(text)
    assert page.open == [] and page.asked == [] and len(page.names) == len(set(page.names))
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    pictures = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(pictures) == 4
    for picture in pictures:
        ElementTree.fromstring(picture)
    for said in (
        "ratio 0.5",
        "3.2500 ± 0.2121",
        "+0.1500 ± 0.6353",
        "6.5000 ± 0.4243 (+0.3000 ± 1.2706)",
        "sync.ratio",
        "damaged",
        "running",
        "cut",
        # A seed alone says so, and steps that were not alike say how unlike.
        "<td>one: 3</td><td>3.9000</td>",
        "0.400 (0.350 to 0.450)",
        "Open markers: one seed",
    ):
        assert said in text, said
    # Of the three variants, in the order of the table, only the last has a single seed.
    for picture in (pictures[1], pictures[3]):
        for colour, filled in (("#d55e00", True), ("#0072b2", True), ("#009e73", False)):
            fill = f"fill: {colour}" if filled else "fill-opacity: 0"
            assert f'style="{fill}; stroke: {colour}"' in picture, colour
    assert "| ratio 0.5 | 1, 2 | 3.2500 ± 0.2121 |" in (tmp_path / "report" / "report.md").read_text()
    result = json.loads((tmp_path / "report" / "report.json").read_text())
    assert result["not_finished"][0]["status"] == "running"
    assert "many" in result["cannot_be_read"][0]["why"]


def test_a_torn_last_line_is_left_out_and_another_named(tmp_path):
    write_run(tmp_path / "killed", compose([]), [8.0, 7.0], status="failed")
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "tok')
    runs, _ = find_runs([str(tmp_path)])
    assert [record["step"] for record in runs[0].records] == [1, 2]
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "killed" / "metrics.jsonl").write_text("\n".join([lines[0], "?", lines[1]]))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2, is not JSON"):
        find_runs([str(tmp_path)])


WRONG_LINES = {
    "a list": ("[1]", "holds [1], which must be an object"),
    "a step that is none": ('{"step": null, "tokens": 1}', "has step=null"),
    "no step": ('{"a": 1}', "has no step"),
    "no bytes": (
        '{"step": 1, "tokens": 1, "loss": 1, "step_seconds": 1, "tokens_per_second": 1}',
        "has no tensor",
    ),
    "text for a loss": ('{"step": 1, "tokens": 1, "loss": "1"}', 'has loss="1"'),
    "text for a score": ('{"step": 1, "tokens": 1, "eval/a/b": "1"}', "has eval/a/b='1'"),
    "brackets": ("[" * 100_000, "is not JSON"),
}


@pytest.mark.parametrize(("line", "why"), WRONG_LINES.values(), ids=WRONG_LINES)
def test_a_damaged_run_is_a_line_of_the_report(line, why, tmp_path):
    write_run(tmp_path / "good", compose([]), [8.0, 7.0])
    write_run(tmp_path / "bad", compose([]), [8.0, 7.0])
    path = tmp_path / "bad" / "metrics.jsonl"
    path.write_text(line + "\n" + path.read_text())
    runs, (problem,) = find_runs([str(tmp_path)])
    assert [run.folder.name for run in runs] == ["good"] and why in problem.reason


@pytest.mark.parametrize("status", ["null", "3", "[]", '{"status": 3}'])
def test_a_damaged_status_is_a_line_of_the_report(status, tmp_path):
    write_run(tmp_path / "good", compose([]), [8.0, 7.0])
    write_run(tmp_path / "bad", compose([]), [8.0, 7.0])
    (tmp_path / "bad" / "status.json").write_text(status)
    _, (problem,) = find_runs([str(tmp_path)])
    assert "status.json" in problem.reason


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "caat report needs folders"),
        (["missing"], "missing is not a folder"),
        (["."], "there is no readable run in ."),
        (["--all"], "--all is not an option"),
        ([".", "size=3"], "there is no setting size"),
    ],
)
def test_mistakes(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=says):
        report.main(arguments)


def test_runs_that_have_not_finished_are_a_report_too(tmp_path, capsys):
    write_run(tmp_path / "one", compose([]), [], status="starting")
    report.main([str(tmp_path)])
    assert "No run has finished yet" in (tmp_path / "report.html").read_text()

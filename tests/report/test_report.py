"""`caat report`: a page that needs nothing else, and its messages."""

from __future__ import annotations

import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from caat.runs.reading import find_runs
from caat.runs.statistics import table
from caat.runs.variants import variants
from launch import report
from launch.report.pictures import _front, front, pictures
from launch.run.compose import compose
from tests.runs.folders import write_run, write_sweep
from tests.runs.test_statistics import T_1

VOID = {"meta", "link", "br", "img", "hr"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep"))


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


def test_codecs_are_compared_by_loss_and_bytes(tmp_path):
    # int8 is worse by 0.1 with seed 1 and by 0.3 with seed 2; its third seed has no run to compare with.
    losses = {"none": (7.0, 7.0), "int8": (7.1, 7.3, 9.0), "sign": (7.4,), "topk:0.5": (7.5, 7.0)}
    sizes = {"none": 2**22, "int8": 2**20, "sign": 2**17, "topk:0.5": 2**21}
    for codec, each in losses.items():
        for seed, loss in enumerate(each, 1):
            folder = tmp_path / f"{codec}-{seed}"
            # Another layout does not matter.
            layout = ["zero.stage=2"] if codec == "sign" else []
            write_run(folder, compose([f"data_sync.codec={codec}", f"seed={seed}", *layout]), [8.0, loss])
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            sent = {"data_parallel_bytes_gradients": sizes[codec]}
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line | sent) + "\n" for line in lines))
    compared = variants(find_runs([str(tmp_path)])[0])
    rows = table(compared)
    by = {row["settings"]["data_sync.codec"]: row for row in rows}
    assert {codec: row["data_bytes_per_step"] for codec, row in by.items()} == sizes
    # 0.1 and 0.3: mean 0.2, standard error 0.1, times t; 0.5 and 0: mean 0.25, standard error 0.25.
    for codec, difference, error, seeds in (("int8", 0.2, 0.1, 2), ("topk:0.5", 0.25, 0.25, 2)):
        row = by[codec]
        assert row["difference_to_no_codec"] == pytest.approx(difference, abs=1e-12)
        assert row["difference_to_no_codec_interval"] == pytest.approx(T_1 * error, abs=1e-12)
        assert row["difference_to_no_codec_seeds"] == seeds
    assert by["none"]["difference_to_no_codec"] is None
    one = by["sign"]
    assert one["difference_to_no_codec"] == pytest.approx(0.4, abs=1e-12)
    assert one["difference_to_no_codec_interval"] is None
    captions = " ".join(pictures(compared, rows))
    assert "bytes between replicas" in captions and "minus that without a codec" in captions
    report.main([str(tmp_path)])
    assert f"+0.2000 ± {T_1 * 0.1:.4f}" in (tmp_path / "report.md").read_text()
    # int8 sends more than sign and has a higher mean loss, so it is not on the front.
    best = front([(row["data_bytes_per_step"], row["validation_loss"]) for row in rows])
    assert best == [(2**17, 7.4), (2**21, 7.25), (2**22, 7.0)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "caat report needs folders"),
        (["missing"], "missing is not a folder"),
        (["."], "there is no readable run in ."),
        (["--all"], "--all is not an option"),
        ([".", "size=3"], "there is no setting size"),
        (["a-file"], "a-file is not a folder: give run folders"),
    ],
)
def test_mistakes(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    with pytest.raises(ValueError, match=says):
        report.main(arguments)


def test_runs_that_have_not_finished_are_a_report_too(tmp_path, capsys):
    write_run(tmp_path / "one", compose([]), [], status="starting")
    report.main([str(tmp_path)])
    assert "No run has finished yet" in (tmp_path / "report.html").read_text()


def test_a_seed_that_diverged_is_shown_beside_the_others(tmp_path):
    for seed, ratio in ((1, 0.5), (2, 0.5), (1, 1)):
        write_run(tmp_path / f"{ratio}-{seed}", compose([f"seed={seed}", f"sync.ratio={ratio}"]), [4.0, 3.0])
    metrics = tmp_path / "0.5-2" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines = [line | {"validation_loss": None} if "validation_loss" in line else line for line in lines]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = table(variants(find_runs([str(tmp_path)])[0]))
    found = [(row["ratio"], row["seeds"], row["seeds_diverged"]) for row in rows]
    assert found == [(1, [1], []), (0.5, [1], [2])]
    report.main([str(tmp_path)])
    page = (tmp_path / "report.md").read_text()
    assert "one: 1; 2 diverged" in page and "0.5-2 | diverged | 2 of" in page


def test_a_score_that_is_not_finite_counts_as_none(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / str(seed), compose([f"seed={seed}"]), [4.0, 3.0])
    metrics = tmp_path / "1" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('bits_per_byte": 6.0', 'bits_per_byte": Infinity') + "\n")
    report.main([str(tmp_path)])
    assert "Infinity" in metrics.read_text() and "Infinity" not in (tmp_path / "report.json").read_text()


def test_islands_are_compared_by_all_bytes(tmp_path):
    """Only the exchanges send to islands: their bytes count on average over the steps."""
    sent = {"replicas": {"data_parallel_bytes_gradients": 3000}, "islands": {"islands_bytes_loss": 24}}
    for name, each in sent.items():
        settings = ["parallel.islands=2"] if name == "islands" else []
        write_run(tmp_path / name, compose(settings), [8.0, 7.0, 6.5, 6.0])
        lines = [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for number, line in enumerate(lines):
            line |= each
            if name == "islands" and number == 1:
                line["islands_bytes_changes"] = 4000
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    compared = variants(find_runs([str(tmp_path)])[0])
    rows = {bool(row["island_bytes_per_step"]): row for row in table(compared)}
    tensor = rows[False]["bytes_per_step"]
    assert rows[False]["total_bytes_per_step"] == tensor + 3000
    assert rows[True]["island_bytes_per_step"] == 24 + 4000 / 4
    assert rows[True]["total_bytes_per_step"] == tensor + 24 + 1000
    assert "against all bytes" in " ".join(pictures(compared, list(rows.values())))
    report.main([str(tmp_path)])


def test_a_run_that_sends_nothing_is_on_the_axis_of_bytes():
    rows = [
        {"sent": sent, "validation_loss": loss, "validation_loss_spread": 0.0, "seeds": [1, 2]}
        for sent, loss in ((0, 3.0), (2**20, 3.2), (2**22, 3.1))
    ]
    axes = Figure().subplots()
    _front(axes, rows, ["none", "few", "many"], "sent")
    assert axes.get_xscale() == "symlog" and axes.get_xlim()[0] < 0
    assert len({axes.transData.transform((x, 3.0))[0] for x in (0, 1, 4)}) == 3


def test_a_folder_whose_name_is_not_utf_8(tmp_path):
    write_run(tmp_path / os.fsdecode(b"caf\xe9") / "run", compose([]), [8.0, 7.0])
    report.main([str(tmp_path)])
    assert "7.0000" in (tmp_path / "report.md").read_text()


def test_islands_are_compared_with_one_world(tmp_path):
    # int8 within islands is compared with int8 without islands. A third seed has no run to compare with.
    losses = {(1, "none"): (7.0, 7.0), (1, "int8"): (7.3,), (2, "none"): (7.1, 7.3, 9.0), (2, "int8"): (7.4,)}
    for (islands, codec), each in losses.items():
        for seed, loss in enumerate(each, 1):
            method = ["islands.method=diloco", "islands.every=10"] if islands > 1 else []
            settings = [f"parallel.islands={islands}", f"data_sync.codec={codec}", f"seed={seed}"]
            config = compose([*settings, *method, "launch.processes=4"])
            write_run(tmp_path / f"{islands}-{codec}-{seed}", config, [8.0, loss])
    compared = variants(find_runs([str(tmp_path)])[0])
    rows = table(compared)
    by = {(row["settings"]["parallel.islands"], row["settings"]["data_sync.codec"]): row for row in rows}
    for codec, difference, seeds in (("none", 0.2, 2), ("int8", 0.1, 1)):
        assert by[1, codec]["difference_to_no_islands"] is None
        assert by[2, codec]["difference_to_no_islands"] == pytest.approx(difference, abs=1e-12)
        assert by[2, codec]["difference_to_no_islands_seeds"] == seeds
    assert by[2, "none"]["difference_to_no_islands_interval"] == pytest.approx(T_1 * 0.1, abs=1e-12)
    assert by[2, "int8"]["difference_to_no_codec"] == pytest.approx(0.3, abs=1e-12)
    assert "minus that without islands" in " ".join(pictures(compared, rows))


def test_codecs_are_compared_at_the_ratio_of_every_step(tmp_path):
    """Runs that only end at the same ratio have trained something else."""
    schedule = "sync.ratio={0:1,2:0.5}"
    runs = {"constant": (["sync.ratio=0.5"], 3.0), "schedule": ([schedule], 2.0)}
    runs["codec"] = ([schedule, "data_sync.codec=int8"], 2.1)
    for name, (settings, loss) in runs.items():
        config = compose([*settings, "launch.processes=2", "train.steps=4"])
        write_run(tmp_path / name, config, [8.0, 7.0, 6.0, loss])
    found = {row["validation_loss"]: row for row in table(variants(find_runs([str(tmp_path)])[0]))}
    assert found[2.1]["difference_to_no_codec"] == pytest.approx(0.1, abs=1e-12)
    shutil.rmtree(tmp_path / "schedule")
    found = {row["validation_loss"]: row for row in table(variants(find_runs([str(tmp_path)])[0]))}
    assert found[2.1]["difference_to_no_codec"] is None

"""`caat report`: a page that needs nothing else, and its messages."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from caat.runs.reading import find_runs
from caat.runs.statistics import table, variants
from launch import report
from launch.report.pictures import front, pictures
from launch.run.compose import compose
from tests.runs.folders import write_run, write_sweep

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


def test_codecs_are_compared_by_the_bytes_between_replicas(tmp_path):
    for number, (codec, loss) in enumerate((("none", 7.0), ("int8", 7.1), ("sign", 7.4), ("topk:0.5", 7.2))):
        folder = tmp_path / str(number)
        write_run(folder, compose([f"data_sync.codec={codec}"]), [8.0, loss])
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        # topk sends more than int8 and has a higher loss, so it is not on the front.
        sent = {"none": 2**22, "int8": 2**20, "sign": 2**17, "topk:0.5": 2**21}[codec]
        text = "".join(json.dumps(line | {"data_parallel_bytes_gradients": sent}) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
    found, _ = find_runs([str(tmp_path)])
    compared = variants(found)
    rows = table(compared)
    assert sorted(row["data_bytes_per_step"] for row in rows) == [2**17, 2**20, 2**21, 2**22]
    drawn = pictures(compared, rows)
    assert any("bytes between replicas" in caption for caption in drawn)
    best = front([(row["data_bytes_per_step"], row["validation_loss"]) for row in rows])
    assert best == [(2**17, 7.4), (2**20, 7.1), (2**22, 7.0)]


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

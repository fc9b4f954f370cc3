"""A report as a self-contained HTML page, as Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from caat.runs.reading import Problem, Run
from conf.reading.settings import typed
from launch.report.pictures import numbered
from launch.report.style import STYLE

MIB = 2**20
NOTE = (
    "± is the standard deviation over the seeds; a single seed has none. The difference to ratio 1 is "
    "computed for each seed, against the runs with the most similar other settings, and averaged; its ± "
    "is the 95 % confidence interval of that mean, by Student's t. So are the differences to the runs "
    "without a codec between replicas, and to those without islands. Synchronised is the share of channels "
    "synchronised inside the layers, averaged over the steps. MiB/step is what one process puts into "
    "tensor-parallel collectives in a step, in both directions; DP is the size and number of its messages "
    "to other replicas, and islands those to other islands, averaged over the steps. "
    "By source is the validation loss of each source of a mixture, of which the validation loss is the mean "
    "by its shares, and epochs is how often each was read. "
    "Times are medians of each run; brackets hold the middle half of all steps."
)


@dataclass(frozen=True)
class Contents:
    """The contents of a report."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    scores: Sequence[Mapping[str, Any]]
    same: Mapping[str, Any]
    differing: Mapping[str, Sequence[Any]]
    unfinished: Sequence[Run]
    problems: Sequence[Problem]


def cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return titles and texts of the table, without empty columns.

    The column "compared with" is left out if only one variant has ratio 1.
    """
    bases = {base for row in rows for base in row["compared_with"]}
    several = len(bases) > 1
    columns = {
        "variant": [row["label"] for row in rows],
        "seeds": [_seeds(row["seeds"]) + _diverged(row["seeds_diverged"]) for row in rows],
        "validation loss": [
            _with(row, "validation_loss", "validation_loss_spread", "{:.4f}") for row in rows
        ],
        "test loss": [_with(row, "test_loss", "test_loss_spread", "{:.4f}") for row in rows],
        "by source": [_by_source(row["validation_loss_by_source"], "{:.4f}") for row in rows],
        "epochs": [_by_source(row["epochs_by_source"], "{:.2f}") for row in rows],
        "vs ratio 1": [
            _with(row, "difference_to_ratio_1", "difference_to_ratio_1_interval", "{:+.4f}") for row in rows
        ],
        "compared with": [_bases(row["compared_with"]) if several else "-" for row in rows],
        "vs no codec": [
            _with(row, "difference_to_no_codec", "difference_to_no_codec_interval", "{:+.4f}") for row in rows
        ],
        "vs no islands": [
            _with(row, "difference_to_no_islands", "difference_to_no_islands_interval", "{:+.4f}")
            for row in rows
        ],
        "synchronised": [_one(row, "synchronised", "{:.1%}") for row in rows],
        "MiB/step": [_one(row, "bytes_per_step", "{:,.2f}", MIB) for row in rows],
        "DP MiB/step": [_one(row, "data_bytes_per_step", "{:,.2f}", MIB) for row in rows],
        "DP calls/step": [_one(row, "data_calls_per_step", "{:,g}") for row in rows],
        "islands MiB/step": [_one(row, "island_bytes_per_step", "{:,.3f}", MIB) for row in rows],
        "s/step": [_seconds(row) for row in rows],
        "tokens/s": [_one(row, "tokens_per_second", "{:,.0f}") for row in rows],
        "MFU": [_one(row, "mfu", "{:.1%}") for row in rows],
        "tokens": [_one(row, "trained_tokens", "{:,}") for row in rows],
    }
    filled = {title: texts for title, texts in columns.items() if any(text != "-" for text in texts)}
    return list(filled), [list(texts) for texts in zip(*filled.values(), strict=True)]


def _by_source(figures: Mapping[str, float | None], form: str) -> str:
    known = (f"{name} {'-' if value is None else form.format(value)}" for name, value in figures.items())
    return ", ".join(known) or "-"


def score_cells(contents: Contents) -> tuple[list[str], list[list[str]]]:
    """Return titles and texts of the benchmark table: a column per variant, "vs ratio 1" in brackets."""
    texts = []
    for row in contents.scores:
        texts.append([f"{row['task']}, {row['metric']}", *(_score(figure) for figure in row["figures"])])
    return ["benchmark", *(row["label"] for row in contents.rows)], texts


def markdown(contents: Contents) -> str:
    """Return the report as Markdown: the table, the settings that differ, and unfinished runs."""
    lines = [f"# {contents.title}", ""]
    if contents.rows:
        titles, texts = cells(contents.rows)
        lines += [*_markdown_table(titles, texts), "", NOTE, ""]
    if contents.scores:
        lines += ["## Benchmarks", "", *_markdown_table(*score_cells(contents)), ""]
    if contents.differing:
        lines += ["## Settings that differ", ""]
        lines += [*_markdown_table(["setting", "values"], _values(contents.differing)), ""]
    if contents.unfinished:
        lines += ["## Not finished", ""]
        lines += [*_markdown_table(["run", "status", "steps", "last loss"], _unfinished(contents)), ""]
    if contents.problems:
        lines += ["## Cannot be read", ""]
        lines += [f"- `{problem.folder}`: {problem.reason}" for problem in contents.problems] + [""]
    return "\n".join(lines)


def as_json(contents: Contents) -> dict[str, Any]:
    """Return the report as plain values."""
    return {
        "title": contents.title,
        "rows": list(contents.rows),
        "benchmarks": list(contents.scores),
        "settings_that_differ": dict(contents.differing),
        "not_finished": [{"run": str(run.folder), "status": _status(run)} for run in contents.unfinished],
        "cannot_be_read": [{"folder": str(p.folder), "why": p.reason} for p in contents.problems],
    }


def html(contents: Contents, pictures: Mapping[str, str]) -> str:
    """Return the HTML page. It loads nothing from outside."""
    parts = [f"<h1>{escape(contents.title)}</h1>"]
    if contents.rows:
        parts.append(_table(*cells(contents.rows)))
        parts.append(f'<p class="note">{escape(NOTE)}</p>')
    else:
        parts.append("<p>No run has finished yet.</p>")
    figures = "".join(
        f"<figure>{numbered(svg, number)}<figcaption>{escape(caption)}</figcaption></figure>"
        for number, (caption, svg) in enumerate(pictures.items())
    )
    if figures:
        parts.append(f'<div class="pictures">{figures}</div>')
    if contents.scores:
        parts.append("<h2>Benchmarks</h2>" + _table(*score_cells(contents)))
    if contents.differing:
        parts.append("<h2>Settings that differ</h2>")
        parts.append(_table(["setting", "values"], _values(contents.differing), "text"))
    if contents.unfinished:
        parts.append("<h2>Not finished</h2>")
        titles = ["run", "status", "steps", "last loss"]
        parts.append(_table(titles, _unfinished(contents), "text"))
    if contents.problems:
        parts.append("<h2>Cannot be read</h2>")
        problems = [[str(problem.folder), problem.reason] for problem in contents.problems]
        parts.append(_table(["folder", "why"], problems, "text"))
    folders = [[row["label"], folder] for row in contents.rows for folder in row["runs"]]
    if folders:
        parts.append("<h2>Run folders</h2>" + _table(["variant", "folder"], folders, "text"))
    same = [[name, typed(value)] for name, value in sorted(contents.same.items())]
    parts.append("<details><summary>Settings that all runs share</summary>")
    parts.append(_table(["setting", "value"], same, "text") + "</details>")
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(contents.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _table(titles: Sequence[str], texts: Sequence[Sequence[str]], kind: str = "figures") -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in texts)
    return f'<div class="wide" tabindex="0"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'


def _cell(text: str) -> str:
    kind = ' class="long"' if len(text) > 40 else ""
    return f"<td{kind}>{escape(text)}</td>"


def _markdown_table(titles: Sequence[str], texts: Sequence[Sequence[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *texts]
    return [
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    ]


def _status(run: Run) -> str:
    return "diverged" if run.diverged else run.status


def _unfinished(contents: Contents) -> list[list[str]]:
    rows = []
    for run in contents.unfinished:
        done = run.records[-1]["step"] if run.records else 0
        loss = next((r["loss"] for r in reversed(run.records) if r["loss"] is not None), None)
        steps = f"{done} of {run.config.train.steps}"
        rows.append([str(run.folder), _status(run), steps, "-" if loss is None else f"{loss:.4f}"])
    return rows


def _values(differing: Mapping[str, Sequence[Any]]) -> list[list[str]]:
    return [[name, ", ".join(typed(value) for value in found)] for name, found in sorted(differing.items())]


def _bases(labels: Sequence[str]) -> str:
    return "the mean of " * (len(labels) > 1) + " and ".join(labels) or "-"


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"one: {seeds[0]}"
    return ", ".join(map(str, seeds)) if len(seeds) <= 4 else f"{len(seeds)} seeds"


def _diverged(seeds: Sequence[int]) -> str:
    return f"; {', '.join(map(str, seeds))} diverged" if seeds else ""


def _seconds(row: Mapping[str, Any]) -> str:
    if row["step_seconds"] is None:
        return "-"
    return "{:.3f} ({:.3f} to {:.3f})".format(row["step_seconds"], *row["step_seconds_middle_half"])


def _score(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    text, delta = (
        _with(figure, "mean", "spread", "{:.4f}"),
        _with(figure, "difference_to_ratio_1", "difference_to_ratio_1_interval", "{:+.4f}"),
    )
    return text if delta == "-" else f"{text} ({delta})"


def _one(row: Mapping[str, Any], name: str, form: str, unit: float = 1) -> str:
    value = row[name]
    return "-" if value is None else form.format(value if unit == 1 else value / unit)


def _with(row: Mapping[str, Any], name: str, spread: str, form: str) -> str:
    if row[name] is None:
        return "-"
    text = form.format(row[name])
    return text if row[spread] is None else f"{text} ± {form.replace('+', '').format(row[spread])}"

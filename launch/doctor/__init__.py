"""`caat doctor`: shows in one screen what this machine can do, and what to install or set for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any

from rich.markup import escape
from rich.table import Table

from caat.parallel.world import is_first_rank, local_world_size, world_size
from conf.checks import require, require_positive
from conf.doctor import DoctorConfig
from conf.reading.verb import load_verb
from launch.command.console import console
from launch.command.results import result_file, write_json
from launch.doctor.probes import Finding, examine, guarded

MARKS = {"good": "[green]ok[/]", "note": "[yellow]--[/]", "bad": "[red]!![/]"}


def main(argv: list[str]) -> None:
    """Print the findings and write them as JSON; raise ``ValueError`` only for a wrong setting."""
    config = load_verb(DoctorConfig, argv)
    if config.out is not None:
        result_file(config.out)
    require(
        len(set(config.sizes)) > 1,
        f"sizes={config.sizes}: a rate and a delay need two different sizes in KiB, such as sizes=[4,1024]",
    )
    for size in config.sizes:
        require_positive(sizes=size)
    measured: dict[str, Any] = {}
    link = list(guarded(partial(_link, config, measured), "link")) if config.link else []
    if not is_first_rank():
        return
    findings = [*examine(), *link]
    _show(findings, measured)
    result = {"findings": [asdict(finding) for finding in findings], "link": measured or None}
    try:
        out = result_file(config.out or f"outputs/doctor-{datetime.now():%Y%m%d-%H%M%S}.json")
        write_json(out, result)
        print(out)
    except (OSError, ValueError) as error:
        print(error)


def _link(config: DoctorConfig, measured: dict[str, Any]) -> Iterator[Finding]:
    from launch.doctor.link import measure_here, measure_ranks

    sizes = sorted(size * 1024 for size in config.sizes)
    measured |= measure_ranks(sizes) if world_size() > 1 else measure_here(sizes)
    rate, delay = measured["bytes_per_second"], measured["delay_seconds"]
    between = f"{measured['processes']} processes, {measured['backend']} on {measured['device']}"
    # Not :.3g, which writes 3600 as 3.6e+03.
    one_node = local_world_size(unknown=world_size()) == world_size()
    settings = f"link={rate * 8 / 1e6:.0f}mbit delay={delay * 1e6:.0f}us"
    settings += f" message_cost={measured['message_seconds'] * 1e6:.0f}us"
    if core_rate := measured["core_bytes_per_second"]:
        settings += f" core_rate={core_rate * 8 / 1e6:.0f}mbit"
    plans = " (caat plan calls it node_link)" if one_node else ""
    found = f"{between}: {rate / 1e6:,.0f} MB/s, {delay * 1e6:,.0f} us; {settings}{plans}"
    yield Finding("link", "good", found)


def _show(findings: list[Finding], measured: dict[str, Any]) -> None:
    out = console()
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in findings:
        remedy = f" [dim]({escape(finding.remedy)})[/]" if finding.remedy else ""
        table.add_row(MARKS[finding.state], finding.what, escape(finding.found) + remedy)
    for message in measured.get("messages", []):
        size, seconds = message["bytes"], message["seconds"]
        text = f"{size / 1024:,.0f} KiB in {seconds * 1e3:,.2f} ms, {size / seconds / 1e6:,.0f} MB/s"
        table.add_row("", "", f"all-reduce of {text}")
    out.print(table)
    bad = sum(finding.state == "bad" for finding in findings)
    print(f"{bad} problem{'s' * (bad != 1)} to fix" if bad else "ready to train")

"""`caat evaluate`: runs lm-eval benchmarks on a trained model, in one process or several."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from caat.parallel.world import is_first_rank
from caat.storage.records import read_record
from caat.training.checkpoint.architecture import read_architecture
from caat.training.checkpoint.state import read_state
from conf.evaluate import EvaluateConfig
from conf.reading.saved import read_config
from conf.reading.verb import load_verb
from launch.command.console import console
from launch.command.results import write_json
from launch.command.trained import (
    find_trained,
    on_mesh,
    ran_in_processes,
    result_path,
    run_of,
    tokenizer_of,
)

if TYPE_CHECKING:
    from eval.quality.evaluate import Results
    from eval.quality.tasks import Tasks


def main(argv: list[str]) -> None:
    """Run ``tasks`` on the checkpoint; print a table, write JSON, and add the results to the run's metrics.

    The file's path is the last line. Raises ``ValueError`` for a wrong checkpoint, task or setting, before
    any process starts.
    """
    config = load_verb(EvaluateConfig, argv)
    folder, architecture = find_trained(config.checkpoint, config.launch, replicas=True)
    tokenizer_of(folder, architecture)
    from eval.quality.tasks import find_tasks

    tasks = find_tasks([each.strip() for each in config.tasks.strip("[]").split(",") if each.strip()])
    tasks.check(architecture.model.sequence, config.num_fewshot)
    out = result_path(folder, config.out, f"evaluation{config.filename_suffix}.json")
    if not ran_in_processes(f"{__package__}.evaluate", argv, config.launch):
        _evaluate(config, folder, tasks, out)


def _evaluate(config: EvaluateConfig, folder: Path, tasks: Tasks, out: Path) -> None:
    from caat.data.tokenizer import find_tokenizer, load_tokenizer
    from eval.quality.evaluate import evaluate
    from eval.quality.lm_eval_model import CaatLM

    # Bind the bar to the terminal now: evaluate() redirects stdout to hide what lm-eval prints.
    bar = Progress(console=Console(file=sys.stdout), disable=not is_first_rank())
    with on_mesh(folder, config.launch, config.precision) as model, bar:
        line = bar.add_task("requests", total=None)
        lm = CaatLM(
            model,
            load_tokenizer(find_tokenizer(folder)),
            config.batch,
            add_bos=config.add_bos,
            kv_cache=config.cache,
            ends=read_architecture(folder).ends,
            watch=lambda done, total: bar.update(line, completed=done, total=total),
        )
        results = evaluate(lm, tasks, config.limit, config.num_fewshot)
    if is_first_rank():
        _write(config, folder, results, out)


def _write(config: EvaluateConfig, folder: Path, results: Results, out: Path) -> None:
    names = ("limit", "num_fewshot", "add_bos", "precision")
    settings = {name: getattr(config, name) for name in names}
    cache = {"cache": asdict(config.cache)} if config.cache.place == "host" else {}
    result = {"checkpoint": str(folder), **settings, **cache}
    write_json(out, {**result, "results": _results_in(out, result) | results})
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("task", "metric"):
        table.add_column(title)
    for title in ("value", "± standard error"):
        table.add_column(title, justify="right")
    for task, metrics in results.items():
        for metric, value in metrics.items():
            if not metric.endswith("_stderr"):
                error = metrics.get(f"{metric}_stderr")
                table.add_row(task, metric, f"{value:.4f}", "-" if error is None else f"{error:.4f}")
    console().print(table)
    try:
        # Results of a part of the documents, or with other contexts, are not comparable between runs.
        if not config.filename_suffix:
            _track(folder, results, config.track_online)
    except ValueError as error:
        print(f"caat: WARNING: not added to the metrics of the run: {error}", file=sys.stderr)
    print(out)


def _results_in(out: Path, made: dict[str, Any]) -> Results:
    """Return the results of earlier tasks in ``out`` if they, too, were ``made`` so; else none."""
    try:
        earlier = read_record(out, dict[str, Any])
    except ValueError:
        return {}
    results = earlier.pop("results", None)
    return results if earlier == made and isinstance(results, dict) else {}


def _track(folder: Path, results: Results, online: bool) -> None:
    """Add the results to the metrics of the checkpoint's run, if it has one."""
    from caat.training.trackers import open_trackers
    from eval.quality.evaluate import flat

    run = run_of(folder)
    if run is None or not ((run / "config.yaml").is_file() and (folder / "state.json").is_file()):
        return
    state, settings = read_state(folder)[0], read_config(run / "config.yaml")
    if settings.tracker.wandb == "online" and not online:
        print(
            "note: not sent to Weights & Biases: give track_online=true if the run is yours", file=sys.stderr
        )
        settings.tracker.wandb, settings.tracker.artifacts = "none", False
    for tracker in open_trackers(settings, run, None):
        tracker.log({"step": state.step, "tokens": state.tokens, **flat(results)})
        tracker.close({})


if __name__ == "__main__":
    from launch.command.errors import user_errors

    with user_errors():
        main(sys.argv[1:])

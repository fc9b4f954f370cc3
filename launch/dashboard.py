"""`caat dashboard`: creates a Weights & Biases workspace from code, the same one for every project."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from conf.checks import first_line, require
from conf.dashboard import DashboardConfig
from conf.reading.verb import load_verb
from launch.command.available import installed, wandb_login
from launch.command.results import result_file, write_json

X, GROUP = "tokens", "sync.ratio"


@dataclass(frozen=True)
class Panel:
    """One plot: ``kind`` is line (``metric`` by trained tokens), bar or scatter (final values)."""

    kind: str
    title: str
    metric: str
    # The x axis of a scatter plot.
    against: str = X


SECTIONS = {
    "Loss": [
        Panel("line", "Validation loss", "validation_loss"),
        Panel("line", "Training loss", "loss"),
        Panel("scatter", "Loss against bytes", "validation_loss", "tensor_parallel_bytes_forward"),
    ],
    "Communication": [
        Panel("bar", "Share of bytes saved", "bytes_saved"),
        Panel("line", "Bytes forward, per step and process", "tensor_parallel_bytes_forward"),
        Panel("line", "Bytes backward, per step and process", "tensor_parallel_bytes_backward"),
        Panel("line", "Gradient bytes between replicas, per step", "data_parallel_bytes_gradients"),
        Panel("line", "Weight bytes between replicas, per step", "data_parallel_bytes_weights"),
        Panel("line", "Bytes between islands, per step", "islands_bytes_changes"),
        Panel("line", "Distance between islands", "islands_distance"),
        Panel("line", "Gradient messages between replicas, per step", "data_parallel_calls_gradients"),
    ],
    "Speed": [
        Panel("line", "Tokens per second", "tokens_per_second"),
        Panel("line", "MFU", "mfu"),
        Panel("line", "Seconds waiting for data", "data_wait_seconds"),
    ],
    "Health": [
        Panel("line", "Gradient norm", "grad_norm"),
        Panel("line", "Learning rate", "learning_rate"),
        Panel("line", "Skipped steps", "skipped_steps"),
        Panel("line", "Peak memory (GiB)", "memory_gib"),
    ],
}


def main(argv: list[str]) -> None:
    """Create the workspace and print its address; raise ``ValueError`` if wandb is not set up for it."""
    config = load_verb(DashboardConfig, argv)
    out = result_file(config.out or "outputs/dashboard.json")
    if not config.dry_run:
        require(
            installed("wandb_workspaces"),
            "caat dashboard needs wandb-workspaces: pip install wandb-workspaces, or give dry_run=true to "
            "see what it would create",
        )
        require(
            wandb_login(),
            "caat dashboard needs an account: run `wandb login`, or give dry_run=true to see what it would "
            "create",
        )
    for section, panels in SECTIONS.items():
        print(section)
        for panel in panels:
            print(f"  {panel.kind:<8} {panel.title}: {panel.metric}, by {GROUP}")
    if not config.dry_run:
        try:
            workspace = make_workspace(config)
            workspace.save()
        except ValueError:
            raise
        # The client's errors are of many types: of the network, the account, or the service.
        except Exception as error:
            raise ValueError(
                f"Weights & Biases did not take the workspace ({first_line(error)}): check entity=, project= "
                "and `wandb login`"
            ) from error
        print(workspace.url)
    write_json(out, describe(config))
    print(out)


def describe(config: DashboardConfig) -> dict[str, Any]:
    """Return the dashboard as plain values."""
    sections = {name: [asdict(panel) for panel in panels] for name, panels in SECTIONS.items()}
    place = {"entity": config.entity, "project": config.project, "name": config.name}
    return place | {"grouped_by": GROUP, "sections": sections}


def make_workspace(config: DashboardConfig) -> Any:
    """Return the workspace as an object of wandb-workspaces, not saved yet."""
    import wandb
    import wandb_workspaces.workspaces as ws

    entity = config.entity or wandb.Api().default_entity
    if not entity:
        raise ValueError("your wandb account has no default team: give entity=TEAM")
    sections = [
        ws.Section(name=name, panels=[_panel(panel) for panel in panels], is_open=True)
        for name, panels in SECTIONS.items()
    ]
    return ws.Workspace(
        entity=entity,
        project=config.project,
        name=config.name,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=X),
        runset_settings=ws.RunsetSettings(groupby=[ws.Config(GROUP)]),
    )


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr

    if panel.kind == "line":
        return wr.LinePlot(title=panel.title, x=X, y=[panel.metric], groupby=wr.Config(GROUP))
    if panel.kind == "bar":
        return wr.BarPlot(title=panel.title, metrics=[panel.metric], groupby=wr.Config(GROUP))
    x, y = wr.SummaryMetric(panel.against), wr.SummaryMetric(panel.metric)
    return wr.ScatterPlot(title=panel.title, x=x, y=y)


if __name__ == "__main__":
    import sys

    from launch.command.errors import user_errors

    with user_errors():
        main(sys.argv[1:])

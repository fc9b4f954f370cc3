"""`caat dashboard`: the dashboard that it describes, as built by wandb-workspaces; nothing is sent."""

from __future__ import annotations

import json

import pytest

from conf.dashboard import DashboardConfig
from launch import dashboard


def test_a_dry_run_needs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dashboard, "installed", lambda module: False)
    dashboard.main(["dry_run=true", "project=mine", f"out={tmp_path / 'd.json'}"])
    printed = capsys.readouterr().out
    assert printed.strip().splitlines()[-1] == str(tmp_path / "d.json")
    described = json.loads((tmp_path / "d.json").read_text())
    assert described["project"] == "mine" and described["grouped_by"] == "sync.ratio"
    shown = {panel["metric"] for panels in described["sections"].values() for panel in panels}
    assert {"validation_loss", "bytes_saved", "tokens_per_second", "mfu", "grad_norm"} <= shown


@pytest.mark.parametrize(("there", "says"), [(False, "needs wandb-workspaces"), (True, "run `wandb login`")])
def test_what_is_missing_is_said_at_once(there, says, monkeypatch):
    monkeypatch.setattr(dashboard, "installed", lambda module: there)
    monkeypatch.setattr(dashboard, "wandb_login", lambda: False)
    with pytest.raises(ValueError, match=says):
        dashboard.main([])


@pytest.mark.filterwarnings("ignore")
def test_the_workspace_has_every_panel():
    pytest.importorskip("wandb_workspaces")
    workspace = dashboard.make_workspace(DashboardConfig(entity="me", project="mine"))
    assert (workspace.entity, workspace.project) == ("me", "mine")
    made = {section.name: len(section.panels) for section in workspace.sections}
    assert made == {name: len(panels) for name, panels in dashboard.SECTIONS.items()}
    spec = workspace._to_model().model_dump_json(by_alias=True)
    for panels in dashboard.SECTIONS.values():
        for panel in panels:
            assert f'"{panel.title}"' in spec and panel.metric in spec

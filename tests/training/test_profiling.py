"""Profiles of chosen steps: which are written, and what they hold."""

from __future__ import annotations

import gzip
import json

import torch

from caat.training.profiling import Profiler


def steps_in(trace) -> set[str]:
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any(each.get("name") == "aten::mm" for each in events)
    return {each["name"] for each in events if str(each.get("name")).startswith("step ")}


def test_each_range_is_written_and_what_a_stop_cuts(tmp_path):
    said: list[str] = []
    folder = tmp_path / "profile"
    profiler = Profiler({2: 3, 5: 9}, folder, torch.device("cpu"), said.append)
    for step in range(1, 7):
        profiler.start(step)
        torch.ones(4, 4) @ torch.ones(4, 4)
        profiler.stop(step, must=step == 6)
    assert sorted(each.name for each in folder.iterdir()) == [
        "steps-2-3.json.gz",
        "steps-2-3.txt",
        "steps-5-6.json.gz",
        "steps-5-6.txt",
    ]
    assert steps_in(folder / "steps-2-3.json.gz") == {"step 2", "step 3"}
    assert steps_in(folder / "steps-5-6.json.gz") == {"step 5", "step 6"}
    assert "aten::mm" in (folder / "steps-2-3.txt").read_text()
    assert [text.split(":")[0] for text in said] == ["profiled steps 2 to 3", "profiled steps 5 to 6"]


def test_a_resumed_run_profiles_the_rest_of_a_range(tmp_path):
    profiler = Profiler({2: 4}, tmp_path, torch.device("cpu"), print)
    for step in (4, 5):
        profiler.start(step)
        torch.ones(4, 4) @ torch.ones(4, 4)
        profiler.stop(step)
    assert steps_in(tmp_path / "steps-4-4.json.gz") == {"step 4"}


def test_a_profile_that_cannot_be_written_is_a_warning(tmp_path):
    said: list[str] = []
    (tmp_path / "profile").write_text("")
    profiler = Profiler({1: 1}, tmp_path / "profile", torch.device("cpu"), said.append)
    profiler.start(1)
    profiler.stop(1)
    assert said[0].startswith("WARNING: the profile of steps 1 to 1 is not written")

"""`caat bench gpu`: every part runs in a small size on a CPU; the page and the JSON say what happened."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from conf.bench import BenchGpuConfig
from conf.bench.gpu import PARTS
from launch.bench.gpu import main
from launch.bench.gpu_parts import parts_of
from tests.paragraphs import PARAGRAPHS


def text_file(folder: Path) -> str:
    path = folder / "own text.txt"
    path.write_text("\n\n".join(PARAGRAPHS))
    return str(path)


def run(folder: Path, *arguments: str) -> tuple[int, dict, str]:
    """Return the status, the JSON and the page of a trial on the CPU."""
    out = folder / "all of it.json"
    status = main(["device=cpu", f"out={out}", *arguments])
    return status, json.loads(out.read_text()), out.with_suffix(".md").read_text()


@pytest.mark.slow
def test_every_part_runs_in_a_small_size(tmp_path):
    status, result, page = run(tmp_path, f"data={text_file(tmp_path)}", "minutes=30")
    assert [part["name"] for part in result["parts"]] == list(PARTS)
    for part in result["parts"]:
        assert part["status"] == 0, page
        # Tokenisation writes tokens, not figures.
        assert part["figures"] or part["name"] == "tokenize"
        assert f"    {part['command']}\n" in page
    assert status == 0
    losses = {
        part["name"]: part["figures"][-1]["loss"] for part in result["parts"] if "train" in part["name"]
    }
    assert losses["train-half"] != losses["train-full"]


def test_the_page_has_machine_commands_and_tables(tmp_path, capfd):
    status, result, page = run(tmp_path, "parts=[codecs,mfu-130m]")
    assert status == 0
    # In the order of the default, not of the words.
    assert [part["name"] for part in result["parts"]] == ["mfu-130m", "codecs"]
    assert f"| torch | {torch.__version__} |" in page
    mfu = result["parts"][0]["figures"]["rows"]
    assert [row["shards"] for row in mfu] == [1, 8] and all(row["spread_ms"] >= 0 for row in mfu)
    assert "spread_ms" in page and "encode GB/s" in page
    assert capfd.readouterr().out.splitlines()[-1] == str(tmp_path / "all of it.json")


def test_a_part_that_fails_is_reported_and_the_next_one_runs(tmp_path):
    status, result, page = run(tmp_path, f"data={tmp_path}/missing.txt", "parts=[tokenize,train-half]")
    assert status == 1 and [part["status"] for part in result["parts"]] == [2, 2]
    assert page.count("failed with status 2") == 2
    for folder in ("missing.txt", "all of it/tokenize"):
        assert f"caat: error: data.path={tmp_path}/{folder}" in page


def test_parts_are_stopped_at_the_end_of_the_time(tmp_path):
    status, result, page = run(tmp_path, "minutes=0.01", "parts=[codecs,step]")
    assert status == 1
    assert result["parts"][0]["status"].startswith("stopped at its limit")
    assert result["parts"][1]["status"] == "not reached"
    assert "not reached" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="needs a CUDA GPU, and torch finds none here"):
        main([f"out={tmp_path / 'gpu.json'}"])
    assert not list(tmp_path.iterdir())


def test_the_large_sizes_are_settings_that_the_commands_know(tmp_path):
    """The commands for a GPU cannot run here, but their settings can be read."""
    from conf import bench
    from conf.reading.verb import load_verb
    from launch.run.compose import compose

    for part in parts_of(BenchGpuConfig(), tmp_path):
        verb, *words = part.command
        assert shlex.split(part.line()) == ["caat", *part.command]
        if verb == "bench":
            load_verb(getattr(bench, f"Bench{words[0].capitalize()}Config"), words[1:])
        elif verb == "pretrain":
            compose(words)

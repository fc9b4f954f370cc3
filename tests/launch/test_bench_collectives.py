"""`caat bench collectives`: predictions, schedule files, and real networks."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest

from caat.planning.layouts import check_schedules, layout_of
from caat.topology.methods import METHODS, make_schedule
from caat.topology.schedule_file import read_schedule, write_schedule
from launch.bench import main
from launch.run.compose import compose
from tests.topology.networks import unit

MAY_NAMESPACE = os.geteuid() == 0 and all(map(shutil.which, ("ip", "tc", "sysctl")))


def bench(tmp_path, *settings: str) -> dict[str, dict]:
    main(["collectives", *settings, f"out={tmp_path / 'result.json'}"])
    assert (tmp_path / "result.png").stat().st_size > 1000
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    return {row["mode"]: row for row in rows}


def test_a_switch_without_links(tmp_path):
    network = tmp_path / "network.json"
    links = [[0, 3], [3, 0], [1, 3], [3, 1]]
    network.write_text(json.dumps({"nodes": 2, "switches": 2, "links": links}))
    assert bench(tmp_path, f"topology={network}", "simulate=true", "size=1mb")["ring"]["predicted"] > 0


def test_predictions_and_the_file_of_the_fastest(tmp_path, capsys):
    """A ring sends 2 (n - 1) / n of the data over each link; two ways halve that, which is the optimum."""
    file = tmp_path / "new" / "fastest.json"
    where = ["topology=mesh:2x3", "rate=100mbit", "size=40mb", "simulate=true", f"schedule={file}"]
    rows = bench(tmp_path, *where)
    assert list(rows) == ["gloo", *METHODS]
    once = 40e6 / 12.5e6
    for mode, predicted in (("gloo", once * 10 / 6), ("ring", once * 10 / 6), ("two-way-ring", once * 5 / 6)):
        assert rows[mode]["predicted"] == pytest.approx(predicted)
    for row in rows.values():
        assert row["optimum"] == pytest.approx(once * 5 / 6) and row["seconds"] is row["spread"] is None
        assert row["share"] == pytest.approx(row["optimum"] / row["predicted"])
    assert read_schedule(file) == make_schedule(unit("mesh:2x3"), "two-way-ring")
    printed = capsys.readouterr().out
    assert f"caat pretrain launch.processes=6 parallel.processes=1 data_sync.schedule={file}" in printed
    assert "Fastest schedule: two-way-ring, 2.67 s, 100% of the optimum" in printed
    assert printed.splitlines()[-1] == str(tmp_path / "result.json")

    # `auto` chooses among all methods, not only the one that was measured.
    bench(tmp_path, "topology=torus:4x4", "method=ring", "size=4mb", "simulate=true")
    printed = capsys.readouterr().out
    assert "schedule=auto would take 2d-ring" in printed and "data_sync.schedule=FILE\n" in printed
    bench(tmp_path, "topology=torus:4x4", "size=4mb", "simulate=true")
    assert "data_sync.schedule=auto data_sync.topology=torus:4x4\n" in capsys.readouterr().out

    before = file.read_bytes()
    again = bench(tmp_path, *where, "method=multitree", "pieces=1")
    assert list(again) == ["gloo", "multitree", str(file)]
    assert again[str(file)]["predicted"] == pytest.approx(once * 5 / 6) and file.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "is for 2 nodes, but topology=mesh:2x2 has 4"),
        ({"chunks": 2}, "chunk 1 is lost: no step sends it"),
        ({"nodes": 2, "links": [[0, 1]]}, "uses a link from 1 to 0, which is not one of its links"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path, content, says):
    file = tmp_path / "given.json"
    steps = [[1, 0, 1, 0, "reduce"], [2, 1, 0, 0, "copy"]]
    file.write_text(
        json.dumps({"nodes": 2, "links": [[0, 1], [1, 0]], "chunks": 1, "steps": steps} | content)
    )
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        main(["collectives", f"schedule={file}", f"out={tmp_path / 'result.json'}"])
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == [file]


def test_a_network_in_two_parts_is_one_line(tmp_path):
    file = tmp_path / "net.json"
    file.write_text(json.dumps({"nodes": 4, "links": [[0, 1], [1, 0], [2, 3], [3, 2]]}))
    with pytest.raises(ValueError, match="is not connected: no path from 0 to node 2"):
        main(["collectives", f"topology={file}", f"out={tmp_path / 'result.json'}"])
    assert list(tmp_path.iterdir()) == [file]


def test_a_tree_that_gives_nodes_no_sum_is_for_zero_0(tmp_path, capsys):
    """Two of four nodes have slow links: trees whose roots are these beat the bound of equal shares."""
    network, file = tmp_path / "net.json", tmp_path / "fast.json"
    rates = {0: "100mbit", 1: "10gbit", 2: "10gbit", 3: "100mbit"}
    links = [link for node, rate in rates.items() for link in ([node, 4, rate], [4, node, rate])]
    network.write_text(json.dumps({"nodes": 4, "switches": 1, "links": links}))
    bench(tmp_path, f"topology={network}", "size=40mb", "simulate=true", f"schedule={file}")
    printed = capsys.readouterr().out
    assert "Fastest schedule: double-binary-tree" in printed and "nodes sum unequal shares" in printed
    assert f"data_sync.schedule={file} zero.stage=0 train.precision=fp32\n" in printed
    command = ["launch.processes=4", "parallel.processes=1", f"data_sync.schedule={file}"]
    config = compose([*command, "zero.stage=0", "train.precision=fp32"])
    check_schedules(config, layout_of(config, 4))


@pytest.mark.parametrize("setting", ["topology", "schedule"])
def test_the_result_does_not_overwrite_a_file_that_was_given(tmp_path, setting, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "given.json"
    if setting == "topology":
        file.write_text('{"nodes": 2, "links": [[0, 1], [1, 0]]}')
    else:
        write_schedule(make_schedule(unit("ring:2"), "ring"), file)
    before = file.read_bytes()
    where = ["topology=ring:2"] if setting == "schedule" else []
    settings = ["collectives", "simulate=true", "size=1mb", *where, f"{setting}=~/given.json"]
    with pytest.raises(ValueError, match=f"would overwrite {setting}=~/given.json"):
        main([*settings, f"out={file}"])
    assert list(tmp_path.iterdir()) == [file]
    main([*settings, f"out={tmp_path / 'result.json'}"])
    assert file.read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(not MAY_NAMESPACE, reason="network namespaces need root, ip and tc")
@pytest.mark.parametrize("network", ["mesh:2x2", "fattree:2x2x1"])
def test_a_real_network(tmp_path, network):
    """Sums are exact (or the command fails), and no faster than the links are."""
    rows = bench(tmp_path, f"topology={network}", "rate=50mbit", "size=2mb", "rounds=2")
    assert {"gloo", "two-way-ring", "multitree"} <= set(rows)
    for row in rows.values():
        # Each link may send 128 KiB at once above its rate.
        assert row["seconds"] >= row["optimum"] - 2**17 / 6.25e6 and row["spread"] >= 0

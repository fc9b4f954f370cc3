"""`caat plan budget=`: what it writes and prints, and mistakes."""

from __future__ import annotations

import json

import pytest

from launch import plan


def test_a_building(tmp_path, capsys):
    out = tmp_path / "building.json"
    plan.main(["budget=100e9", "law=hoffmann-1", "every=50", f"out={out}"])
    printed = capsys.readouterr().out
    made = json.loads(out.read_text())
    assert {
        "racks",
        "gpus",
        "it_megawatts",
        "total_megawatts",
        "sites",
        "parameters",
        "tokens",
        "law",
    } <= set(made)
    assert made["law"] == "hoffmann-1" and len(made["total_megawatts"]) == 2
    assert 6 * made["parameters"] * made["tokens"] == pytest.approx(made["flops"])
    assert f"{made['racks']:,} racks, {made['gpus']:,} GPUs" in printed
    assert "extrapolation" in printed and "they are no forecast" in printed
    # Every assumption is printed, and kept.
    for name in made["assumptions"]:
        assert name in ("out", "parameters") or f"  {name} " in printed, name
    assert printed.strip().splitlines()[-3:] == [
        str(tmp_path / "building-step.png"),
        str(tmp_path / "building-cost.png"),
        str(out),
    ]
    assert all((tmp_path / f"building-{name}.png").stat().st_size > 10_000 for name in ("step", "cost"))


def test_one_site_has_no_pictures_of_links(tmp_path):
    plan.main(["budget=1e9", f"out={tmp_path / 'one.json'}"])
    assert json.loads((tmp_path / "one.json").read_text())["sites"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]


MISTAKES = {
    "below a rack": (["budget=1e6"], ["budget=1e+06 buys no rack", "at least 4.286e+06"]),
    "no gradients": (["budget=1e9", "codec=threshold:5"], ["codec=threshold:5", "such as topk:0.01"]),
    "no matrices": (["budget=1e9", "codec=powersgd:4"], ["codec=powersgd:4", "choose another codec"]),
    "nothing": (["budget=0"], ["budget=0", "above 0"]),
    "no number": (["budget=much"], ["budget=much"]),
    "unknown law": (["budget=1e9", "law=kaplan"], ["law=kaplan", "tokens-20, hoffmann-1"]),
    "more than all": (["budget=1e9", "utilisation=1.2"], ["utilisation=1.2 is outside (0, 1]"]),
    "all of the time": (["budget=1e9", "waiting=1"], ["waiting=1.0 leaves no time"]),
    "a site for less than a rack": (
        ["budget=1e9", "site_megawatts=0.1"],
        ["site_megawatts=0.1 does not supply"],
    ),
    "a rack of a star": (["budget=1e9", "rack_kilowatts=1e29"], ["rack_kilowatts=1e+29"]),
    "years of waiting": (["budget=1e25"], ["wait all the time", "smaller budget"]),
    "more than there is": (["budget=1e300"], ["budget=1e+300 is too large"]),
    "racks for nothing": (["budget=1e9", "rack_cost=1e-300"], ["rack_cost=1e-300 is too close to 0"]),
    "a model beyond a float": (["budget=1e9", "parameters=[1e300]"], ["parameters=1e+300 is too large"]),
    "one PUE": (["budget=1e9", "pue=[1.2]"], ["pue=[1.2] must be two numbers"]),
    "PUE below 1": (["budget=1e9", "pue=[0.9,1.2]"], ["pue=[0.9, 1.2]", "from 1 on"]),
    "a rate without a unit": (["budget=1e9", "site_link=100"], ["site_link=100 is not a rate"]),
    "unknown codec": (["budget=1e9", "codec=zip"], ["zip"]),
    "unknown GPU": (["budget=1e9", "gpu=z9"], ["gpu=z9", "gb200"]),
    "a model of nothing": (["budget=1e9", "parameters=[0]"], ["parameters: 0", "above 0"]),
    "a setting of a run": (["budget=1e9", "model=7b"], ["model"]),
}


@pytest.mark.parametrize(("argv", "says"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(argv, says, tmp_path):
    with pytest.raises(ValueError) as mistake:
        plan.main([*argv, f"out={tmp_path / 'building.json'}"])
    assert all(text in str(mistake.value) for text in says), mistake.value
    assert not list(tmp_path.iterdir())

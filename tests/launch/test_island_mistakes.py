"""Users' mistakes in the settings of islands: each gives one line with the value, the rule and the remedy."""

from __future__ import annotations

import pytest

from tests.launch.test_mistakes import check_refused

# Settings, number of processes, and what the message must contain: the value and the remedy.
MISTAKES = {
    "islands not in world": (["parallel.islands=2"], 3, ["3 processes", "parallel.islands=2", "multiple"]),
    "P not in an island": (
        ["parallel.islands=2", "parallel.processes=4"],
        4,
        ["2 processes of an island", "parallel.processes=4"],
    ),
    "batch of islands": (["parallel.islands=2", "train.global_batch=20"], 16, ["train.global_batch=20"]),
    "islands apart": (
        ["parallel.islands=2", "islands.method=none"],
        2,
        ["islands.method=none", "parallel.islands=2", "different models"],
    ),
    "no islands": (["islands.every=5"], 1, ["no effect with one island", "parallel.islands=2"]),
    "outer lr of an average": (
        ["parallel.islands=2", "islands.method=average", "islands.lr=0.5"],
        2,
        ["islands.lr=0.5 has no effect", "islands.method=average"],
    ),
    "every of 0": (["parallel.islands=2", "islands.every=0"], 2, ["islands.every=0", "above 0"]),
    "a delay of a whole round": (["islands.delay=30"], 2, ["islands.delay=30", "islands.every=30"]),
    "islands that never meet": (["islands.alpha=1"], 2, ["islands.alpha=1.0", "never meet"]),
    "more fragments than blocks": (
        ["parallel.islands=2", "islands.fragments=5"],
        2,
        ["islands.fragments=5", "4 blocks"],
    ),
    "a ratio that changes": (
        ["islands.join=a:1", "sync.ratio={0:1,5:0.5}"],
        1,
        ["changes by an island's own steps", "give one ratio"],
    ),
    "no address": (["islands.join=garbage"], 1, ["islands.join=garbage is not HOST:PORT", "caat islands"]),
    "joining with several islands": (
        ["islands.join=a:1", "parallel.islands=2"],
        2,
        ["parallel.islands=2", "islands.join=a:1", "Leave one of the two out"],
    ),
    "joining without waiting": (
        ["islands.join=a:1", "islands.timeout=0"],
        1,
        ["islands.timeout=0.0", "above 0"],
    ),
    "waiting for nobody": (["islands.join=a:1", "islands.wait_for=0"], 1, ["islands.wait_for=0", "above 0"]),
    "joining in parts": (
        ["islands.join=a:1", "islands.fragments=2"],
        1,
        ["islands.fragments=2", "parallel.islands"],
    ),
    "joining with a sum of codes": (
        ["islands.join=a:1", "islands.codec=powersgd:2"],
        1,
        ["islands.codec=powersgd:2", "another codec"],
    ),
    "joining along a schedule": (
        ["islands.join=a:1", "islands.schedule=ring.json"],
        1,
        ["islands.schedule=ring.json does not go with islands.join", "from round to round", "leave"],
    ),
    "a network of other islands": (
        ["parallel.islands=2", "islands.schedule=auto", "islands.topology=full:4"],
        2,
        ["islands.topology=full:4 is for 4 islands, but there are 2", "give one for 2"],
    ),
    "a schedule with a codec of islands": (
        ["parallel.islands=2", "islands.schedule=auto", "islands.topology=full:2", "islands.codec=sign"],
        2,
        ["islands.codec=sign does not go with islands.schedule=auto", "leave one of the two out"],
    ),
    "joining with slamb": (
        ["islands.join=a:1", "islands.method=slamb", "optim.name=lamb"],
        1,
        ["islands.method=slamb does not go with islands.join", "parallel.islands"],
    ),
    "joining without a method": (
        ["islands.join=a:1", "islands.method=none"],
        1,
        ["islands.join=a:1 has no effect", "islands.method=none exchanges nothing"],
    ),
    "a name with a slash": (["islands.join=a:1", "islands.name=a/b"], 1, ["islands.name=a/b", "letters"]),
    "a name for nothing": (["islands.name=paris"], 1, ["islands.name=paris has no effect", "islands.join"]),
    "unknown codec of islands": (["islands.codec=int3"], 2, ["int3 is not known"]),
    "unknown method": (["islands.method=gossip"], 2, ["islands.method=gossip", "auto, none, average"]),
    "slamb without lamb": (
        ["parallel.islands=2", "islands.method=slamb"],
        2,
        ["islands.method=slamb", "optim.name=adamw", "set optim.name=lamb"],
    ),
    "dcs3gd now and then": (
        ["parallel.islands=2", "islands.method=dcs3gd"],
        2,
        ["islands.method=dcs3gd", "set islands.every=1, not 30"],
    ),
    "eager and late": (
        ["parallel.islands=2", "islands.eager=true", "islands.delay=3"],
        2,
        ["islands.delay=3 has no effect", "islands.eager"],
    ),
    "a share too small": (
        ["parallel.islands=2", "islands.method=slamb", "optim.name=lamb", "islands.rho=1e-5"],
        2,
        ["islands.rho=1e-05 is outside [1/32767, 1]"],
    ),
    "another method's setting": (
        ["parallel.islands=2", "islands.rho=0.2"],
        2,
        ["islands.rho=0.2 has no effect", "slamb, not", "islands.method=auto"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_refused(*MISTAKES[name])

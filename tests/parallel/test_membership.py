"""The decision of who takes part in a round, and who is behind."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from caat.parallel.membership import Asked, RefusedError, Standing, choose

ALIKE = {"zero.stage": "1", "the tokenizer": "x"}
AT = Standing("a", rounds=4, mark=1, weight=1, running=True, settings=ALIKE)


def asked(**standings: Standing) -> list[Asked]:
    return [
        Asked(f"{name}:1", f"{name}-host:1", replace(standing, name=name))
        for name, standing in standings.items()
    ]


def test_the_newest_anchor_leads():
    late, other = replace(AT, rounds=2, mark=7), replace(AT, mark=2)
    here = asked(a=late, b=other, c=AT, d=AT, e=replace(AT, weight=0))
    rounds = [choose(here, each.id, "now") for each in here]
    for place, found in enumerate(rounds):
        # b made the same number of rounds, but three islands have another anchor.
        assert (found.place, found.lead, found.behind, found.contributors) == (place, 2, (0, 1), (2, 3))
        assert (found.names, found.rounds, found.prefix) == (tuple("abcde"), 4, "c-host:1/now")
        assert found.late == (place < 2)
    joining = replace(AT, rounds=0, weight=0, running=False)
    assert choose(asked(a=joining, b=joining), "b:1", "now").contributors == ()
    assert choose(asked(a=joining), "a:1", "now").behind == ()


def test_another_layout_is_left_out_and_told_why():
    wrong = replace(AT, running=False, rounds=9, settings={"zero.stage": "3", "the tokenizer": "x"})
    for order in permutations("abc"):
        here = sorted(
            asked(**{order[0]: AT, order[1]: wrong, order[2]: replace(AT, rounds=3)}),
            key=lambda each: each.id,
        )
        for each in here:
            if each.standing.name != order[1]:
                names = choose(here, each.id, "now").names
                assert names == tuple(sorted((order[0], order[2])))
                continue
            with pytest.raises(RefusedError) as refused:
                choose(here, each.id, "now")
            assert f"zero.stage is 3 here and 1 on island {order[0]}" in str(refused.value)
            assert "Give zero.stage=1, or join another lighthouse" in str(refused.value)
            assert "tokenizer" not in str(refused.value)
    # If two islands start together, the first by name decides.
    fresh = [replace(each, running=False, rounds=0) for each in (AT, wrong)]
    here = asked(a=fresh[0], b=fresh[1])
    assert choose(here, "a:1", "now").names == ("a",)
    with pytest.raises(RefusedError, match=r"the tokenizer is y here and x on island a\. Give the same ones"):
        choose(asked(a=fresh[0], b=replace(fresh[0], settings=ALIKE | {"the tokenizer": "y"})), "b:1", "now")


def test_a_name_is_taken_once():
    second = Asked("a:2", "there:1", replace(AT, running=False))
    with pytest.raises(RefusedError, match=r"an island called a is there already.*islands.name="):
        choose([*asked(a=AT), second], "a:2", "now")
    assert choose([*asked(a=AT), second], "a:1", "now").names == ("a", "a")


def test_what_another_program_sent_is_no_standing():
    assert Standing.from_data(AT.to_data()) == AT
    for data in (None, {}, {"name": "a"}, AT.to_data() | {"more": 1}):
        assert Standing.from_data(data) is None

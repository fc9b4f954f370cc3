"""What a run says before its first step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from conf.partition import shared_channels
from launch.run.opening import uneven_channels


def settings(ratios: dict[int, float], hidden: int = 4096, shards: int = 8):
    return SimpleNamespace(
        model=SimpleNamespace(hidden=hidden),
        parallel=SimpleNamespace(tensor=shards),
        sync=SimpleNamespace(schedule=ratios),
    )


def test_channels_that_are_no_multiple_of_8_are_named_with_a_ratio_that_gives_one():
    assert uneven_channels(settings({0: 0.5, 100: 1.0, 200: 0.0})) == []
    # One shard shares all channels, whatever the ratio.
    assert uneven_channels(settings({0: 0.3}, shards=1)) == []
    (line,) = uneven_channels(settings({0: 0.5, 100: 0.3, 200: 0.3}))
    assert line.startswith("sync.ratio=0.3 shares 1228 of 4096 channels")


@pytest.mark.parametrize("hidden", [512, 768, 2048, 5120])
@pytest.mark.parametrize("ratio", [0.0123, 0.3, 0.334, 0.61, 0.999])
def test_the_ratio_that_it_suggests_gives_the_channels_that_it_names(hidden, ratio):
    for line in uneven_channels(settings({0: ratio}, hidden)):
        *_, suggested, _, channels = line.split()
        assert shared_channels(hidden, float(suggested.split("=")[1]), 8) == int(channels)
        assert int(channels) % 8 == 0

"""A datacenter for a sum of money, against the figures of arXiv 2407.12819 and against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caat.planning.building import (
    Way,
    between_sites,
    building,
    design,
    rate_needed,
    training,
    wait_seconds,
)
from caat.planning.data_traffic import encoded_bytes
from caat.planning.scaling import LAWS
from conf.budget import BudgetConfig

DEFAULT = BudgetConfig()


def test_a_hundred_billion_dollars():
    """The figures of arXiv 2407.12819, which rounds them down."""
    built = building(DEFAULT)
    assert built.racks == pytest.approx(23_300, rel=2e-3)
    assert built.gpus == pytest.approx(1.67e6, rel=1e-2)
    assert built.it_megawatts == pytest.approx(3_600, rel=2e-3)
    assert built.total_megawatts == [pytest.approx(4_160, rel=3e-3), pytest.approx(4_710, rel=3e-3)]
    # The largest power station of the USA that runs all year, Palo Verde, has 3.9 GW.
    assert building(replace(DEFAULT, site_megawatts=3_900)).sites == 2
    assert [row["parameters"] for row in design(DEFAULT)["models"]] == [50e12, 100e12]
    # A rack of 0.2 MW is not split between sites of 0.3 MW.
    assert building(replace(DEFAULT, site_megawatts=0.3)).sites == built.racks


@pytest.mark.parametrize("name", LAWS)
def test_laws_are_inverted(name):
    law = LAWS[name]
    for flops in (1e20, 5.76e23, 3e29):
        assert law.flops(law.parameters(flops)) == pytest.approx(flops, rel=1e-12)


def test_laws_give_the_sizes_of_their_paper():
    """Gopher's FLOPs, 5.76e23: 67, 63 and 40 B parameters in the paper."""
    sizes = {name: law.parameters(5.76e23) / 1e9 for name, law in LAWS.items()}
    assert sizes["hoffmann-1"] == pytest.approx(67, rel=0.03)
    assert sizes["hoffmann-2"] == pytest.approx(63, rel=0.05)
    assert sizes["hoffmann-3"] == pytest.approx(40, rel=0.05)
    assert sizes["tokens-20"] == pytest.approx(69.3, rel=1e-3)


def test_the_third_fit_minimises_its_loss():
    flops = 1e24

    def loss(parameters):
        return 406.4 / parameters**0.3392 + 410.7 / (flops / (6 * parameters)) ** 0.2849

    best = LAWS["hoffmann-3"].parameters(flops)
    assert loss(best) < min(loss(best * 1.02), loss(best / 1.02))


def small(**settings) -> BudgetConfig:
    """Two racks of 10 GPUs of 1 TFLOP/s, half of which are sustained, on two sites."""
    values = {"budget": 20.0, "compute_share": 0.5, "rack_cost": 5.0, "rack_gpus": 10, "rack_kilowatts": 1e3}
    values |= {"peak_tflops": 1.0, "utilisation": 0.5, "site_megawatts": 1.5, "batch_tokens": 1e6, "every": 4}
    values |= {"site_link": "8gbit", "site_delay": "1s", "codec": "none", "days": 1.0}
    return BudgetConfig(**values | settings)


def test_sites_by_hand():
    built = building(small())
    assert (built.racks, built.gpus, built.it_megawatts, built.sites) == (2, 20, 2.0, 2)
    assert built.flops_per_second == 20 * 1e12 * 0.5
    made = training(small(), built, 1e9)
    # 6 · 1e9 · 1e6 FLOPs at 1e13 FLOP/s.
    assert made["step_seconds"] == pytest.approx(600)
    assert made["tokens"] == pytest.approx(20e9)
    assert made["days"] == pytest.approx(6 * 1e9 * 20e9 / 1e13 / 86400)
    every, islands = between_sites(small(), built, made)
    # Each of two sites sends all: 2 GB of gradients at 1 GB/s, two delays; 4 GB of changes in 4 steps.
    assert every["wait_seconds"] == pytest.approx(2 + 2)
    assert islands["wait_seconds"] == pytest.approx((4 + 2) / 4)
    assert every["waiting"] == pytest.approx(4 / 604)
    assert every["cost_of_waiting"] == pytest.approx(4 / 604 * 10)
    assert every["days"] == pytest.approx(made["days"] * 604 / 600)


def test_the_link_that_is_needed_waits_as_long_as_allowed():
    config = small(waiting=0.01)
    built = building(config)
    made = training(config, built, 1e9)
    for row in between_sites(config, built, made):
        rate = row["link_needed_bits_per_second"] / 8
        again = between_sites(replace(config, site_link=f"{rate * 8 / 1e9:.12f}gbit"), built, made)
        assert next(r["waiting"] for r in again if r["name"] == row["name"]) == pytest.approx(0.01)


def test_no_rate_helps_if_the_delay_alone_is_too_long():
    config = small(site_delay="400s")
    every, *_ = between_sites(config, building(config), training(config, building(config), 1e9))
    assert every["link_needed_bits_per_second"] is None and every["waiting"] > 0.5


def test_a_codec_takes_its_bytes():
    config = small(codec="int8", site_delay="0s")
    rows = between_sites(config, building(config), training(config, building(config), 1e9))
    exact, coded = (row["bytes_per_step"] for row in rows[2:])
    assert exact / coded == pytest.approx(4 / (1 + 4 / 256), rel=1e-3)


def test_a_codec_that_is_gathered_sends_all_to_every_other_site():
    config = small(codec="topk:0.01", budget=50.0)
    built = building(config)
    assert built.sites == 5
    rows = between_sites(config, built, training(config, built, 2**20))
    # As the plan of a run counts it; 4 bytes of each value and of each index.
    wanted = encoded_bytes("topk:0.01", [2**20 // 5] * 5, True, ())
    assert rows[1]["bytes_per_step"] == pytest.approx(wanted, rel=1e-3)


def test_one_site_waits_for_none():
    config = small(site_megawatts=100)
    assert building(config).sites == 1 and design(config)["between_sites"] == []
    assert wait_seconds(Way("every step", 1, 8.0), 1, rate=1.0, delay=1.0) == 0


def test_rate_needed_by_hand():
    # 30 bytes in 5 steps of one second, four delays of 0.5 s: 3 s are left for them.
    assert rate_needed(Way("islands", 5, 30.0), 3, allowed=1.0, delay=0.5) == pytest.approx(10)

"""A datacenter for a sum of money, and what training on several of its sites waits for.

    racks       = budget · compute_share / rack_cost
    FLOPs       = racks · rack_gpus · peak · utilisation · seconds
    step        = 6 N · batch_tokens / (GPUs · peak · utilisation)       inside the sites
    between     = bytes of a sum over S sites / rate + 2 (S - 1) · delay

Between sites, the gradients of all N weights are summed in every step, or each site is an island that
exchanges its changes every H steps (:mod:`caat.planning.island_traffic`). A site sends 2 (S - 1) / S of the
bytes of all weights each time (a ring), whatever layout it has inside, and nothing hides them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from caat.planning.scaling import LARGEST_FITTED, LAWS
from conf.budget import BudgetConfig
from conf.checks import require
from conf.units import delay_seconds, rate_bytes

DAY = 86400
# Bytes of a number without a codec: gradients in bfloat16, changes of weights in float32.
GRADIENT, CHANGE = 2.0, 4.0
# Numbers for the bytes of one in a codec.
MANY = 2**20


@dataclass(frozen=True)
class Building:
    """What the money buys; powers in megawatts, ``flops_per_second`` sustained by all GPUs together."""

    racks: int
    gpus: int
    it_megawatts: float
    total_megawatts: list[float]
    sites: int
    flops_per_second: float


@dataclass(frozen=True)
class Way:
    """A way to train over sites: each sends ``sent_bytes`` once in ``every`` steps."""

    name: str
    every: int
    sent_bytes: float


def building(config: BudgetConfig) -> Building:
    """Return the building of ``config.budget``; a site gets as much power as ``site_megawatts``, at most."""
    racks = int(config.budget * config.compute_share / config.rack_cost)
    gpus = racks * config.rack_gpus
    power = racks * config.rack_kilowatts / 1e3
    total = [power * pue for pue in config.pue]
    # A rack is at one site.
    of_a_site = int(config.site_megawatts / (config.rack_kilowatts / 1e3 * config.pue[1]))
    sustained = gpus * config.hardware.peak * 1e12 * config.utilisation
    return Building(racks, gpus, power, total, ceil(racks / of_a_site), sustained)


def training(config: BudgetConfig, built: Building, parameters: float | None = None) -> dict[str, float]:
    """Return the model and tokens of the law for ``config.days``, or those of ``parameters`` and its days."""
    law = LAWS[config.law]
    if parameters is None:
        flops = built.flops_per_second * config.days * DAY
        parameters = law.parameters(flops)
    else:
        flops = law.flops(parameters)
    return {
        "parameters": parameters,
        "tokens": flops / (6 * parameters),
        "flops": flops,
        "days": flops / built.flops_per_second / DAY,
        "step_seconds": 6 * parameters * config.batch_tokens / built.flops_per_second,
    }


def ways(config: BudgetConfig, sites: int, parameters: float) -> list[Way]:
    """Return the ways to train ``parameters`` weights over ``sites``, from the most bytes to the least."""
    sent = 2 * (sites - 1) / sites * parameters
    every = f"islands, every {config.every} steps"
    gradients = [Way("gradients, every step", 1, sent * GRADIENT)]
    islands = [Way(every, config.every, sent * CHANGE)]
    if config.codec != "none":
        encoded = _encoded_bytes(config.codec, sites, parameters)
        gradients.append(Way(f"gradients, {config.codec}, every step", 1, encoded))
        islands.append(Way(f"{every}, {config.codec}", config.every, encoded))
    return gradients + islands


def wait_seconds(way: Way, sites: int, *, rate: float, delay: float) -> float:
    """Return the seconds per step, on average, that a site waits at ``rate`` bytes/s of its link."""
    return (way.sent_bytes / rate + 2 * (sites - 1) * delay) / way.every if sites > 1 else 0.0


def rate_needed(way: Way, sites: int, *, allowed: float, delay: float) -> float | None:
    """Return the bytes/s at which a site waits ``allowed`` seconds per step; None: the delay is more."""
    left = allowed * way.every - 2 * (sites - 1) * delay
    return way.sent_bytes / left if left > 0 else None


def between_sites(config: BudgetConfig, built: Building, made: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row for each way to train the model ``made`` over the sites; none for a single site.

    The link that is needed makes the wait ``config.waiting`` of the whole time.
    """
    if built.sites == 1:
        return []
    step, delay = made["step_seconds"], delay_seconds(config.site_delay)
    allowed = step * config.waiting / (1 - config.waiting)
    rows = []
    for way in ways(config, built.sites, made["parameters"]):
        waits = wait_seconds(way, built.sites, rate=rate_bytes(config.site_link), delay=delay)
        needed = rate_needed(way, built.sites, allowed=allowed, delay=delay)
        share = waits / (waits + step)
        require(
            share < 1,
            f"the sites wait all the time for each other, as a step takes {step:.3g} s: give a smaller "
            "budget, more batch_tokens, a faster site_link or a smaller site_delay",
        )
        rows.append(
            asdict(way)
            | {
                "bytes_per_step": way.sent_bytes / way.every,
                "wait_seconds": waits,
                "waiting": share,
                "cost_of_waiting": cost_of_waiting(config, waits, step),
                "link_needed_bits_per_second": None if needed is None else needed * 8,
                "days": made["days"] / (1 - share),
            }
        )
    return rows


def cost_of_waiting(config: BudgetConfig, waits: float, step: float) -> float:
    """Return the dollars of the racks that wait ``waits`` seconds after each step of ``step`` seconds."""
    return config.budget * config.compute_share * waits / (waits + step)


def design(config: BudgetConfig) -> dict[str, Any]:
    """Return the building, the model of the law, the other models, and the ways to train over the sites."""
    built = building(config)
    made, *models = [training(config, built, size) for size in (None, *config.parameters)]
    return {
        "racks": built.racks,
        "gpus": built.gpus,
        "it_megawatts": built.it_megawatts,
        "total_megawatts": built.total_megawatts,
        "sites": built.sites,
        "law": config.law,
        "law_source": LAWS[config.law].source,
        "extrapolates": made["parameters"] / LARGEST_FITTED,
        "sustained_flops_per_second": built.flops_per_second,
        **made,
        "models": models,
        "between_sites": between_sites(config, built, made),
        "assumptions": asdict(config) | {"peak_tflops": config.hardware.peak},
    }


def _encoded_bytes(spec: str, sites: int, parameters: float) -> float:
    """Return the bytes that a site sends for ``parameters`` numbers in the codec ``spec``."""
    from caat.compression.spec import make_codec

    codec = make_codec(spec)
    # Messages that are only summed after they are decoded go to every other site as a whole.
    times = sites - 1 if codec.way == "gathered" else 2 * (sites - 1) / sites
    return times * parameters * codec.size(MANY) / MANY

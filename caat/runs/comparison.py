"""The variants that a variant is compared with, and the difference seed by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import mean

from caat.runs.reading import Run
from caat.runs.variants import Sample, Variant
from conf.deployment import DEPLOYMENT

# Prefixes of the settings of codecs and of islands.
CODECS, ISLANDS = ("data_sync.",), ("islands.", "parallel.islands")


def baseline(variant: Variant, among: Sequence[Variant]) -> list[Variant]:
    """Return the variants at ratio 1 that ``variant`` is compared with; none for ratio 1 itself.

    They agree with ``variant`` in all settings that matter at ratio 1 and share a seed with it. Among them,
    those with the fewest differences are chosen: first in what is trained, then in where and how. Variants
    with the default ``sync.wire_dtype`` are preferred to those that round messages.
    """
    full = [v for v in among if v.full and _at_ratio_1(v) == _at_ratio_1(variant)]
    full = [v for v in full if v.runs[0].config.sync.wire_dtype == "auto"] or full
    shared = [v for v in full if v.seeds & variant.seeds]
    if variant in full or not shared:
        return []
    nearest = min(_distance(variant, v) for v in shared)
    return [v for v in shared if _distance(variant, v) == nearest]


def without_codec(variant: Variant, among: Sequence[Variant]) -> list[Variant]:
    """Return the variants without codecs that ``variant`` is compared with; none if it has none itself."""
    return _without(variant, among, lambda v: v.exact, CODECS)


def without_islands(variant: Variant, among: Sequence[Variant]) -> list[Variant]:
    """Return the variants without islands that ``variant`` is compared with; none if it has none itself."""
    return _without(variant, among, lambda v: v.one_world, ISLANDS)


def _without(
    variant: Variant, among: Sequence[Variant], plain: Callable[[Variant], bool], prefixes: tuple[str, ...]
) -> list[Variant]:
    """Return the ``plain`` variants with which a variant that is not plain is compared.

    They agree with ``variant`` in the ratio of every step and in all other settings of what is trained,
    those with the ``prefixes`` aside, and share a seed with it. Among them, those with the fewest differences
    in where and how they were trained are chosen.
    """

    def trained(v: Variant) -> tuple:
        others = [pair for pair in _trained(v) if not pair[0].startswith(prefixes)]
        return v.runs[0].config.sync.schedule, others

    found = [v for v in among if plain(v) and trained(v) == trained(variant) and v.seeds & variant.seeds]
    if plain(variant) or not found:
        return []
    nearest = min(_distance(variant, v) for v in found)
    return [v for v in found if _distance(variant, v) == nearest]


def paired_difference(
    variant: Variant, bases: Sequence[Variant], figure: Callable[[Run], float | None]
) -> Sample | None:
    """Return ``figure`` minus that of ``bases`` (the mean, if there are several) for each common seed.

    None if there is no common seed.
    """
    base: dict[int, list[float]] = defaultdict(list)
    for other in bases:
        for seed, value in other.by_seed(figure).items():
            base[seed].append(value)
    own = variant.by_seed(figure).items()
    differences = [value - mean(base[seed]) for seed, value in own if seed in base]
    return Sample(tuple(differences)) if differences else None


def _trained(variant: Variant) -> tuple:
    return tuple(pair for pair in variant.others if not pair[0].startswith(DEPLOYMENT))


def _at_ratio_1(variant: Variant) -> tuple:
    """Return the settings that matter at ratio 1, where shards and the processes that hold them do not."""
    where = ("sync.", "parallel.tensor", "parallel.processes")
    return tuple(pair for pair in _trained(variant) if not pair[0].startswith(where))


def _distance(one: Variant, other: Variant) -> tuple[int, int]:
    """Count the differing settings, ratio aside: first those of what is trained, then of where and how."""
    trained = len(set(_trained(one)) - set(_trained(other)))
    return trained, len(set(one.others) - set(other.others)) - trained

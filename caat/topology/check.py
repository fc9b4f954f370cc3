"""The check that a schedule gathers, scatters or sums what it should."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from caat.topology.schedule import COLLECTIVES, Move, Schedule
from conf.checks import require


def check_schedule(schedule: Schedule, collective: str, name: str = "schedule") -> None:
    """Raise ``ValueError``, with one line that begins with ``name``, unless the schedule is correct.

    Each chunk must be summed along a tree: every node but one sends its sum once, after all that it receives
    (reduce-scatter, all-reduce). Then each chunk must be copied along a tree from the node that holds it, so
    that all nodes get the same bits (all-gather, all-reduce). A message then never overwrites a chunk that is
    still to be sent.
    """
    assert collective in COLLECTIVES
    _check_links(schedule, name)
    by_chunk: dict[int, list[Move]] = defaultdict(list)
    for move in schedule.moves:
        by_chunk[move.chunk].append(move)
    for chunk in range(schedule.chunks):
        its, what = by_chunk[chunk], f"{name} chunk {chunk}"
        require(bool(its), f"{what} is lost: no step sends it")
        reduces, copies = [m for m in its if m.reduce], [m for m in its if not m.reduce]
        require(
            not reduces or collective != "all-gather", f"{what} is reduced, but an all-gather only copies"
        )
        require(
            not copies or collective != "reduce-scatter", f"{what} is copied, but a reduce-scatter only sums"
        )
        holder, since = None, -1
        if collective != "all-gather":
            holder, since = _check_sum(reduces, schedule.nodes, what)
        if collective != "reduce-scatter":
            _check_copies(copies, schedule.nodes, what, holder, since)


def _check_links(schedule: Schedule, name: str) -> None:
    used = set()
    for step, source, target, chunk, _ in schedule.moves:
        ends = 0 <= source < schedule.nodes and 0 <= target < schedule.nodes and source != target
        what = f"{name} step {step} sends chunk {chunk} from {source} to {target}"
        require(ends, f"{what}, which must be two of the {schedule.nodes} nodes, numbered from 0")
        require(0 <= chunk < schedule.chunks, f"{what}, but its {schedule.chunks} chunks are numbered from 0")
        require(
            (step, source, target) not in used,
            f"{name} step {step} uses the link from {source} to {target} twice: send one chunk a step",
        )
        used.add((step, source, target))


def _check_sum(reduces: Iterable[Move], nodes: int, what: str) -> tuple[int, int]:
    """Check that the moves sum over all nodes. Return the node that holds the sum, and since which step."""
    sent: dict[int, Move] = {}
    last: dict[int, int] = defaultdict(lambda: -1)
    for move in reduces:
        require(
            move.source not in sent,
            f"{what}: node {move.source} sends its sum twice, which adds its contribution twice",
        )
        sent[move.source] = move
        last[move.target] = max(last[move.target], move.step)
    roots = [node for node in range(nodes) if node not in sent]
    require(len(roots) > 0, f"{what} is lost: every node sends its sum on")
    require(
        len(roots) == 1,
        f"{what} is lost: nodes {roots[0]} and {roots[-1]} both keep a sum, and no node gets the sum of all",
    )
    for move in sent.values():
        require(
            last[move.source] < move.step,
            f"{what}: node {move.source} sends its sum in step {move.step}, but receives another "
            f"contribution in step {last[move.source]}, which is lost",
        )
    return roots[0], last[roots[0]]


def _check_copies(copies: Iterable[Move], nodes: int, what: str, holder: int | None, since: int) -> None:
    """Check that the copies reach every node from ``holder``, which has the chunk after step ``since``.

    Without ``holder``, it is the one node that receives no copy.
    """
    has: dict[int, int] = {}
    for move in copies:
        twice = move.target in has or move.target == holder
        require(not twice, f"{what}: node {move.target} has it already when step {move.step} sends it a copy")
        has[move.target] = move.step
    lacking = [node for node in range(nodes) if node not in has and node != holder]
    if holder is None:
        require(bool(lacking), f"{what} is lost: every node receives it, so that no node has it first")
        holder, *lacking = lacking
    require(not lacking, f"{what} is lost: it does not reach node {lacking[0] if lacking else 0}")
    has[holder] = since
    for move in copies:
        require(
            has[move.source] < move.step,
            f"{what}: node {move.source} sends a copy in step {move.step}, but has it only after step "
            f"{has[move.source]}",
        )

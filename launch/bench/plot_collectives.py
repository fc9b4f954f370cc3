"""The picture of `caat bench collectives`: the seconds of each, and the fastest schedule on its network."""

from __future__ import annotations

from itertools import groupby
from math import cos, pi, sin
from pathlib import Path
from textwrap import fill

import networkx as nx
from matplotlib.axes import Axes

from caat.topology.graph import Topology
from caat.topology.schedule import Move, Schedule
from launch.command.figures import empty_figure

# Steps that are drawn, and the most nodes whose chunks, or own numbers, can still be read.
STEPS = 4
WITH_CHUNKS, WITH_NUMBERS = 12, 36
REDUCE, COPY, MEASURED = "#c44e52", "#4c72b0", "#8172b3"
Places = dict[int, tuple[float, float]]


def plot_collectives(
    rows: list[dict], title: str, path: Path, *, network: Topology, schedule: Schedule, name: str
) -> None:
    """Plot the seconds above, and below the first steps of ``schedule``, which is called ``name``."""
    figure = empty_figure(3.8 + 0.3 * len(rows), width=10)
    grid = figure.add_gridspec(2, STEPS, height_ratios=[0.6 + 0.3 * len(rows), 2.6])
    _bars(figure.add_subplot(grid[0, :]), rows, title)
    places = _places(network)
    for number, (step, moves) in enumerate(groupby(schedule.moves, key=lambda move: move.step)):
        if number == STEPS:
            break
        axes = figure.add_subplot(grid[1, number])
        _step(axes, network, places, list(moves))
        axes.set_title(
            f"{name}, step {step} of {schedule.steps}" if not number else f"step {step}", fontsize=8
        )
    figure.supxlabel("red: parts of a sum; blue: copies; beside an arrow: its chunk", fontsize=7)
    figure.savefig(path, dpi=130)


def _bars(axes: Axes, rows: list[dict], title: str) -> None:
    labels, predicted = [row["mode"] for row in rows], [row["predicted"] for row in rows]
    if rows[0]["seconds"] is None:
        axes.barh(labels, predicted, color="#cccccc", label="predicted")
    else:
        times, spreads = ([row[key] for row in rows] for key in ("seconds", "spread"))
        axes.barh(labels, times, xerr=spreads, color=MEASURED, label="measured", error_kw={"lw": 1})
        axes.plot(predicted, labels, "k|", ms=12, mew=1.5, label="predicted")
    axes.axvline(rows[0]["optimum"], color="gray", ls="--", lw=1, label="optimum")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="seconds", xlim=(0, None))
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(fill(title, 100), fontsize=9, loc="left")


def _step(axes: Axes, network: Topology, places: Places, moves: list[Move]) -> None:
    """Draw the messages of a step along their routes."""
    graph, count = network.graph, network.nodes
    nodes, switches = range(count), [node for node in graph if node >= count]
    size, font = (180, 7) if count <= WITH_CHUNKS else (60, 5) if count <= WITH_NUMBERS else (10, 0)
    nx.draw_networkx_edges(graph, places, ax=axes, edge_color="#dddddd", arrows=False)
    nx.draw_networkx_nodes(graph, places, nodes, size, "white", ax=axes, edgecolors="black", linewidths=0.8)
    nx.draw_networkx_nodes(graph, places, switches, size / 2, "#bbbbbb", "s", ax=axes)
    for move in moves:
        route = network.route(move.source, move.target)
        colour = REDUCE if move.reduce else COPY
        nx.draw_networkx_edges(
            graph, places, route, ax=axes, edge_color=colour, node_size=size, arrowsize=9 if font else 4,
            connectionstyle="arc3,rad=0.15",
        )  # fmt: skip
        if count <= WITH_CHUNKS:
            _label(axes, [places[node] for node in route[-1]], str(move.chunk), colour)
    if font:
        nx.draw_networkx_labels(graph, places, {node: str(node) for node in nodes}, font, ax=axes)
    axes.margins(0.15)
    axes.set_aspect("equal")
    axes.set_axis_off()


def _label(axes: Axes, ends: list[tuple[float, float]], text: str, colour: str) -> None:
    """Write beside the arrow between the ``ends``, nearer to its head than to its tail."""
    (x, y), (to_x, to_y) = ends
    across, up = to_x - x, to_y - y
    at = x + 0.6 * across + 0.12 * up, y + 0.6 * up - 0.12 * across
    axes.text(*at, text, color=colour, fontsize=6, ha="center", va="center")


def _places(network: Topology) -> Places:
    """Return where each node is drawn: in a grid, in layers, in a circle, or by its links."""
    shape, graph = network.shape, network.graph
    if shape:
        last = shape[-1]
        places = {}
        for node in range(network.nodes):
            rest, x = divmod(node, last)
            deep, y = divmod(rest, shape[-2]) if len(shape) > 1 else (rest, 0)
            # Planes of a third axis are drawn a little aside.
            places[node] = (x + 0.35 * deep, -y - 0.3 * deep)
        return places
    if network.name.startswith("fattree:"):
        hosts = network.nodes
        leaves = {b for a, b in graph.edges if a < hosts}
        layers = [list(range(hosts)), sorted(leaves), sorted(set(graph) - leaves - set(range(hosts)))]
        return {
            node: ((i + 0.5) / len(layer) * hosts, 0.4 * hosts * level)
            for level, layer in enumerate(layers)
            for i, node in enumerate(layer)
        }
    if network.name.startswith(("ring:", "full:")):
        turns = {node: pi / 2 - 2 * pi * node / network.nodes for node in graph}
        return {node: (cos(turn), sin(turn)) for node, turn in turns.items()}
    return {node: (float(x), float(y)) for node, (x, y) in nx.kamada_kawai_layout(graph).items()}

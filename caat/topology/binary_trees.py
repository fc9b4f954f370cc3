"""Two binary trees: no node but a root has children in both (Sanders et al., Parallel Computing 2009)."""

from __future__ import annotations

from collections import defaultdict

from caat.topology.forest import Branch, Forest, placed
from caat.topology.graph import Topology


def double_binary_tree(topology: Topology) -> Forest:
    """Half of the buffer goes through each tree, from its root. As in NCCL, the nodes are taken by their
    numbers.

    It has two chunks, so its messages should be sent in pieces. The links of the trees are pairs of nodes,
    which need no link of their own.
    """
    trees = _trees(topology.nodes)
    branches = [branch for chunk, tree in enumerate(trees) for branch in _downward(tree, _root(tree), chunk)]
    return placed(topology.nodes, 2, sorted(branches))


def double_binary_tree_of_each(topology: Topology) -> Forest:
    """The chunks of each node go down the same two trees, half and half, but from that node as the root.

    For all-gather and reduce-scatter, in which every node has a share.
    """
    branches = [
        branch
        for owner in range(topology.nodes)
        for part, tree in enumerate(_trees(topology.nodes))
        for branch in _downward(tree, owner, 2 * owner + part)
    ]
    return placed(topology.nodes, 2 * topology.nodes, sorted(branches))


def _trees(nodes: int) -> list[dict[int, int]]:
    """Return both trees, as the parent of each node but the root."""
    first = {node: _parent(node, nodes) for node in range(1, nodes)}
    if nodes % 2 == 0:
        second = {nodes - 1 - child: nodes - 1 - parent for child, parent in first.items()}
    else:
        second = {(child + 1) % nodes: (parent + 1) % nodes for child, parent in first.items()}
    return [first, second]


def _parent(node: int, nodes: int) -> int:
    """Return the parent in an in-order binary tree: odd numbers are its leaves, and 0 is its root."""
    bit = node & -node
    parent = (node ^ bit) | (bit << 1)
    return parent if parent < nodes else node ^ bit


def _root(tree: dict[int, int]) -> int:
    (root,) = set(tree.values()) - tree.keys()
    return root


def _downward(tree: dict[int, int], root: int, chunk: int) -> list[Branch]:
    """Return the branches of the tree from ``root``, each with the number of hops as its step."""
    near = defaultdict(list)
    for child, parent in tree.items():
        near[child].append(parent)
        near[parent].append(child)
    seen, level, out, step = {root}, [root], [], 0
    while level:
        step += 1
        found = [(node, v) for node in level for v in sorted(near[node]) if v not in seen]
        out += [Branch(step, node, v, chunk) for node, v in found]
        level = [v for _, v in found]
        seen.update(level)
    return out

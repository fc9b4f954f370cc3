"""The kernels that a compiler can make of a graph of operators, and the bytes that each reads and writes.

Matrix products and attention stay kernels of their own. The other operators between two of these become one
kernel as far as they are connected: one uses the result of the other, or both read all of the same tensor.
What uses a sum over rows, which is complete only at the end of a kernel, is in a later one. A kernel reads
each of its inputs and writes each of its outputs once. This is what torch.compile aims at; it may make more
kernels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import prod
from typing import Any

import networkx
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")
ATTENTION = ("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward")
# Operators that need no kernel; those that are declared as views are recognised without a list.
FREE = ("empty", "empty_like", "new_empty", "empty_strided", "_unsafe_view", "getitem")
FUSED = "fused"


def bytes_of(values: Any) -> int:
    """Return the bytes in memory of all tensors among ``values``; expanded dimensions are there once."""
    return sum(
        x.element_size() * prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)
        for x in tree_leaves(values)
        if isinstance(x, Tensor)
    )


def fused_kernels(graph: GraphModule) -> list[tuple[str, int]]:
    """Return the kernels of ``graph``: the name of each, and the bytes that it reads and writes."""
    operators = [node for node in graph.graph.nodes if node.op == "call_function" and not _is_free(node)]
    stages = _stages(operators)
    single = [node for node in operators if _is_single(node)]
    together = networkx.Graph()
    readers: dict[tuple[Node, int], Node] = {}
    for node in (node for node in operators if not _is_single(node)):
        together.add_node(node)
        largest = max(_size(x) for x in [node, *node.all_input_nodes])
        for x in node.all_input_nodes:
            root = _root(x)
            if root in together and stages[root] == stages[node]:
                together.add_edge(root, node)
            elif _size(x) == largest:
                together.add_edge(readers.setdefault((x, stages[node]), node), node)
    groups = [[node] for node in single] + list(networkx.connected_components(together))
    return [(_name(group), _bytes(set(group))) for group in groups]


def _stages(operators: Iterable[Node]) -> dict[Node, int]:
    """Return how many kernels at least must be complete before the one of each operator."""
    stages: dict[Node, int] = {}
    for node in operators:
        roots = [root for root in map(_root, node.all_input_nodes) if root in stages]
        stages[node] = max(
            (stages[root] + (_is_single(root) or _sums_rows(root)) for root in roots), default=0
        )
        if _is_single(node):
            stages[node] += 1
    return stages


def _bytes(kernel: set[Node]) -> int:
    """Return the bytes that the operators of a kernel exchange with others."""
    reads: dict[Node, dict[Node, int]] = defaultdict(dict)
    for x in {x for node in kernel for x in _read(node)}:
        if _root(x) not in kernel:
            reads[_root(x)][x] = bytes_of(x.meta["val"])
    # Views of a tensor may overlap: no more is read than there is.
    read = sum(min(sum(views.values()), bytes_of(root.meta["val"])) for root, views in reads.items())
    return read + sum(bytes_of(node.meta["val"]) for node in kernel if not _users(node) <= kernel)


def _read(node: Node) -> list[Node]:
    """Return the inputs that ``node`` reads; a copy overwrites its first one."""
    overwritten = node.args[:1] if _operator(node) == "copy" else ()
    return [x for x in node.all_input_nodes if x not in overwritten]


def _users(node: Node) -> set[Node]:
    """Return the operators and outputs that read ``node``, or a view of it."""
    return set().union(*(_users(user) if _is_free(user) else {user} for user in node.users))


def _root(node: Node) -> Node:
    """Return the operator or input of which ``node`` is a view."""
    while _is_free(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _operator(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).partition(".")[0]


def _is_free(node: Node) -> bool:
    return node.op == "call_function" and (getattr(node.target, "is_view", False) or _operator(node) in FREE)


def _is_single(node: Node) -> bool:
    return _operator(node) in PRODUCTS + ATTENTION


def _sums_rows(node: Node) -> bool:
    """Return whether the operator sums over another dimension than the last."""
    if _operator(node) != "sum":
        return False
    dims, rank = node.args[1], node.all_input_nodes[0].meta["val"].ndim
    return any(dim % rank != rank - 1 for dim in dims)  # type: ignore[union-attr, operator]


def _size(node: Node) -> int:
    return sum(x.numel() for x in tree_leaves(node.meta["val"]) if isinstance(x, Tensor))


def _name(group: Iterable[Node]) -> str:
    first, *rest = group
    return FUSED if rest or not _is_single(first) else _operator(first)

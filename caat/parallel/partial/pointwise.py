"""The pointwise work between the GEMMs of linear.py; each function, if compiled, is one pass over memory.

Without ``compiled=True`` they run one operator at a time. Sizes as in linear.py: T tokens, c channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor

Compiler = Callable[[Callable], Callable]
_compilers: list[Compiler] = [torch.compile]
_traced = False


@contextmanager
def compiled_by(compiler: Compiler) -> Iterator[None]:
    """Use ``compiler`` in place of ``torch.compile`` for all that is compiled within the context."""
    _compilers.append(compiler)
    try:
        yield
    finally:
        _compilers.pop()


def compile(function: Callable) -> Callable:
    """Return ``function``, compiled."""
    return _compilers[-1](function)


@contextmanager
def traced() -> Iterator[None]:
    """Tell the functions that run within the context that another compiler than torch's traces them."""
    global _traced
    before, _traced = _traced, True
    try:
        yield
    finally:
        _traced = before


def compiling() -> bool:
    """Return whether a compiler traces the code that asks."""
    return _traced or torch.compiler.is_compiling()


def fusable(function: Callable) -> Callable:
    """Add a keyword ``compiled`` to ``function``: if True, it runs as one kernel made by torch.compile.

    Compilation happens at the first such call, because importing the compiler takes seconds.
    """
    kernels: dict[Compiler, Callable] = {}

    @wraps(function)
    def run(*inputs: Tensor | Sequence[Tensor] | float, compiled: bool):
        if not compiled:
            return function(*inputs)
        compiler = _compilers[-1]
        if compiler not in kernels:
            kernels[compiler] = compiler(function)
        return kernels[compiler](*inputs)

    return run


@fusable
def add_residual(residual: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Return x = residual + product, both [..., T, c], written to ``product``, and sum(x²) [..., T, 1]."""
    x = product.add_(residual)
    return x, square_sum(x)


@fusable
def arrive(residual: Tensor, arriving: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x = residual + arriving, both [T, c], x · gamma, and sum(x²) [T, 1]."""
    x = residual + arriving
    return x, x * gamma, square_sum(x)


@fusable
def add_norm(residual: Tensor, arriving: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x = residual + arriving, both [..., h], and RMSNorm(x) · gamma; differentiable."""
    x = residual + arriving
    return x, F.rms_norm(x, gamma.shape, gamma, eps)


@fusable
def input_grad(x_grad: Tensor, product: Tensor, x: Tensor, pull: Tensor) -> Tensor:
    """Return x_grad + product - pull · x, all [..., T, c] except ``pull`` [..., T, 1]."""
    return (x_grad + product).addcmul_(x, pull.to(x.dtype), value=-1)


@fusable
def scaled_input_grad(x_grad: Tensor, product: Tensor, gamma: Tensor, x: Tensor, pull: Tensor) -> Tensor:
    """Return x_grad + product · gamma - pull · x, [..., T, c] but ``gamma`` [c] and ``pull`` [..., T, 1]."""
    return torch.addcmul(x_grad, product, gamma).addcmul_(x, pull.to(x.dtype), value=-1)


@fusable
def weight_grads(product: Tensor, weight: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``gamma`` [h] and ``weight`` [c, h] from ``product``, that of weight · gamma.

    Overwrites ``product``.
    """
    gamma_grad = (product * weight).sum(0)
    return gamma_grad, product.mul_(gamma)


def square_sum(x: Tensor) -> Tensor:
    """[..., c] -> sum(x²) [..., 1], in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if compiling():
        return x.to(wide).square().sum(-1, keepdim=True)
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square()

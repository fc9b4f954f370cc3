"""The outer optimizer of islands: SGD with Nesterov momentum (DiLoCo, arXiv 2311.08105, equation 2).

D  mean over the islands of a - w_m, the change of their weights w_m since they left the anchor a
v <- mu v + D;  a <- a - lr (D + mu v)
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def outer_step(
    anchor: Tensor, velocity: Tensor | None, change: Tensor, *, lr: float, momentum: float
) -> None:
    """Move ``anchor`` by the mean ``change`` D, both [n], in place; ``velocity`` v is None if mu is 0."""
    if velocity is None:
        anchor.sub_(change, alpha=lr)
        return
    velocity.mul_(momentum).add_(change)
    anchor.sub_(change, alpha=lr).sub_(velocity, alpha=lr * momentum)

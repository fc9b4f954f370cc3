"""A small index of cached keys: quantised copies that estimate attention logits with a proven error."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

LEVELS = {"int8": 127, "int4": 7}
# Tokens that are decoded at a time.
BLOCK = 2048
# A sum of d products in float32 is off by at most about d times this share of the sum of their sizes.
EPSILON = 2.0**-22


class KeyIndex:
    """Quantised keys [batch, KV heads, capacity, head_dim] of one layer.

    With the mean mu and the range c of each channel over the first tokens, and a step s_t per token:

        k^ = mu + s_t c z,  z of 4 or 8 bits;    |q (k - k^)| / sqrt(d) <= s_t sum_j |q_j| c_j / (2 sqrt(d))
    """

    def __init__(self, shape: tuple[int, int, int, int], bits: str, device: torch.device) -> None:
        batch, heads, capacity, d = shape
        self._levels, self._packed = LEVELS[bits], bits == "int4"
        # int4: two numbers in a byte, channels of the first half in the low bits.
        self._codes = torch.empty(
            (batch, heads, capacity, d // 2 if self._packed else d), dtype=torch.uint8, device=device
        )
        self._steps = torch.empty(batch, heads, capacity, device=device)
        self._mean = self._range = torch.empty(0)
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self._codes.nbytes + self._steps.nbytes + 2 * self._mean.nbytes

    def add(self, keys: Tensor, counted: Tensor | None = None) -> None:
        """Append ``keys`` [batch, heads, new, head_dim].

        The first call sets mean and range, over the ``counted`` [batch, new] tokens: not those of padding.
        """
        keys = keys.float()
        if self.length == 0:
            weight = torch.ones_like(keys[:, :, :, :1])
            if counted is not None:
                weight = counted[:, None, :, None].to(keys).expand_as(weight)
            self._mean = (keys * weight).sum(2, keepdim=True) / weight.sum(2, keepdim=True)
            spread = ((keys - self._mean).abs() * weight).amax(2, keepdim=True)
            # A channel that did not vary yet may vary later. After one token, none has.
            widest = spread.amax(-1, keepdim=True)
            self._range = torch.where(widest > 0, spread.maximum(1e-6 * widest), 1.0)
        scaled = (keys - self._mean) / self._range
        steps = scaled.abs().amax(-1).div_(self._levels).clamp_(min=1e-30)
        codes = (scaled / steps[..., None]).round_().to(torch.int8)
        stop = self.length + keys.shape[2]
        self._steps[:, :, self.length : stop] = steps
        self._codes[:, :, self.length : stop] = self._encode(codes)
        self.length = stop

    def estimate(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return estimated logits, and bounds of their errors, [batch, heads, group, length].

        ``queries`` [batch, heads, group, head_dim] are those of the query heads that share a KV head.
        """
        queries = queries.float()
        scale = 1 / sqrt(queries.shape[-1])
        weighted, steps = queries * self._range, self._steps[:, :, None, : self.length]
        means = (queries * self._mean).sum(-1, keepdim=True) * scale
        # Decoded keys are four to eight times as large as codes: only a block of them exists at a time.
        blocks = self._codes[:, :, : self.length].split(BLOCK, 2)
        products = torch.cat([self._decode(block) @ (weighted * scale).mT for block in blocks], 2)
        logits = torch.addcmul(means, products.mT, steps)
        reach = weighted.abs().sum(-1, keepdim=True) * scale
        rounding = EPSILON * (queries.shape[-1] + 16)
        base = (queries * self._mean).abs().sum(-1, keepdim=True) * (scale * rounding)
        return logits, torch.addcmul(base, reach * (0.5 + rounding * self._levels), steps)

    def _encode(self, codes: Tensor) -> Tensor:
        if not self._packed:
            return codes.view(torch.uint8)
        low, high = codes.chunk(2, -1)
        return ((low & 15) | (high << 4)).view(torch.uint8)

    def _decode(self, stored: Tensor) -> Tensor:
        codes = stored.view(torch.int8)
        if self._packed:
            # Shifting to the top and back extends the sign.
            codes = torch.cat([(codes << 4) >> 4, codes >> 4], -1)
        return codes.float()


def lower_logits(queries: Tensor, keys: Tensor) -> Tensor:
    """Return lower bounds of the logits [..., n, m] of queries [..., n, d] and keys [..., m, d]."""
    queries, keys = queries.float(), keys.float()
    rounding = EPSILON * (queries.shape[-1] + 16) * (queries.abs() @ keys.abs().mT)
    return (queries @ keys.mT - rounding) / sqrt(queries.shape[-1])


def missing_mass(selected: Tensor, others: Tensor) -> Tensor:
    """Return an upper bound of the softmax mass of the keys that were not selected.

    ``selected`` [..., m]: lower bounds of the logits of the selected keys; ``others`` [..., n]: upper bounds
    of those of the others, -inf for a key that does not count. With L and U their log-sum-exps, it is
    1 / (1 + exp(L - U)).
    """
    return torch.sigmoid(others.logsumexp(-1) - selected.logsumexp(-1))

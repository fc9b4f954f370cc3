"""Samples the next token from vocabulary-parallel logits, with the same result on every process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from caat.parallel.mesh import Mesh
from conf.generate import SamplingConfig
from layers.loss import mask_padding

NOT_FINITE = (
    "the model's logits are not finite: its values are too large for this precision. Give precision=fp32 or "
    "an earlier checkpoint"
)


class Sampler:
    """Samples the next token of every text in a batch.

    Every process must create it with the same settings and call it equally often. Each text has a separate
    random generator, seeded with the seed and the text's number, so batching does not change the samples.
    Only tokens below ``vocab_size`` are drawn.
    """

    def __init__(self, settings: SamplingConfig, vocab_size: int, mesh: Mesh, numbers: Sequence[int]) -> None:
        self.settings, self.mesh, self._vocab_size = settings, mesh, vocab_size
        if settings.temperature == 0:
            self._candidates = 1
        else:
            self._candidates = min(settings.top_k or vocab_size, vocab_size)
        self._generators = [_generator(settings.seed, number) for number in numbers]

    def __call__(self, logits: Tensor) -> Tensor:
        """Map local logits [batch, local vocabulary], padding masked, to token ids [batch]. Collective.

        Raises ``ValueError``, on all ranks, if the logits are not finite.
        """
        logits = mask_padding(logits, self._vocab_size, self.mesh)
        values, tokens = largest(logits, self._candidates, self.mesh)
        if not values[:, 0].isfinite().all():
            raise ValueError(NOT_FINITE)
        if self.settings.temperature == 0:
            return tokens[:, 0]
        kept = nucleus((values / self.settings.temperature).softmax(-1), self.settings.top_p)
        cumulative = kept.cumsum(-1)
        drawn = torch.stack([torch.rand(1, generator=each, dtype=torch.float64) for each in self._generators])
        drawn = drawn.to(kept.device)
        place = torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True)
        # Rounding may place the draw past the last token that was kept.
        place = place.minimum((kept > 0).sum(-1, keepdim=True) - 1)
        return tokens.gather(-1, place)[:, 0]


def _generator(seed: int, number: int) -> torch.Generator:
    """Return the generator of one text. Hashes the pair: seed + number would collide between pairs."""
    (mixed,) = np.random.SeedSequence([seed % 2**64, number]).generate_state(1)
    return torch.Generator().manual_seed(int(mixed))


def largest(logits: Tensor, count: int, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """Return the ``count`` largest logits of the whole vocabulary, descending, and their ids: [batch, count].

    Each process sends one message: the ``count`` largest of its slice with their ids, or the whole slice if
    it is no larger. Values are float64. Collective.
    """
    size = logits.shape[-1]
    if count >= size:
        slices = mesh.tensor.all_gather(logits.contiguous()[None], "forward", "sampling")
        values, tokens = slices.movedim(0, 1).flatten(1).double().topk(count)
        return values, tokens
    values, tokens = logits.topk(count)
    # Token ids are exact in float64.
    pairs = torch.stack([values.double(), (tokens + mesh.tensor_rank * size).double()])[None]
    pairs = mesh.tensor.all_gather(pairs, "forward", "sampling").movedim(0, 2).flatten(2)
    values, order = pairs[0].topk(count)
    return values, pairs[1].gather(-1, order).long()


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero the descending probabilities [batch, count] after the fewest that reach ``top_p`` (1904.09751)."""
    before = probabilities.cumsum(-1) - probabilities
    return probabilities.masked_fill(before >= top_p, 0.0)

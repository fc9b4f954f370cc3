"""Texts continued by a model, token by token, with a cache of what it has read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from caat.data.tokenizer import Tokenizer
from conf.generate import SamplingConfig
from eval.generation.continuation import Continuation
from eval.generation.sampling import Sampler
from layers.cache import KVCache
from layers.gpt import GPT

# Called with (tokens, cache=cache), gives this process's slice of the logits: a GPT, or what wraps one.
Forward = Callable[..., Tensor]


@torch.no_grad()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    settings: SamplingConfig,
    *,
    show: Callable[[int, str], None] = lambda number, text: None,
    forward: Forward | None = None,
    numbers: Sequence[int] | None = None,
) -> list[Continuation]:
    """Continue all ``prompts``, token numbers of any lengths, as one batch.

    ``show(number, text)`` gets each text's continuation piece by piece, as soon as it is certain. Every
    process of a replica must call this alike; all get the same texts. ``forward`` is called in place of the
    model, where something is wrapped round it. ``numbers`` are those of the prompts among all that there are:
    what is drawn for a prompt depends on its number and not on the others of its batch.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    sampler = Sampler(settings, model.config.vocab_size, model.mesh, numbers)
    texts = [Continuation(tokenizer, prompt, settings.stop) for prompt in prompts]
    for chosen in _next_tokens(model, forward or model, prompts, settings.max_new_tokens, sampler):
        for number, (text, token) in enumerate(zip(texts, chosen.tolist(), strict=True)):
            if piece := text.add(token):
                show(number, piece)
        if all(text.ended for text in texts):
            break
    for number, text in enumerate(texts):
        if piece := text.finish():
            show(number, piece)
    return texts


def _next_tokens(
    model: GPT, forward: Forward, prompts: Sequence[Sequence[int]], count: int, sampler: Sampler
) -> Iterator[Tensor]:
    """Up to ``count`` times the next token of every text [batch]: first from the prompts, then one by one."""
    weight = model.norm.weight
    longest = max(map(len, prompts))
    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=weight.device)
    rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    tokens = torch.tensor(rows, device=weight.device)
    cache = KVCache(model.config, model.mesh, padding, longest + count - 1, weight.dtype)
    for _ in range(count):
        chosen = sampler(forward(tokens, cache=cache)[:, -1])
        yield chosen
        tokens = chosen[:, None]

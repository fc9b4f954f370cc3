"""Continues texts with a model, token by token, with a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from caat.data.tokenizer import Tokenizer
from conf.cache import CacheConfig
from conf.generate import SamplingConfig
from eval.generation.continuation import Continuation
from eval.generation.sampling import Sampler
from layers.cache import KVCache
from layers.gpt import GPT
from layers.host_cache import Transfers, cache_of

# A GPT or a wrapper of one: called with (tokens, cache=cache), returns this process's slice of the logits.
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
    cache: CacheConfig | None = None,
    transfers: Transfers | None = None,
    ends: Collection[int] = (),
    texts: list[Continuation] | None = None,
) -> list[Continuation]:
    """Continue all ``prompts``, token ids of any length, as one batch.

    ``show(number, text)`` receives each continuation piece by piece, as soon as it is final. Every process of
    a replica must make the same call; all return the same texts. ``forward`` replaces the model if something
    wraps it. ``numbers`` are the prompts' numbers among all prompts: the sampled tokens depend on a prompt's
    number and not on the other prompts in its batch. ``cache``: where keys and values are; ``transfers`` adds
    up what a cache in host memory moves. ``ends``: tokens that end a text besides the tokenizer's. ``texts``
    gets the continuations before their first token: after an interrupt, they hold what was generated.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    # A model may have more entries than its tokenizer has pieces; those have no text.
    vocab_size = min(model.config.vocab_size, tokenizer.vocab_size())
    sampler = Sampler(settings, vocab_size, model.mesh, numbers)
    made = [Continuation(tokenizer, prompt, settings.stop, ends) for prompt in prompts]
    if texts is not None:
        texts += made
    make, weight = cache_of(cache or CacheConfig(), transfers), model.norm.weight
    new_cache = partial(make, model.config, model.mesh, dtype=weight.dtype)
    device, count = weight.device, settings.max_new_tokens
    tokens = _next_tokens(forward or model, prompts, count, sampler, new_cache, device=device)
    for chosen in tokens:
        for number, (text, token) in enumerate(zip(made, chosen.tolist(), strict=True)):
            if piece := text.add(token):
                show(number, piece)
        if all(text.ended for text in made):
            break
    for number, text in enumerate(made):
        if piece := text.finish():
            show(number, piece)
    return made


def _next_tokens(
    forward: Forward,
    prompts: Sequence[Sequence[int]],
    count: int,
    sampler: Sampler,
    new_cache: Callable[[Tensor, int], KVCache],
    *,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield the next token of every text [batch], up to ``count`` times. The first pass reads the prompts."""
    longest = max(map(len, prompts))
    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    tokens = torch.tensor(rows, device=device)
    cache = new_cache(padding, longest + count - 1)
    for _ in range(count):
        chosen = sampler(forward(tokens, cache=cache)[:, -1])
        yield chosen
        tokens = chosen[:, None]

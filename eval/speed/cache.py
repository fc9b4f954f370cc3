"""Measures decoding with a KV cache at the other end of a link, by how much of it is fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from caat.data.tokenizer import find_tokenizer, load_tokenizer
from caat.machine import available_cores
from caat.parallel.mesh import Mesh
from caat.training.checkpoint.architecture import read_architecture
from conf.bench import BenchCacheConfig
from conf.bench.cache import WARM_UP
from conf.cache import CacheConfig
from conf.model import ModelConfig
from eval.open import load_model
from eval.speed.fetching import FullFetch, SparQ
from eval.speed.remote_memory import HOST, RemoteMemory, serve, stop_serving
from eval.speed.timing import take_turns
from layers.cache import KVCache, LayerCache
from layers.gpt import GPT
from layers.host_cache import HostLayerCache, Transfers

SEED = 1
DEVICE = "device"
FULL = "full fetch"


class Layer(LayerCache, Protocol):
    """One layer's cache during decoding; ``length`` is the number of tokens before the new one."""

    length: int


L = TypeVar("L", bound=Layer)


class DecodingCache(KVCache):
    """A cache of ``length`` tokens whose layers are given."""

    def __init__(self, layers: Sequence[Layer], length: int, batch: int) -> None:
        self._layers, self.length = layers, length
        self._padding, self._padded = torch.zeros(batch, dtype=torch.long), False

    def _views(self, mask: Tensor | None, new: int) -> Sequence[Layer]:
        for layer in self._layers:
            layer.length = self.length
        return self._layers


class Variant:
    """A way to decode the same tokens; keeps the log-probabilities after each."""

    def __init__(self, mode: str, model: GPT, text: Tensor, cache: KVCache) -> None:
        self.mode, self._model, self._text, self._cache = mode, model, text, cache
        self.memories: list[RemoteMemory] = []
        self.scores: list[Tensor] = []
        self.bytes: list[int] = []

    @torch.inference_mode()
    def step(self) -> None:
        before = sum(memory.moved_bytes for memory in self.memories)
        token = self._text[:, [self._cache.length]]
        self.scores.append(self._model(token, cache=self._cache)[:, -1].log_softmax(-1))
        self.bytes.append(sum(memory.moved_bytes for memory in self.memories) - before)


def cache_rows(config: BenchCacheConfig) -> list[dict]:
    """Return a row for each variant: milliseconds, bytes over the link and error of a new token.

    ``error`` is the mean Kullback-Leibler divergence, in nats, of the next token's distribution from that
    with the whole cache. The first process decodes, the second one is the memory. Collective.
    """
    shape = config.shape if config.checkpoint is None else read_architecture(Path(config.checkpoint)).model
    size = (config.batch, shape.kv_heads, config.capacity, shape.head_size)
    if dist.get_rank() == HOST:
        serve(size, torch.float32)
        return []
    # The memory computes next to nothing.
    torch.set_num_threads(available_cores())
    variants = _variants(config, shape, size)
    times = take_turns({each.mode: each.step for each in variants}, config.rounds, WARM_UP)
    stop_serving()
    exact = torch.cat(variants[0].scores)
    return [
        {
            "mode": each.mode,
            "token_ms": times[each.mode].median,
            "spread_ms": times[each.mode].spread,
            "tokens_per_second": config.batch * 1e3 / times[each.mode].median,
            "speed_up": times[FULL].ratio_to(times[each.mode]),
            "bytes": sum(each.bytes[WARM_UP:]) / config.rounds / config.batch,
            "error": float((exact.exp() * (exact - torch.cat(each.scores))).nansum(-1).mean()),
        }
        for each in variants
    ]


def _variants(config: BenchCacheConfig, shape: ModelConfig, size: tuple[int, int, int, int]) -> list[Variant]:
    model, text = _model_and_text(config, shape, size[2])
    no_padding = torch.zeros(config.batch, dtype=torch.long)
    device = KVCache(shape, model.mesh, no_padding, size[2], torch.float32)
    with torch.inference_mode():
        model(text[:, : config.sequence], cache=device)
    variants = [Variant(DEVICE, model, text, device)]

    def add(mode: str, build: Callable[[RemoteMemory], L]) -> list[L]:
        first = len(variants) * shape.layers
        memories = [RemoteMemory(first + layer, size, torch.float32) for layer in range(shape.layers)]
        for memory, k, v in zip(memories, device.keys, device.values, strict=True):
            memory.write(0, k[:, :, : config.sequence], v[:, :, : config.sequence])
        layers = [build(memory) for memory in memories]
        variant = Variant(mode, model, text, DecodingCache(layers, config.sequence, config.batch))
        variant.memories = memories
        variants.append(variant)
        return layers

    add(FULL, FullFetch)
    for keep in config.keeps:
        settings = CacheConfig("host", keep=keep, index=config.index)
        layers = add(
            f"host, keep {keep}",
            partial(HostLayerCache, padding=no_padding, settings=settings, transfers=Transfers()),
        )
        for layer, k, v in zip(layers, device.keys, device.values, strict=True):
            layer.hold(k[:, :, : config.sequence], v[:, :, : config.sequence])
    for keep in config.keeps if config.sparq else ():
        add(f"sparq:{config.sparq}, keep {keep}", partial(SparQ, r=config.sparq, keep=keep))
    return variants


def _model_and_text(config: BenchCacheConfig, shape: ModelConfig, count: int) -> tuple[GPT, Tensor]:
    """Return the model and ``count`` tokens of each sequence: of the text, or random ones without one."""
    if config.checkpoint is None:
        torch.manual_seed(SEED)
        model = GPT(replace(shape, sequence=count), Mesh(1), 1.0).eval()
        return model, torch.randint(shape.vocab_size, (config.batch, count))
    folder = Path(config.checkpoint)
    model = load_model(folder, Mesh(read_architecture(folder).shards))
    return model, torch.tensor(text_tokens(config)).view(config.batch, count)


def text_tokens(config: BenchCacheConfig) -> list[int]:
    """Return the tokens of the text that the benchmark needs; raise ``ValueError`` if there are fewer."""
    assert config.checkpoint is not None and config.text is not None
    tokenizer = load_tokenizer(find_tokenizer(Path(config.checkpoint)))
    try:
        tokens = tokenizer.encode(Path(config.text).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"text={config.text} cannot be read as UTF-8 text: {error}") from error
    needed = config.batch * config.capacity
    if len(tokens) < needed:
        raise ValueError(
            f"text={config.text} has {len(tokens):,} tokens, but {config.batch} x {config.capacity:,} are "
            "needed: give a longer text, or a smaller batch or sequence"
        )
    return tokens[:needed]

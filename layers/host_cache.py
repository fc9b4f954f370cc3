"""KV cache in host memory: the device holds an index of the keys, and fetches the rows that matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from caat.parallel.mesh import Mesh
from conf.cache import CacheConfig
from conf.model import ModelConfig
from layers.cache import KVCache, attention
from layers.host_memory import HostMemory, Memory
from layers.key_index import KeyIndex, lower_logits, missing_mass

# Rows that are always selected: the first tokens, to which most heads give much mass, and the last.
FIRST, LAST = 4, 16


@dataclass
class Transfers:
    """What caches in host memory moved and left out, over all layers and steps of one new token.

    ``missing_worst`` and ``missing_mean``: bounds of the attention mass that was not selected.
    """

    fetched_bytes: int = 0
    stored_bytes: int = 0
    # What fetching every row in every step would have moved.
    full_bytes: int = 0
    steps: int = 0
    # On the device after the first step: reading them waits for it.
    missing_worst: float | Tensor = 0.0
    _missing_sum: float | Tensor = 0.0
    _heads: int = 0

    @property
    def missing_mean(self) -> float:
        return float(self._missing_sum) / max(1, self._heads)

    def over(self, mesh: Mesh, device: torch.device) -> Transfers:
        """Return the sums over the processes of a replica, and the worst bound of all. Collective.

        ``device`` is that of the model, from which the backend can send.
        """
        own = [self.fetched_bytes, self.stored_bytes, self.full_bytes, float(self._missing_sum), self._heads]
        sums = torch.tensor(own, dtype=torch.float64, device=device)
        worst = torch.tensor([float(self.missing_worst)], dtype=torch.float64, device=device)
        mesh.tensor.all_reduce(sums, "forward", "sampling")
        mesh.tensor.all_reduce(worst, "forward", "sampling", dist.ReduceOp.MAX)
        fetched, stored, full, missing, heads = sums.tolist()
        return Transfers(int(fetched), int(stored), int(full), self.steps, float(worst), missing, int(heads))

    def note_missing(self, bound: Tensor) -> None:
        """Note the bounds of a step's heads."""
        self.missing_worst = bound.max().clamp(min=self.missing_worst)
        self._missing_sum = bound.double().sum() + self._missing_sum
        self._heads += bound.numel()


class Rows:
    """Keys and values of some rows of each KV head on the device: [batch, heads, rows, head_dim].

    ``places`` [batch, heads, rows] are their columns in the cache, in ascending order.
    """

    def __init__(self, places: Tensor, keys: Tensor, values: Tensor) -> None:
        self.places, self.keys, self.values = places, keys, values

    def with_new(self, place: int, keys: Tensor, values: Tensor) -> Rows:
        """Return these rows and that of a new token, which is the last column."""
        places = torch.full_like(self.places[:, :, :1], place)
        both = ((self.places, places), (self.keys, keys), (self.values, values))
        return Rows(*(torch.cat(pair, 2) for pair in both))


class HostLayerCache:
    """One layer's cache, whose keys and values are in ``memory``."""

    def __init__(self, memory: Memory, padding: Tensor, settings: CacheConfig, transfers: Transfers) -> None:
        self._memory, self._index = memory, KeyIndex(memory.shape, settings.index, padding.device)
        self._settings, self._padding, self._transfers = settings, padding, transfers
        # The rows that the last step used; the next one needs mostly the same.
        self._hot: Rows | None = None
        # Set for each pass.
        self.length = 0
        self.mask: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the new tokens and return their attention [batch, heads, new, head_dim]."""
        fetched, stored = self._memory.fetched_bytes, self._memory.stored_bytes
        one = k.shape[2] == 1 and self.length > 0
        self._memory.write(self.length, k, v)
        attended = self._attend_one(q, k, v) if one else self._attend_all(q, k, v)
        self._transfers.fetched_bytes += self._memory.fetched_bytes - fetched
        self._transfers.stored_bytes += self._memory.stored_bytes - stored
        return attended

    def hold(self, k: Tensor, v: Tensor) -> None:
        """Index the new tokens ``k`` and keep the rows on the device that are always selected.

        ``k`` and ``v`` are of all tokens, of which the index has the first ones.
        """
        new = k[:, :, self._index.length :]
        columns = torch.arange(new.shape[2], device=k.device)
        self._index.add(new, columns >= self._padding[:, None] if self._index.length == 0 else None)
        places = self._ends(k.shape[2])
        wide = places[..., None].expand(-1, -1, -1, k.shape[3])
        self._hot = Rows(places, k.gather(2, wide), v.gather(2, wide))

    def _attend_all(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend exactly: a pass of several tokens."""
        if self.length > 0:
            past = self._memory.read(self.length)
            k, v = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
        self.hold(k, v)
        return attention(q, k, v, self.mask, first=self.length == 0)

    def _attend_one(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert self._hot is not None
        total, heads = self.length + 1, k.shape[1]
        self._index.add(k)
        hot = self._hot.with_new(self.length, k, v)
        queries = q.unflatten(1, (heads, -1)).squeeze(3)
        kept = min(total, self._settings.keep + FIRST + LAST)
        if kept < total:
            rows, seen, missing = self._fewer(queries, hot, kept)
            mask = None if seen is None else seen.repeat_interleave(q.shape[1] // heads, 1)[:, :, None]
        else:
            rows = self._rows(torch.arange(total, device=k.device).expand(*k.shape[:2], -1).contiguous(), hot)
            mask, missing = self.mask, torch.zeros_like(queries[..., 0])
        self._hot = rows
        self._transfers.note_missing(missing)
        self._transfers.full_bytes += 2 * total * k[:, :, 0].nbytes
        return attention(q, rows.keys, rows.values, mask)

    def _fewer(self, queries: Tensor, hot: Rows, kept: int) -> tuple[Rows, Tensor | None, Tensor]:
        """Select ``kept`` rows of each KV head of each text, and more where they miss too much.

        Returns the rows, which of them a head attends to [batch, heads, rows] (None: all), and the bounds of
        the mass that it misses. Rows are as many for all heads, but a head does not see those that only
        another one needs: a text depends neither on its batch nor on which heads a process holds.
        """
        estimates, bounds = self._index.estimate(queries)
        if self.mask is not None:
            estimates = estimates.masked_fill(~self.mask, -torch.inf)
        total, error, upper = estimates.shape[-1], self._settings.error, estimates + bounds
        each = torch.full(queries.shape[:2], kept, device=queries.device)
        while True:
            places, own = self._select(estimates, each, kept)
            rows = hot = self._rows(places, hot)
            seen = own if error else None
            if self.mask is not None:
                columns = self.mask.expand(-1, queries.shape[1], -1, -1).squeeze(2).gather(2, places)
                seen = columns if seen is None else columns & seen
            missing = self._missing(queries, rows, seen, upper)
            if not error or kept == total:
                return rows, seen, missing
            # Not a number counts as too much.
            more = ~(missing.amax(-1) <= error)
            if not more.any():
                return rows, seen, missing
            kept = min(total, 2 * kept)
            each = each.masked_fill(more, kept)

    def _select(self, estimates: Tensor, each: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Return the columns [batch, heads, most] with most estimated mass over the group, ascending.

        The second tensor, of the same shape, marks the ``each`` [batch, heads] first ones by mass.
        """
        total = estimates.shape[-1]
        mass = estimates.softmax(-1).sum(2)
        columns = torch.arange(total, device=mass.device)
        since = columns - self._padding[:, None]
        always = ((since >= 0) & (since < FIRST)) | (columns >= total - LAST)
        mass = mass.masked_fill(always[:, None], torch.inf)
        mass = mass.masked_fill((since < 0)[:, None], -1.0)
        places = mass.topk(most).indices.sort(-1)
        return places.values, places.indices < each[..., None]

    def _missing(self, queries: Tensor, rows: Rows, seen: Tensor | None, upper: Tensor) -> Tensor:
        """Return the bound of the mass that the ``seen`` ``rows`` leave out, [batch, heads, group]."""
        exact = lower_logits(queries, rows.keys)
        chosen = rows.places[:, :, None].expand(-1, -1, upper.shape[2], -1)
        if seen is None:
            return missing_mass(exact, upper.scatter(-1, chosen, -torch.inf))
        exact = exact.masked_fill(~seen[:, :, None], -torch.inf)
        left = upper.gather(-1, chosen).masked_fill(seen[:, :, None], -torch.inf)
        return missing_mass(exact, upper.scatter(-1, chosen, left))

    def _rows(self, places: Tensor, hot: Rows) -> Rows:
        """Return the rows at ``places``: those in ``hot`` from there, the others from the host."""
        at = torch.searchsorted(hot.places, places).clamp_(max=hot.places.shape[2] - 1)
        hit = hot.places.gather(2, at) == places
        wide = at[..., None].expand(-1, -1, -1, hot.keys.shape[3])
        keys, values = hot.keys.gather(2, wide), hot.values.gather(2, wide)
        missed = (~hit).nonzero(as_tuple=True)
        batch, head, _ = missed
        keys[missed], values[missed] = self._memory.rows(batch, head, places[missed])
        return Rows(places, keys, values)

    def rewind(self, length: int) -> None:
        """Forget the tokens from column ``length`` on."""
        self._index.length = length
        if self._hot is not None:
            self._hot = self._rows(self._ends(length), self._hot)

    def _ends(self, total: int) -> Tensor:
        """Return the places [batch, heads, n] of the rows that are always selected: first and last."""
        batch, heads = self._memory.shape[:2]
        columns = torch.arange(total, device=self._padding.device)
        if total <= FIRST + LAST:
            places = columns.expand(batch, -1)
        else:
            first = self._padding[:, None] + columns[:FIRST]
            last = columns[-LAST:].expand(batch, -1)
            places = torch.cat([first.clamp(max=total - 1), last], 1).sort(1).values
        return places[:, None].expand(-1, heads, -1).contiguous()


class HostKVCache(KVCache):
    """A :class:`KVCache` whose keys and values are in host memory; a pass of several tokens is exact.

    A pass of one token attends to the ``settings.keep`` rows of each KV head with most estimated mass, to the
    first and to the last few. Everything is local to a KV head. ``transfers`` adds up what is moved.
    """

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        padding: Tensor,
        capacity: int,
        dtype: torch.dtype,
        *,
        settings: CacheConfig,
        transfers: Transfers | None = None,
    ) -> None:
        self.transfers = transfers or Transfers()
        self._settings = settings
        super().__init__(config, mesh, padding, capacity, dtype)

    def _allocate(self, layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        memories = (HostMemory(shape, dtype, self._padding.device) for _ in range(layers))
        self._layers = [
            HostLayerCache(memory, self._padding, self._settings, self.transfers) for memory in memories
        ]

    def rewind(self, length: int) -> None:
        super().rewind(length)
        for layer in self._layers:
            layer.rewind(length)

    def _views(self, mask: Tensor | None, new: int) -> list[HostLayerCache]:
        for layer in self._layers:
            layer.length, layer.mask = self.length, mask
        self.transfers.steps += new == 1 and self.length > 0
        return self._layers


def cache_of(settings: CacheConfig, transfers: Transfers | None = None) -> Callable[..., KVCache]:
    """Return what makes a :class:`KVCache` where ``settings`` want it, from the arguments of one.

    ``transfers`` adds up what caches in host memory move.
    """
    if settings.place == "device":
        return KVCache
    return partial(HostKVCache, settings=settings, transfers=transfers)

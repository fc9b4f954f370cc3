"""Compare ways to choose rows of a KV cache, on real text: loss of the last quarter, and planted facts.

PYTHONPATH=docs/ablation python docs/long_contexts/compare.py CHECKPOINT NAME prose/packages

The first three quarters are one exact pass, whose cache all methods share. The tokens of the last quarter
then each attend to the rows that a method chooses for them, which is what generating them one by one would
do. Results are appended to results.jsonl; what is there already is not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from math import inf, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from methods import METHODS, Estimate, products
from prose import anarchist_faq, jane_austen, shakespeare_milton
from torch import Tensor
from tqdm import tqdm

from caat.data.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from caat.parallel.mesh import Mesh
from eval.open import load_model
from layers.cache import KVCache, LayerCache
from layers.gpt import GPT
from layers.host_cache import FIRST, LAST

RESULTS = Path(__file__).with_name("results.jsonl")
# Queries that are computed at once: what they attend to stays in the processor's cache.
BLOCK = 16
FACTS = [("Paris", 48213), ("Oslo", 70956), ("Lima", 31847), ("Cairo", 92604), ("Delhi", 15379)]
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


class Layer(NamedTuple):
    """One layer's cache, in which each new token attends to ``keep`` rows, the first and the last few."""

    keys: Tensor
    values: Tensor
    past: int
    mask: Tensor
    method: str
    keep: int
    # Receives the true attention mass that was left out, a tensor for each block of queries.
    missing: list[Tensor]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        stop = self.past + k.shape[2]
        self.keys[:, :, self.past : stop], self.values[:, :, self.past : stop] = k, v
        keys, values = self.keys[:, :, :stop], self.values[:, :, :stop]
        estimate = METHODS[self.method.removesuffix(",mean")](keys, self.past)
        means = values.cumsum(2) / torch.arange(1, stop + 1)[:, None]
        queries = q.unflatten(1, (k.shape[1], -1))
        parts = [
            self._block(queries[..., at : at + BLOCK, :], at, keys, values, means, estimate)
            for at in range(0, k.shape[2], BLOCK)
        ]
        return torch.cat(parts, 3).flatten(1, 2)

    def _block(
        self, q: Tensor, at: int, keys: Tensor, values: Tensor, means: Tensor, estimate: Estimate
    ) -> Tensor:
        visible = self.mask[:, :, at : at + q.shape[3]]
        place = torch.arange(self.past + at, self.past + at + q.shape[3])
        hidden = ~visible[:, :, None]
        exact = products(q / sqrt(q.shape[-1]), keys).masked_fill_(hidden, -inf).softmax(-1)
        shares = estimate(q).masked_fill_(hidden, -inf).softmax(-1)
        column = torch.arange(keys.shape[2])
        always = (column < FIRST) | (column > place[:, None] - LAST) & (column <= place[:, None])
        mass = shares.sum(2).masked_fill_(always, inf).masked_fill_(~visible, -1.0)
        rows = mass.topk(min(self.keep + FIRST + LAST, keys.shape[2]), -1, sorted=False).indices
        chosen = torch.zeros_like(mass).scatter_(-1, rows, 1.0)[:, :, None]
        part = exact.mul_(chosen)
        found = part.sum(-1, keepdim=True)
        self.missing.append(1 - found)
        out = (part.flatten(2, 3) @ values).unflatten(2, part.shape[2:4]) / found
        if self.method.endswith(",mean"):
            kept = (shares * chosen).sum(-1, keepdim=True)
            out = kept * out + (1 - kept) * means[:, :, place][:, :, None]
        return out


class ComparedCache(KVCache):
    """A cache on the device, whose second pass chooses rows; :meth:`again` forgets that pass."""

    method, keep = "", 0

    def again(self, past: int, method: str, keep: int) -> None:
        self.length, self.method, self.keep = past, method, keep
        self.missing: list[Tensor] = []

    def _views(self, mask: Tensor | None, new: int) -> list[LayerCache]:
        if not self.method:
            return list(super()._views(mask, new))
        assert mask is not None
        pairs = zip(self.keys, self.values, strict=True)
        return [Layer(k, v, self.length, mask, self.method, self.keep, self.missing) for k, v in pairs]


class Case(NamedTuple):
    """Tokens of which the first ``past`` are read exactly, and the loss counts from ``counted`` on."""

    kind: str
    length: int
    number: int
    tokens: list[int]
    past: int
    counted: int


def texts(packages: Path, tokenizer: Tokenizer, length: int, count: int) -> list[list[int]]:
    """Return ``count`` windows of ``length`` tokens from the middle of different works."""
    works = zip(*(read(packages) for read in (jane_austen, anarchist_faq, shakespeare_milton)), strict=False)
    found = []
    for text in (text for three in works for text in three):
        tokens = tokenizer.encode(text[: 12 * length])
        if len(tokens) >= length:
            start = (len(tokens) - length) // 2
            found.append(tokens[start : start + length])
        if len(found) == count:
            return found
    raise SystemExit(f"{packages} has only {len(found)} works of {length} tokens: give fewer --documents")


def cases(windows: list[list[int]], tokenizer: Tokenizer, length: int, facts: int) -> Iterator[Case]:
    """Yield the facts, each planted at another depth of a text, then the texts, which take longer."""
    for number in range(facts):
        city, secret = FACTS[number % len(FACTS)]
        fact = tokenizer.encode(f"\nThe secret number of {city} is {secret}.\n")
        question = tokenizer.encode(f"\nThe secret number of {city} is")
        answer = tokenizer.encode(f" {secret}")
        filler = windows[number % len(windows)][: length - len(fact) - len(question) - len(answer)]
        at = int(DEPTHS[(number + number // len(DEPTHS)) % len(DEPTHS)] * len(filler))
        before = [*filler[:at], *fact, *filler[at:]]
        tokens = [*before, *question, *answer]
        yield Case("fact", length, number, tokens, len(before), len(before) + len(question))
    for number, window in enumerate(windows):
        yield Case("text", length, number, window, 3 * length // 4, 3 * length // 4)


@torch.inference_mode()
def measure(
    model: GPT, case: Case, keeps: list[int], methods: list[str], done: set[tuple]
) -> Iterator[dict[str, Any]]:
    """Yield the result of each method, and of the whole cache (``full``)."""
    wanted = [("full", 0), *((method, keep) for keep in keeps for method in methods)]
    wanted = [each for each in wanted if (case.kind, case.length, case.number, *each) not in done]
    if not wanted:
        return
    tokens = torch.tensor([case.tokens])
    padding = torch.zeros(1, dtype=torch.long)
    cache = ComparedCache(model.config, model.mesh, padding, len(case.tokens), torch.float32)
    model.hidden(tokens[:, : case.past], cache)
    for method, keep in wanted:
        cache.again(case.past, "" if method == "full" else method, keep)
        normed = model.hidden(tokens[:, case.past :], cache)
        _, logits = model.head.after_norm(normed)
        # The logits of a token predict the next one.
        first = max(case.counted, case.past + 1)
        scores = logits[0, first - case.past - 1 : -1, : model.config.vocab_size]
        targets = tokens[0, first:]
        missing = [each.flatten() for each in cache.missing] or [torch.zeros(1)]
        yield {
            "kind": case.kind,
            "length": case.length,
            "number": case.number,
            "method": method,
            "keep": keep,
            "loss": float(F.cross_entropy(scores, targets)),
            "right": bool((scores.argmax(-1) == targets).all()) if case.kind == "fact" else None,
            "missing": float(torch.cat(missing).mean()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("name", help="of the model in the results")
    parser.add_argument("packages", type=Path, help="the folder that docs/ablation/prose.py filled")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--facts", type=int, default=0)
    parser.add_argument("--keep", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--methods", nargs="+", default=[*METHODS, "sparq:32,mean"])
    chosen = parser.parse_args()
    tokenizer = load_tokenizer(find_tokenizer(chosen.checkpoint))
    model = load_model(chosen.checkpoint, Mesh(1))
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    names = ("kind", "length", "number", "method", "keep")
    done = {tuple(row[name] for name in names) for row in rows if row["model"] == chosen.name}
    for length in chosen.lengths:
        windows = texts(chosen.packages, tokenizer, length, chosen.documents)
        for case in tqdm([*cases(windows, tokenizer, length, chosen.facts)], desc=f"{length} tokens"):
            for row in measure(model, case, chosen.keep, chosen.methods, done):
                with RESULTS.open("a") as file:
                    file.write(json.dumps({"model": chosen.name, **row}) + "\n")


if __name__ == "__main__":
    main()

"""What private channels carry: their share of the stream and of the logits, and the loss without them.

python docs/ablation/private.py prose/prose-validation.jsonl RUN_OR_CHECKPOINT ...

One line per checkpoint and layer, on held-out text. For the stream that a layer reads (the last row: the
head), `private` is the part of its square in private channels, and `apart` the part that is not common to
the shards: the variance over them. `logits` is the variance that private channels give to the logits,
relative to that of all channels, if the head reads this stream. `zeroed` is the loss if a layer reads zeros
in place of its private channels, and `averaged` if it reads their mean over the shards, minus the loss of
the model as it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from caat.data.tokenizer import find_tokenizer, load_tokenizer
from caat.parallel.mesh import Mesh
from caat.parallel.partial.stream import Stream
from caat.training.checkpoint.architecture import read_architecture
from caat.training.checkpoint.folder import find
from eval.open import load_model
from layers import GPT
from layers.linear import ColumnParallelLinear
from layers.norm import Normed

SEQUENCES = 64


def held_out(text: Path, folder: Path, length: int) -> tuple[Tensor, Tensor]:
    """Return tokens and targets [64, length] from the start of the documents in ``text``."""
    tokenizer, found = load_tokenizer(find_tokenizer(folder)), []
    with text.open() as lines:
        for line in lines:
            found += tokenizer.encode(json.loads(line)["text"])
            if len(found) > SEQUENCES * length:
                break
    tokens = torch.tensor(found[: SEQUENCES * length + 1])
    return tokens[:-1].view(-1, length), tokens[1:].view(-1, length)


def readers(model: GPT) -> list[ColumnParallelLinear]:
    """Return the layers that read the stream, in order: two for each block, and the head."""
    return [
        *(each for block in model.blocks for each in (block.attention.qkv, block.mlp.gate_up)),
        model.head,
    ]


@contextmanager
def reads(layer: ColumnParallelLinear, change: Callable[[Stream], Stream]) -> Iterator[None]:
    """Within this context, ``layer`` reads what ``change`` makes of the stream; the residual stays."""
    before = layer.unscaled_after_norm

    def after(normed: Normed):
        stream = normed.stream.settled()
        return stream, *before(normed._replace(stream=change(stream)))[1:]

    layer.unscaled_after_norm = after  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.unscaled_after_norm


def zeroed(stream: Stream) -> Stream:
    return Stream(stream.shared, torch.zeros_like(stream.private))


def averaged(stream: Stream) -> Stream:
    return Stream(stream.shared, stream.private.mean(0, keepdim=True).expand_as(stream.private).contiguous())


@torch.inference_mode()
def loss(model: GPT, tokens: Tensor, targets: Tensor) -> float:
    total = sum(model(x, y).double().sum() for x, y in zip(tokens.split(8), targets.split(8), strict=True))
    return float(total) / targets.numel()


@torch.inference_mode()
def shares(model: GPT, tokens: Tensor) -> list[tuple[float, float, float]]:
    """Return for each reader `private`, `apart` and `logits` of the stream that it reads."""
    found: list[tuple[float, float, float]] = []

    def record(stream: Stream) -> Stream:
        shared, private = stream.shared.double(), stream.private.double()
        square = shared.square().sum() + private.square().sum() / len(private)
        apart = (private - private.mean(0)).square().sum() / len(private)
        share = float(1 - shared.square().sum() / square), float(apart / square), logit_share(model, stream)
        found.append(share)
        return stream

    with ExitStack() as stack:
        for layer in readers(model):
            stack.enter_context(reads(layer, record))
        # Without targets, the head would take another way.
        model(tokens[:8], tokens[:8])
    return found


def logit_share(model: GPT, stream: Stream) -> float:
    """Return the variance over the vocabulary of what private channels add to the logits, as a share."""
    shared, private = stream.shared, stream.private
    # Each shard divides by its own norm, and has the logits of its part of the vocabulary.
    square = (shared.square().sum(-1) + private.square().sum(-1)) / model.config.hidden
    factor = (square + model.norm.eps).rsqrt()
    weight = (model.head.weight * model.norm.weight).unflatten(0, (len(private), -1))
    k = stream.shared_channels
    ours = torch.einsum("r...,r...m,rvm->...rv", factor, private, weight[..., k:]).flatten(-2)
    others = torch.einsum("r...,...k,rvk->...rv", factor, shared, weight[..., :k]).flatten(-2)
    return float((ours.var(-1) / (ours + others).var(-1)).mean())


def main(text: Path, given: list[str]) -> None:
    for name in given:
        folder = find(Path(name), "checkpoint")
        found = read_architecture(folder)
        model = load_model(folder, Mesh(found.shards))
        tokens, targets = held_out(text, folder, found.model.sequence)
        base = loss(model, tokens, targets)
        print(f"{name}: ratio {found.ratio}, loss {base:.4f}")
        print(f"{'layer':<14}{'private':>9}{'apart':>9}{'logits':>9}{'zeroed':>10}{'averaged':>10}")
        for number, (layer, share) in enumerate(zip(readers(model), shares(model, tokens), strict=True)):
            above = []
            for change in (zeroed, averaged):
                with reads(layer, change):
                    above.append(loss(model, tokens, targets) - base)
            block, which = divmod(number, 2)
            title = "head" if layer is model.head else f"{block + 1} {('attention', 'MLP')[which]}"
            print(f"{title:<14}{''.join(f'{part:9.3f}' for part in share)}", end="")
            print(f"{above[0]:+10.4f}{above[1]:+10.4f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: python {sys.argv[0]} TEXT.jsonl CHECKPOINT ...")
    main(Path(sys.argv[1]), sys.argv[2:])

"""Orders the channels of a Hugging Face model on a text, while it is imported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from caat.data.reading import read_documents
from caat.data.text import KNOWN, reader_of
from caat.data.tokenizer import load_tokenizer
from caat.parallel.mesh import Mesh
from conf.checks import require
from layers.channel_order import channel_sizes
from layers.gpt import GPT
from layers.huggingface.families import read_kind
from layers.huggingface.importing import Source

TOKENS = 8192
SEQUENCE = 512


def order_tokens(source: Source, order: str) -> Tensor:
    """Return 8,192 tokens, or a little less in whole sequences, of the text file ``order``: [batch, seq].

    Raises ``ValueError`` if the file cannot be read or has fewer, or if the model was trained with private
    channels, which belong to their shards.
    """
    path, ratio = Path(order).expanduser(), source.architecture.ratio
    require(
        source.architecture.plain or not read_kind(source.folder).exported,
        f"order={order} would change the model: {source.folder} was trained at sync.ratio={ratio}, and its "
        "private channels belong to their shards. Leave order out",
    )
    kind = reader_of(path)
    require(
        kind is not None and path.is_file(),
        f"order={order} is not a text file: give one that ends in {KNOWN}",
    )
    assert kind is not None
    length = min(SEQUENCE, source.architecture.model.sequence)
    tokenizer, found = load_tokenizer(source.tokenizer), []
    for batch in read_documents(kind, path, "text"):
        for text in batch:
            found += tokenizer.encode(text.as_py() or "")
            if len(found) >= TOKENS:
                return torch.tensor(found[: TOKENS // length * length]).view(-1, length)
    raise ValueError(f"order={order} has {len(found):,} tokens: give a text of {TOKENS:,} or more")


def order_channels(source: Source, tokens: Tensor) -> tuple[Source, float]:
    """Return ``source`` with its channels ordered on ``tokens`` [batch, seq], the largest first.

    Also return which part of the stream's square the first half of them then holds. The whole model is in
    memory, in float32.
    """
    from rich.console import Console
    from rich.progress import track

    model = GPT.empty(replace(source.architecture.model, padded_vocab_size=None), Mesh(1), 1.0).fill(
        source.read
    )
    shown = track(tokens.split(1), "ordering channels", console=Console(stderr=True), transient=True)
    sizes = channel_sizes(model, shown)
    order = sizes.argsort(descending=True, stable=True)
    return replace(source, order=order), float(sizes[order[: len(order) // 2]].sum() / sizes.sum())

"""Bytes of activations saved for the backward pass, counted layer by layer.

Per token and process, with h hidden channels of which k are shared, m = h - k private on each of r local
shards, q, v and f the local widths of queries, of values and of the FFN:

    norm + column-parallel    k + r m, the output (q + 2 v, 2 f or the vocabulary), r numbers 1/rms
    attention                 q + v rotated, v again if copied, q out, softmax sums; in float32, q + v twice
    norms of queries and keys q + v, twice on the CPU, a number 1/rms per head
    SwiGLU                    f of silu(gate); gate and up are the column-parallel output
    row-parallel              its input, the output of attention or SwiGLU

A norm before a plain linear (everything shared, one process) saves its input and its output instead. With
masked documents, every sequence has angles of its own, and all layers share one mask, unless a kernel takes
the borders of the documents instead.
tests/planning/test_activations.py compares these sums with the tensors alive after a forward pass, to the
byte: a change in what a layer saves must be reflected here.
"""

from __future__ import annotations

from dataclasses import dataclass

from caat.planning.parameters import norm_numbers
from conf.model import ModelConfig

# Norms, softmax sums and the loss are always float32; token numbers are int64.
WIDE, INDEX = 4, 8
# Number of logits that the loss converts to float32 at a time.
LOSS_CHUNK = 2**24


@dataclass(frozen=True)
class Pass:
    """One forward pass of one process."""

    model: ModelConfig
    shards: int
    processes: int
    # Shared channels, k.
    channels: int
    micro_batch: int
    sequence: int
    # Bytes per number of the activations.
    element_size: int
    # none, selective or full.
    checkpointing: str
    # On a GPU a norm is one kernel; on the CPU it is several, which save more. On a GPU memory counts as soon
    # as it is allocated, on the CPU when it is written to.
    cuda: bool = True
    # Whether attention stays within documents.
    masked: bool = False

    @property
    def tokens(self) -> int:
        return self.micro_batch * self.sequence

    @property
    def local(self) -> int:
        """Shards on this process, r."""
        return self.shards // self.processes

    @property
    def plain_norms(self) -> bool:
        """Whether everything is shared on one process: then norms are not fused with linears."""
        return self.channels == self.model.hidden and self.processes == 1

    @property
    def vocabulary(self) -> int:
        return self.model.padded_vocab(self.shards) // self.processes


def has_varlen_kernel(head_size: int, element_size: int, *, cuda: bool) -> bool:
    """Return whether torch has a kernel for attention within documents: FlashAttention's, on a GPU."""
    return cuda and element_size == 2 and head_size % 8 == 0 and head_size <= 256


def attends_in_float32(head_size: int, element_size: int, *, cuda: bool) -> bool:
    """Return whether attention is computed in float32 although the rest is in bfloat16.

    With small heads, torch's CPU kernel takes up to 1.75 times as long in bfloat16.
    """
    return not cuda and element_size == 2 and head_size <= 32


def block_bytes(p: Pass) -> int:
    """Return the bytes alive after the forward pass of all blocks, embedding and final norm included."""
    c, s = p.model, p.element_size
    stream = p.channels + p.local * (c.hidden - p.channels)
    if p.checkpointing == "full":
        # The stream before each block (its sum is kept by the previous block), and two sums per block.
        blocks = ((c.layers - 1) * stream + 2 * c.layers * p.channels) * p.tokens * s
    else:
        blocks = c.layers * _block(p, p.checkpointing) - stream * p.tokens * s
    entry = c.hidden * p.tokens * s
    angles = (p.micro_batch if p.masked else 1) * p.sequence * c.head_size * s
    gammas = norm_numbers(c) * s
    return blocks + entry + _norm(p) + angles + _mask(p) + gammas + _embedding(p)


def recomputed_bytes(p: Pass) -> int:
    """Return the bytes added while a block is recomputed, one block at a time."""
    return 0 if p.checkpointing == "none" else _block(p, "none") - _block(p, p.checkpointing)


def logit_bytes(p: Pass) -> int:
    """Return what head and loss save: logits, and per token log-sum, target index and mask."""
    return (p.vocabulary * p.element_size + WIDE + INDEX + 1) * p.tokens


def loss_peak_bytes(p: Pass) -> int:
    """Return the temporary bytes of the loss on top of :func:`logit_bytes`: gradient and float32 rows."""
    rows = min(p.tokens, max(LOSS_CHUNK // p.vocabulary, 1))
    wide = WIDE * (2 if p.element_size < WIDE else 1)
    return p.vocabulary * (p.element_size * p.tokens + wide * rows)


def head_work_bytes(p: Pass) -> int:
    """Return the bytes in use while the head's gradients are computed.

    These are the logits and two gradients of them, the gradient of the head's weights, its product with the
    weights, and the private weights once more.
    """
    c, s = p.model, p.element_size
    weights = 2 * c.hidden + (c.hidden - p.channels if p.local > 1 else 0)
    return p.vocabulary * (3 * p.tokens + weights) * s


def block_work_bytes(p: Pass) -> int:
    """Return the bytes in use while the gradients of a block's MLP are computed.

    These are two gradients each of the stream, of gate and up, and of their weights.
    """
    c, s = p.model, p.element_size
    stream = p.channels + p.local * (c.hidden - p.channels)
    ffn = 2 * c.ffn // p.processes
    return (2 * (stream + ffn) * p.tokens + 2 * ffn * c.hidden) * s


def _block(p: Pass, checkpointing: str) -> int:
    c, s = p.model, p.element_size
    query, value, ffn = (size // p.processes for size in (c.query_size, c.key_value_size, c.ffn))
    heads, kv_heads = c.heads // p.processes, c.kv_heads // p.processes
    # Values are not those of the projection if it has a bias, nor with several shards of several heads each,
    # where they are not contiguous in it.
    copied = c.attention_bias or (p.local > 1 and c.kv_heads > p.shards)
    per_token = 2 * _norm(p) // p.tokens + (query + ffn) * s
    if checkpointing == "selective":
        return (per_token + (query + 2 * value + 2 * ffn) * s) * p.tokens
    widened = attends_in_float32(c.head_size, s, cuda=p.cuda) and not p.masked
    projection = 0 if p.plain_norms and (copied or widened) else query + 2 * value
    core = (query + value + (value if copied else 0)) * s
    if widened:
        core = 2 * (query + value) * WIDE
    norms = 0
    if c.qk_norm:
        # The input, unless it is the projection, and on the CPU what is multiplied by the weight.
        kept = (copied + (not p.cuda)) * s
        if s < WIDE and not p.cuda:
            kept = 2 * WIDE
        norms = (query + value) * kept + (heads + kv_heads) * WIDE
    return (per_token + core + (projection + 3 * ffn) * s + norms + heads * WIDE) * p.tokens


def _mask(p: Pass) -> int:
    """Return the bytes of the mask that keeps attention within documents."""
    if not p.masked or has_varlen_kernel(p.model.head_size, p.element_size, cuda=p.cuda):
        return 0
    return p.tokens * p.sequence * p.element_size


def _norm(p: Pass) -> int:
    """Return the bytes of the stream and of the norm before a column-parallel linear."""
    h, s = p.model.hidden, p.element_size
    if not p.plain_norms:
        private = p.local if p.channels < h else 0
        return ((p.channels + private * (h - p.channels)) * s + max(private, 1) * WIDE) * p.tokens
    if p.cuda:
        return (2 * h * s + WIDE) * p.tokens
    # The stream (also in float32, if it has another type), normalised, and times the weight.
    widened = h * WIDE if s < WIDE else 0
    return (3 * h * s + widened + WIDE) * p.tokens


def _embedding(p: Pass) -> int:
    """Return the bytes of the token numbers and of the mask of those in this process's rows."""
    return (INDEX if p.processes == 1 else INDEX + 1) * p.tokens

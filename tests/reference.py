"""An independent second implementation of the model: float64, one tensor per shard, Hugging Face names.

It is written only from the formulas of the design and shares no code with ``layers`` or ``caat``: every shard
has its own full residual stream, and all gradients come from autograd through plain operations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def random_weights(c, seed: int = 0, padded: int | None = None) -> dict[str, Tensor]:
    """Return full weights by Hugging Face Llama names, float64; norm weights differ from one."""
    g = torch.Generator().manual_seed(seed)
    d = c.head_dim or c.hidden // c.heads
    query, kv = c.heads * d, c.kv_heads * d

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=g, dtype=torch.float64) / columns**0.5

    def vector(size: int) -> Tensor:
        return 0.2 * torch.randn(size, generator=g, dtype=torch.float64)

    def scale(size: int = c.hidden) -> Tensor:
        return 1 + vector(size)

    w = {"model.embed_tokens.weight": matrix(c.vocab_size, c.hidden)}
    for i in range(c.layers):
        at = f"model.layers.{i}."
        w[at + "input_layernorm.weight"] = scale()
        for name, rows in (("q", query), ("k", kv), ("v", kv)):
            w[at + f"self_attn.{name}_proj.weight"] = matrix(rows, c.hidden)
            if c.attention_bias:
                w[at + f"self_attn.{name}_proj.bias"] = vector(rows)
        for name in "qk" if c.qk_norm else "":
            w[at + f"self_attn.{name}_norm.weight"] = scale(d)
        w[at + "self_attn.o_proj.weight"] = matrix(c.hidden, query)
        w[at + "post_attention_layernorm.weight"] = scale()
        w[at + "mlp.gate_proj.weight"] = matrix(c.ffn, c.hidden)
        w[at + "mlp.up_proj.weight"] = matrix(c.ffn, c.hidden)
        w[at + "mlp.down_proj.weight"] = matrix(c.hidden, c.ffn)
    w["model.norm.weight"] = scale()
    if not c.tie_embeddings:
        w["lm_head.weight"] = matrix(c.vocab_size, c.hidden)
    return w


def _rms(x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * gamma


def _rope(x: Tensor, base: float) -> Tensor:
    """x [batch, heads, length, d]; pairs (i, i + d/2) as complex numbers."""
    d = x.shape[-1]
    frequency = base ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angle = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequency
    turned = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], -1)


def _attention(products: list[Tensor], gammas: list[Tensor], c) -> Tensor:
    """Attention of one shard's query, key and value [batch, length, *]; ``gammas``: of the first two."""
    d, base = c.head_dim or c.hidden // c.heads, c.rope_base
    b, s, _ = products[0].shape
    query, key, value = (x.view(b, s, -1, d).transpose(1, 2) for x in products)
    if gammas:
        query, key = _rms(query, gammas[0], c.norm_eps), _rms(key, gammas[1], c.norm_eps)
    query, key = _rope(query, base), _rope(key, base)
    group = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(group, 1) for t in (key, value))
    logits = query @ key.transpose(-1, -2) / math.sqrt(d)
    logits = logits.masked_fill(torch.ones(s, s, dtype=torch.bool).triu(1), float("-inf"))
    return (logits.softmax(-1) @ value).transpose(1, 2).reshape(b, s, -1)


def shard_of(m: Tensor, n: int, i: int, dim: int) -> Tensor:
    size = m.shape[dim] // n
    return m.narrow(dim, i * size, size)


def rounded_to_int8(x: Tensor) -> Tensor:
    """Round as in docs/definitions.md, in float64 except the scale and the quotient, which decide ties."""
    scale = (x.double().abs().max(-1, keepdim=True).values / 127).float()
    return torch.where(scale > 0, (x / scale).round().double() * scale.double(), 0.0)


class _Rounded(torch.autograd.Function):
    """Rounds the gradient, and ``x`` too if ``forward``."""

    @staticmethod
    def forward(ctx, x: Tensor, rounded, forward: bool):
        ctx.rounded = rounded
        return rounded(x) if forward else x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return ctx.rounded(gradient), None, None


def streams(
    w: dict[str, Tensor], c, tokens: Tensor, n: int, k: int, scale: float, rounded=None
) -> list[Tensor]:
    """Return the final residual stream [batch, seq, hidden] of each shard.

    ``rounded(x)``, if given, is applied to everything that travels: to every part of a sum, and to the sum.
    """

    def wire(x: Tensor, forward: bool = True) -> Tensor:
        return x if rounded is None else _Rounded.apply(x, rounded, forward)

    embedded = wire(w["model.embed_tokens.weight"][tokens], forward=False)
    x = [wire(embedded, forward=False) for _ in range(n)]

    def sync(outputs: list[Tensor]) -> list[Tensor]:
        # The outer wire() rounds each part of the gradient. Forward, total is already rounded: no effect.
        total = wire(sum(wire(o[..., :k]) for o in outputs))
        return [torch.cat([wire(total), scale * o[..., k:]], -1) for o in outputs]

    for layer in range(c.layers):
        at = f"model.layers.{layer}."
        outputs = []
        for i in range(n):
            y = _rms(x[i], w[at + "input_layernorm.weight"], c.norm_eps)
            products = []
            for part in "qkv":
                name = at + f"self_attn.{part}_proj."
                products.append(y @ shard_of(w[name + "weight"], n, i, 0).T)
                if c.attention_bias:
                    products[-1] = products[-1] + shard_of(w[name + "bias"], n, i, 0)
            gammas = [w[at + f"self_attn.{p}_norm.weight"] for p in "qk"] if c.qk_norm else []
            a = _attention(products, gammas, c)
            outputs.append(a @ shard_of(w[at + "self_attn.o_proj.weight"], n, i, 1).T)
        x = [a + b for a, b in zip(x, sync(outputs), strict=True)]
        outputs = []
        for i in range(n):
            y = _rms(x[i], w[at + "post_attention_layernorm.weight"], c.norm_eps)
            gate, up = (y @ shard_of(w[at + f"mlp.{p}_proj.weight"], n, i, 0).T for p in ("gate", "up"))
            a = gate * torch.sigmoid(gate) * up
            outputs.append(a @ shard_of(w[at + "mlp.down_proj.weight"], n, i, 1).T)
        x = [a + b for a, b in zip(x, sync(outputs), strict=True)]
    return x


def token_losses(
    w, c, tokens: Tensor, targets: Tensor, n: int, k: int, scale: float | None = None, rounded=None
) -> Tensor:
    """Return -log p(target) of every token [batch, seq]."""
    scale = math.sqrt(n) if scale is None else scale
    size = -(-c.vocab_size // n)
    head = w["model.embed_tokens.weight" if c.tie_embeddings else "lm_head.weight"]
    slices = []
    for i, x in enumerate(streams(w, c, tokens, n, k, scale, rounded)):
        rows = head[i * size : (i + 1) * size]
        slices.append(_rms(x, w["model.norm.weight"], c.norm_eps) @ rows.T)
    return -torch.cat(slices, -1).log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def loss_and_gradients(
    w, c, tokens, targets, n, k, scale=None, rounded=None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean loss and its gradient with respect to every full weight."""
    w = {name: value.clone().requires_grad_() for name, value in w.items()}
    loss = token_losses(w, c, tokens, targets, n, k, scale, rounded).mean()
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in w.items()}

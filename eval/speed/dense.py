"""The same model in plain torch, unsharded: the baseline for our layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conf.model import ModelConfig
from layers.attention import attend
from layers.rotary import rotary_angles, rotate


class DenseBlock(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.c = c
        self.attention_norm = nn.RMSNorm(c.hidden, c.norm_eps)
        self.qkv = nn.Linear(c.hidden, c.query_size + 2 * c.key_value_size, bias=False)
        self.output = nn.Linear(c.query_size, c.hidden, bias=False)
        self.mlp_norm = nn.RMSNorm(c.hidden, c.norm_eps)
        self.gate_up = nn.Linear(c.hidden, 2 * c.ffn, bias=False)
        self.down = nn.Linear(c.ffn, c.hidden, bias=False)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c = self.c
        batch, length, _ = x.shape
        heads = self.qkv(x).view(batch, length, -1, c.head_size)
        turned = rotate(heads[:, :, : c.heads + c.kv_heads], cos, sin)
        q, k = turned.transpose(1, 2).split([c.heads, c.kv_heads], dim=1)
        v = heads[:, :, c.heads + c.kv_heads :].transpose(1, 2)
        out = attend(q, k, v, None)
        return self.output(out.transpose(1, 2).reshape(batch, length, -1))

    def mlp(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class DenseGPT(nn.Module):
    """Token ids and targets [batch, seq] -> loss of every token [batch, seq]."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.c = c
        self.embedding = nn.Embedding(c.vocab_size, c.hidden)
        self.blocks = nn.ModuleList(DenseBlock(c) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.hidden, c.norm_eps)
        self.head = nn.Linear(c.hidden, c.vocab_size, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        cos, sin = rotary_angles(torch.arange(tokens.shape[-1], device=x.device), self.c, x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)

"""A Llama with N tensor-parallel shards and a partially synchronised residual stream, all in one process.

`caat convert` copies this file into a model's folder. Load it with
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`. It needs only torch and transformers.

Every shard has its own residual stream: activations are [shards, batch, length, channels]. The outputs of
attention and MLP are summed over the shards in the first `shared_channels` channels; the other channels
stay private to their shard, times `private_scale` (CAAT-Net, arXiv 2506.19645).
"""

from __future__ import annotations

from dataclasses import fields
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, LlamaConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# The output's field for the cache is `past_key_values` before transformers 5.24 and `cache` since.
CACHE = next(
    each.name for each in fields(CausalLMOutputWithPast) if each.name in ("cache", "past_key_values")
)
# Arguments that have no effect here, and those of the loss. Any other argument is an error: silently ignoring
# a cache or a mask under a new name would generate wrong text.
KNOWN = {
    "cache_position",
    "return_dict",
    "token_type_ids",
    "num_items_in_batch",
    "shift_labels",
    "ignore_index",
}


class CaatConfig(LlamaConfig):
    """Llama's configuration plus, under ``caat``, the values specific to CAAT: shards, shared_channels, ...

    The activation is always SiLU; ``hidden_act`` holds an invalid value to prevent building a plain Llama.
    """

    model_type = "llama"
    # The shards are part of the model: it cannot be split in another way.
    base_model_tp_plan = None

    def validate(self) -> None:
        """Check nothing when it is saved: Llama's checks refuse heads that do not divide the channels."""


def column_parallel(x: Tensor, linear: nn.Linear) -> Tensor:
    """Multiply each shard's input by its rows of the weight: [N, b, s, in] -> [N, b, s, out / N]."""
    y = torch.einsum("nbsi,noi->nbso", x, linear.weight.unflatten(0, (len(x), -1)))
    return y if linear.bias is None else y + linear.bias.view(len(x), 1, 1, -1)


def row_parallel(x: Tensor, linear: nn.Linear, shared: int, scale: float) -> Tensor:
    """Multiply each shard's input by its columns of the weight: [N, b, s, in / N] -> [N, b, s, out].

    Only the first ``shared`` channels are summed over the shards; the others are multiplied by ``scale``.
    """
    partial = torch.einsum("nbsi,oni->nbso", x, linear.weight.unflatten(1, (len(x), -1)))
    total = partial[..., :shared].sum(0, keepdim=True).expand(len(x), -1, -1, -1)
    return torch.cat([total, scale * partial[..., shared:]], -1)


def rotary_angles(positions: Tensor, c: CaatConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosine and sine [b, 1, s, head_dim / 2] for ``positions`` [b, s]."""
    kind, scale = c.rope_parameters["rope_type"], 1.0
    exponent = torch.arange(0, c.head_dim, 2, dtype=torch.float64, device=positions.device) / c.head_dim
    frequencies = c.rope_parameters["rope_theta"] ** -exponent
    if kind != "default":
        # Dynamic scaling depends on the length so far; cached keys keep the angles of their own pass.
        compute, length = ROPE_INIT_FUNCTIONS[kind], positions.max() + 1
        frequencies, scale = compute(c, positions.device, seq_len=length)
    angles = positions[:, None, :, None] * frequencies.double()
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d / 2) of ``x`` [b, heads, s, d]."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def visible(rows: Tensor, keys: int, attention_mask: Tensor | None) -> Tensor:
    """Return which of ``keys`` cached tokens the tokens at ``rows`` [s] see: bool [b or 1, 1, s, keys]."""
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask
    columns = torch.arange(keys, device=rows.device)
    mask = (columns <= rows[:, None])[None, None]
    if attention_mask is not None:
        real = F.pad(attention_mask, (0, keys - attention_mask.shape[-1])).bool()
        # Padding attends to itself: with no key at all, softmax would give nan, which spreads.
        mask = mask & real[:, None, None] | (columns == rows[:, None])
    return mask


class CaatNorm(nn.Module):
    """RMSNorm of each shard's stream, or of each head."""

    def __init__(self, c: CaatConfig, size: int | None = None) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size or c.hidden_size)), c.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class CaatAttention(nn.Module):
    """Causal grouped-query attention with heads split over the shards."""

    def __init__(self, c: CaatConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, c.head_dim
        self.shared, self.scale = c.caat["shared_channels"], c.caat["private_scale"]
        query, key_value = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        bias = c.caat["attention_bias"]
        self.q_proj = nn.Linear(c.hidden_size, query, bias=bias)
        self.k_proj = nn.Linear(c.hidden_size, key_value, bias=bias)
        self.v_proj = nn.Linear(c.hidden_size, key_value, bias=bias)
        self.o_proj = nn.Linear(query, c.hidden_size, bias=False)
        norms = c.caat["qk_norm"]
        self.q_norm, self.k_norm = (CaatNorm(c, c.head_dim) if norms else nn.Identity() for _ in range(2))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, rows: Tensor, mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        q, k, v = (self._heads(column_parallel(x, each)) for each in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            # Before transformers 5.4 a static cache needs the positions to write to.
            k, v = cache.update(k, v, self.layer, {"cache_position": rows})
        mask = visible(rows, k.shape[-2], mask)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        out = out.unflatten(1, (len(x), -1)).permute(1, 0, 3, 2, 4).flatten(3)
        return row_parallel(out, self.o_proj, self.shared, self.scale)

    def _heads(self, x: Tensor) -> Tensor:
        """[N, b, s, heads / N · d] -> [b, heads, s, d]: heads of different shards do not interact."""
        return x.unflatten(-1, (-1, self.head_dim)).permute(1, 0, 3, 2, 4).flatten(1, 2)


class CaatMLP(nn.Module):
    """SwiGLU MLP with inner features split over the shards."""

    def __init__(self, c: CaatConfig) -> None:
        super().__init__()
        self.shared, self.scale = c.caat["shared_channels"], c.caat["private_scale"]
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.silu(column_parallel(x, self.gate_proj)) * column_parallel(x, self.up_proj)
        return row_parallel(inner, self.down_proj, self.shared, self.scale)


class CaatLayer(nn.Module):
    """Pre-norm attention, then MLP, each added to the stream."""

    def __init__(self, c: CaatConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = CaatNorm(c)
        self.self_attn = CaatAttention(c, layer)
        self.post_attention_layernorm = CaatNorm(c)
        self.mlp = CaatMLP(c)

    def forward(self, x: Tensor, *attention: object) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *attention)
        return x + self.mlp(self.post_attention_layernorm(x))


class CaatStack(nn.Module):
    """The model from token numbers up to the head; parameters have Llama's names."""

    def __init__(self, c: CaatConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(CaatLayer(c, layer) for layer in range(c.num_hidden_layers))
        self.norm = CaatNorm(c)


class CaatForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = CaatConfig
    base_model_prefix = "model"
    _no_split_modules: ClassVar = ["CaatLayer"]
    _supports_sdpa = True
    # They are tied if config.tie_word_embeddings.
    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: CaatConfig) -> None:
        super().__init__(config)
        self.model = CaatStack(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Token numbers [b, s] -> logits [b, s, vocabulary]; arguments have the same meaning as for Llama.

        ``cache`` and ``past_key_values`` are the same argument in different versions of transformers. Raises
        ``TypeError`` for an unknown argument.
        """
        for name, value in kwargs.items():
            if name not in KNOWN and value is not None and value is not False:
                raise TypeError(f"CaatForCausalLM does not know the argument {name}: leave it out")
        cache = past_key_values if cache is None else cache
        embedded = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and cache is None:
            cache = DynamicCache()
        past = 0 if cache is None else cache.get_seq_length()
        rows = past + torch.arange(embedded.shape[1], device=embedded.device)
        positions = rows[None] if position_ids is None else position_ids
        cos, sin = rotary_angles(positions, self.config, embedded.dtype)
        if attention_mask is None and cache is None and position_ids is not None:
            # As in Llama: documents packed into a row, which begin where positions do not go on, are apart.
            document = F.pad(positions.diff(dim=-1) != 1, (1, 0)).cumsum(-1)
            apart = document[:, None, :, None] == document[:, None, None]
            attention_mask = apart & visible(rows, len(rows), None)

        x = embedded.expand(self.config.caat["shards"], *embedded.shape)
        for layer in self.model.layers:
            x = layer(x, cos, sin, rows, attention_mask, cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self._head(self.model.norm(x[:, :, kept]))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})

    def _head(self, x: Tensor) -> Tensor:
        """Multiply each shard's final state by its vocabulary slice: [N, b, s, h] -> [b, s, vocabulary]."""
        slices = self.lm_head.weight.split(self.config.caat["padded_vocab_size"] // len(x))
        # Padding is not stored: if the last slices are all padding, there are fewer slices than shards.
        return torch.cat([F.linear(state, rows) for state, rows in zip(x, slices, strict=False)], -1)

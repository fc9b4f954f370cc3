"""nn.Modules of a partially synchronised GPT. The linears can be used in other models (docs/linears.md)."""

from layers.attention import Attention
from layers.block import Block
from layers.cache import KVCache
from layers.embedding import VocabParallelEmbedding
from layers.gpt import GPT
from layers.host_cache import HostKVCache
from layers.linear import ColumnParallelLinear, RowParallelLinear
from layers.loss import vocab_parallel_cross_entropy
from layers.mlp import MLP
from layers.norm import RMSNorm

__all__ = [
    "GPT",
    "MLP",
    "Attention",
    "Block",
    "ColumnParallelLinear",
    "HostKVCache",
    "KVCache",
    "RMSNorm",
    "RowParallelLinear",
    "VocabParallelEmbedding",
    "vocab_parallel_cross_entropy",
]

"""One transformer layer."""

from __future__ import annotations

from torch import Tensor, nn

from caat.parallel.mesh import Mesh
from caat.parallel.partial.stream import Arriving, Stream
from conf.model import ModelConfig
from layers.attention import Attention
from layers.cache import LayerCache
from layers.mlp import MLP
from layers.norm import RMSNorm


class Block(nn.Module):
    """Pre-norm attention, then MLP, each added to the stream: two partial synchronisations each way."""

    def __init__(
        self, config: ModelConfig, mesh: Mesh, ratio: float, private_scale: float, recompute: bool
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden, mesh, config.norm_eps)
        self.attention = Attention(config, mesh, ratio, private_scale, recompute)
        self.mlp_norm = RMSNorm(config.hidden, mesh, config.norm_eps)
        self.mlp = MLP(config, mesh, ratio, private_scale, recompute)

    def forward(
        self,
        x: Stream | Arriving,
        attention_gamma: Tensor,
        mlp_gamma: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: LayerCache | None = None,
    ) -> Arriving:
        x = self.attention(self.attention_norm(x, attention_gamma), cos, sin, cache)
        return self.mlp(self.mlp_norm(x, mlp_gamma))

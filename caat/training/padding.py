"""The rows that pad the vocabulary to a multiple of the shards. They must stay zero.

No token has them, and checkpoints leave them out, so a resumed run starts with zeros there. Some codecs,
such as `sign`, decode zeros to other numbers. If these moved the rows, the codecs and norms that take them
together with real weights would give other results after a resume.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from caat.optim.places import Place
from caat.parallel.mesh import Mesh
from conf.model import ModelConfig

NAMES = ("embedding.weight", "head.weight")


def padding_of(model: nn.Module, places: Mapping[str, Place]) -> dict[str, list[slice]]:
    """Return which numbers of each parameter's place are padding, by name; only parameters that have some.

    ``model`` is a GPT, and ``places`` say where the optimizer has its parameters.
    """
    config: ModelConfig = model.config  # type: ignore[assignment]
    mesh: Mesh = model.mesh  # type: ignore[assignment]
    rows = config.padded_vocab(mesh.shards) // mesh.shards
    found: dict[str, list[slice]] = {}
    # Tied weights have one name.
    for name in (name for name in NAMES if name in places):
        place = places[name]
        for held, shard in enumerate(mesh.local_shards):
            real = min(max(config.vocab_size - shard * rows, 0), rows)
            first = max(0, (held * rows + real) * config.hidden - place.start)
            stop = min(place.size, (held + 1) * rows * config.hidden - place.start)
            if first < stop:
                found.setdefault(name, []).append(slice(first, stop))
    return found

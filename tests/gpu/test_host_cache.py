"""The KV cache in host memory on a GPU: pinned memory and a stream of its own change no row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from caat.parallel.mesh import Mesh
from conf.cache import CacheConfig
from layers.host_cache import cache_of
from tests.models import SMALL, build

DEVICE = "cuda"
PROMPT, TOKENS = 200, 230
LONG = replace(SMALL, sequence=TOKENS)


@torch.inference_mode()
def continued(device: str, settings: CacheConfig, dtype: torch.dtype) -> torch.Tensor:
    """Return the logits of new tokens [batch, tokens, vocabulary] after prompts of two lengths."""
    model = build(Mesh(4), 0.5, dtype=dtype, config=LONG).eval().to(device)
    tokens = torch.randint(SMALL.vocab_size, (2, TOKENS), generator=torch.Generator().manual_seed(1)).to(
        device
    )
    padding = torch.tensor([0, 23], device=device)
    cache = cache_of(settings)(LONG, model.mesh, padding, TOKENS, dtype)
    logits = [model(tokens[:, :PROMPT], cache=cache)[:, -1]]
    logits += [model(tokens[:, [at]], cache=cache)[:, -1] for at in range(PROMPT, TOKENS)]
    return torch.stack(logits, 1).cpu()


@pytest.mark.parametrize("index", ["int8", "int4"])
def test_the_same_rows_as_on_the_cpu(index):
    settings = CacheConfig("host", keep=8, index=index)
    found = continued(DEVICE, settings, torch.float64)
    torch.testing.assert_close(found, continued("cpu", settings, torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_enough_rows_it_is_the_devices_cache_bit_for_bit(dtype):
    everything = CacheConfig("host", keep=TOKENS)
    assert torch.equal(continued(DEVICE, everything, dtype), continued(DEVICE, CacheConfig(), dtype))

"""A small trained model on disk: a checkpoint folder with random weights and a real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from caat.data.tokenizer import train_tokenizer
from caat.training.checkpoint.architecture import Architecture
from conf.model import ModelConfig
from conf.partition import shared_channels
from tests.reference import random_weights

# No N divides 301. The pieces include all bytes, so that random tokens also give broken UTF-8. Heads have 8
# channels: with a single rotary pair, a wrong pairing of channels would go unnoticed.
MODEL = ModelConfig(
    layers=2, hidden=128, ffn=48, heads=16, kv_heads=8, vocab_size=301, sequence=64, norm_eps=1e-5
)
SENTENCES = [f"The {colour} fox of {place} jumped over {n} lazy dogs." for n in range(40)
             for colour, place in (("brown", "Paris"), ("grey", "Rome"))]  # fmt: skip


def write_checkpoint(
    folder: Path,
    shards: int,
    ratio: float,
    seed: int = 0,
    bytes_are_likely: bool = True,
    model: ModelConfig = MODEL,
) -> Path:
    """Write the checkpoint of a run to ``folder`` and return its path."""
    checkpoint = folder / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint.parent / "latest").write_text(f"{checkpoint.name}\n")
    channels = shared_channels(model.hidden, ratio, shards)
    architecture = Architecture(model, shards, ratio, channels, shards**0.5)
    (checkpoint / "config.json").write_text(json.dumps(architecture.to_json()))
    weights = {name: value.to(torch.float32) for name, value in random_weights(model, seed).items()}
    if not bytes_are_likely:
        weights["lm_head.weight"][3 : 3 + 256] = 0
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    train_tokenizer(iter(SENTENCES), model.vocab_size, checkpoint / "tokenizer.model")
    return checkpoint

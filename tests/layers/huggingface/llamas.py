"""Small random Llamas and their relatives in Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.data.test_huggingface_tokenizer import write_tokenizer

SIZES = dict(
    vocab_size=403,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    initializer_range=0.2,
)


def write_llama(folder: Path, dtype=torch.float32, max_shard_size="5GB", tokenizer: bool = True, **changes):
    """Save a random Llama of `SIZES` with a tokenizer of 400 pieces to ``folder`` and return the model."""
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **changes})).to(dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        write_tokenizer(folder)
    # Not model.float(): the conversion would keep rotary frequencies that were rounded in the other type.
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def write_family(folder: Path, kind: str, **changes):
    """Save a random model of transformers' class ``kind``ForCausalLM, with a tokenizer, and return it.

    Norm weights and biases are random too, unlike those that transformers initialises.
    """
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    write_tokenizer(folder)
    return model.eval()


def prompt(size: int = 2, length: int = 11) -> torch.Tensor:
    return torch.randint(SIZES["vocab_size"], (size, length), generator=torch.Generator().manual_seed(1))

"""Checkpoints: safetensors with Hugging Face Llama names, JSON beside it, nothing to unpickle.

A folder ``step-00000100`` holds the weights, AdamW's moments, config.json, the tokenizer and state.json with
a checksum of every file. It knows no process count: full tensors, in shard order, that load at any P,
data-parallel size and ZeRO stage.
"""

"""Checkpoints: safetensors with Hugging Face Llama names, and JSON; nothing is unpickled.

A folder ``step-00000100`` holds the weights, the optimizer state, config.json, the tokenizer and state.json
with a checksum of every file. It does not depend on the process count: it holds full tensors, in shard order,
which can be loaded at any P, data-parallel size and ZeRO stage.
"""

"""Checkpoints: safetensors with Hugging Face Llama names, JSON beside it, nothing to unpickle.

A folder ``step-00000100`` holds the weights, the optimizer's state, config.json, the tokenizer and state.json
with a checksum of every file. It does not depend on the process count: full tensors, in shard order, load at
any P, data-parallel size and ZeRO stage.
"""

"""Conversion from and to Hugging Face: Llama checkpoints, and model code that runs all N shards."""

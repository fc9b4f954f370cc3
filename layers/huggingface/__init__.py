"""The same models in Hugging Face's hands: Llama checkpoints read and written, and what runs all N shards."""

"""Text to tokens to batches. Knows no model and imports nothing until it is used."""

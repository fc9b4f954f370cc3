"""Text generation: batches, sampling, stopping."""

"""Text from a trained model: batches, sampling, when to stop."""

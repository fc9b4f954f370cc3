"""The uses of a trained model: generation, quality, speed."""

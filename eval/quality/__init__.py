"""The quality of a trained model: log-probabilities and lm-eval benchmarks."""

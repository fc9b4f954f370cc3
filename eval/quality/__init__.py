"""How good a trained model is: log-probabilities, and the benchmarks of lm-eval."""

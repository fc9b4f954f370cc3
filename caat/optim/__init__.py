"""Optimizers, each with the state that it declares: what checkpoints save and resume of it."""

"""Optimizers; each declares the state that checkpoints save and resume."""

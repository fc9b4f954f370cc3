"""Partial synchronisation: a residual stream of shared and private channels, and the GEMMs around its sums."""

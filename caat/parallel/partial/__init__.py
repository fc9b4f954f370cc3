"""Partial synchronisation: a residual stream of shared and private channels, and GEMMs that hide its sums."""

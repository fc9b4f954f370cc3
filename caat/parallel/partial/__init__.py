"""Partial synchronisation: the residual stream of shared and private channels, and the GEMMs around a sum."""

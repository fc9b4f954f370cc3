"""Codecs of the indices that a sparse codec sends."""

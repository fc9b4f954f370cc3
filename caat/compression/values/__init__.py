"""Codecs of the values that a sparse codec sends."""

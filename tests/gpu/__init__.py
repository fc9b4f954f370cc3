"""Tests that need a CUDA GPU: `make test-gpu`."""

"""Runs on disk: status, settings and metrics, and the statistics over several of them."""

"""Supervision of a run: agreement between ranks, stop signals, detection of hangs and replica drift."""

"""Fault drills: real runs with real faults. `make drills` runs them all; see ``__main__``."""

"""The shipped batch scripts on a real Slurm, started for the tests. `make test-slurm` runs them."""

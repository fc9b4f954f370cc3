"""The timeout of collectives."""

from datetime import timedelta

# A rank may have to wait for another one that is busy, reading a checkpoint or computing on a slow core. The
# watchdog detects hangs; torch's default of half an hour would end healthy runs.
GROUP_TIMEOUT = timedelta(days=1)

"""How long a message may take."""

from datetime import timedelta

# A rank may have to wait for another one that works: reads a checkpoint, computes on a slow core. What counts
# as a hang is for the watchdog to say; torch's own half an hour would end what is well.
PATIENCE = timedelta(days=1)

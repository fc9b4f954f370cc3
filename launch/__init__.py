"""The verbs of the command line, and the processes that they start."""

import os
import signal
import sys

from caat.parallel.world import launched_by_torchrun

# In a process of torchrun's, Ctrl-C while Python still imports would be a traceback of each rank.
if launched_by_torchrun() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# A stream that is closed, as by `>&-`: a file opened later would take its number, and what is printed.
for number, name in enumerate(("stdin", "stdout", "stderr")):
    if getattr(sys, name) is None:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115

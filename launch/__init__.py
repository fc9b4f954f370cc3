"""The verbs of the command line, and the processes that they start."""

import os
import signal
import sys

from caat.parallel.world import launched_by_torchrun

# Under torchrun, Ctrl-C during imports would print a traceback from every rank.
if launched_by_torchrun() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# If a standard stream is closed (`>&-`), a file opened later would get its number, and the output with it.
for number, name in enumerate(("stdin", "stdout", "stderr")):
    if getattr(sys, name) is None:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115

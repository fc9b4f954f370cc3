"""The verbs of the command line, and the processes that they start."""

import os
import signal

# In a process of torchrun's, Ctrl-C while Python still imports would be a traceback of each rank.
if "TORCHELASTIC_RUN_ID" in os.environ and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

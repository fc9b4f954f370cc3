"""Exit statuses of a process that ends without returning to its command."""

HUNG = 5
# As of a shell command that Ctrl-C ends: 128 + SIGINT.
INTERRUPTED = 130

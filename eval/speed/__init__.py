"""The speed of the layers: stacks to compare, timed in turns. Nothing here prints."""

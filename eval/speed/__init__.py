"""How fast the layers are: stacks to compare, timed in turns. Nothing here prints."""

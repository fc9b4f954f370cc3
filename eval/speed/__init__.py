"""The speed of the layers: stacks to compare, timed in turns. It prints only progress and left-out peers."""

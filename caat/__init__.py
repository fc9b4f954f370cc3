"""caat: the communication-aware core of the toolkit; the layers of the model are beside it.

``parallel`` holds the mesh, the counted collectives and partial synchronisation, ``data`` goes from
text to batches, ``training`` from batches to checkpoints; ``planning`` counts what a run will need.
"""

__version__ = "0.1.0"

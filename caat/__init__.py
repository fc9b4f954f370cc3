"""caat: the communication-aware core of the toolkit; it knows no model.

``parallel`` holds the mesh, the counted collectives and partial synchronisation, ``data`` goes from
text to batches, ``training`` from batches to checkpoints.
"""

__version__ = "0.1.0"

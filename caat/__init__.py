"""The communication-aware core of the toolkit; the model's layers are in the package ``layers``.

``parallel`` holds the mesh, the counted collectives and partial synchronisation. ``data`` turns text into
batches, ``training`` turns batches into checkpoints, and ``planning`` predicts what a run needs.
"""

__version__ = "0.1.0"

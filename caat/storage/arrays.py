"""Arrays in .npy files that may be damaged or foreign."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def map_array(path: Path) -> np.ndarray:
    """The array in the .npy file ``path``, mapped into memory: its header may claim more than there is.

    Nothing is unpickled. Raises ``ValueError``, as the end of a sentence that begins with the file.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from None
    # NumPy lets through whatever a damaged header makes Python raise.
    except Exception as error:
        raise ValueError(f"cannot be read as a .npy file of numbers ({error})") from None

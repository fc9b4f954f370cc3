"""Read arrays from .npy files that may be damaged or come from elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def map_array(path: Path) -> np.ndarray:
    """Memory-map the array in the .npy file ``path``, whose header may claim more than the file holds.

    Nothing is unpickled. Raises ``ValueError`` whose message continues a sentence that starts with the path.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from None
    # NumPy passes on any exception that parsing a damaged header raises.
    except Exception as error:
        raise ValueError(f"cannot be read as a .npy file of numbers ({error})") from None

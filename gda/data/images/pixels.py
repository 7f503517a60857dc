"""Room for many decoded images: a file that the system holds in memory as far as there is any, so that millions need not fit."""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from gda.io.publish import storage_errors


def room_for(count: int, size: int, *, scratch: Path | None = None) -> torch.Tensor:
    """uint8 zeros [count, 3, size, size]: in memory, or given `scratch` mapped from an unnamed file in that folder.

    The file is gone with the tensor, and with the process however that ends. Its whole length is claimed at once, since a disk that is
    found full later kills whoever writes to the mapping. Raises `MissingError` where there is no such room.
    """
    length = count * 3 * size * size
    if scratch is None or length == 0:
        return torch.zeros((count, 3, size, size), dtype=torch.uint8)
    with storage_errors(scratch), tempfile.TemporaryFile(dir=scratch) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, length)
        else:
            file.truncate(length)
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=(count, 3, size, size)))

"""Memory for many decoded images: a mapped file that the system caches in free memory, so that millions of images need not fit."""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from gda.runtime.disks import storage_errors


def room_for(count: int, size: int, *, scratch: Path | None = None) -> torch.Tensor:
    """uint8 zeros [count, 3, size, size]: in memory, or given `scratch` mapped from an unnamed file in that folder.

    The file disappears with the tensor, and with the process however that ends. Its whole length is allocated at once: on a disk that
    fills up later, writing to the mapping would kill the process. Raises `MissingError` where there is not enough room.
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

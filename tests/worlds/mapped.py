"""Whether a tensor is mapped from a file instead of lying in memory of its own."""

from pathlib import Path

import torch

_MAPS = Path("/proc/self/maps")
LISTED = _MAPS.is_file()


def is_mapped(images: torch.Tensor) -> bool:
    """Whether the tensor's memory is that of a file, as the system lists it."""
    address = images.data_ptr()
    for line in _MAPS.read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= address < high:
            return int(line.split()[4]) != 0  # inode
    raise AssertionError("the tensor's address is in no mapping")

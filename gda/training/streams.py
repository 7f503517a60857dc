"""Named random streams: every draw comes from a generator whose seed is derived from a run's seed and the draw's name."""

import hashlib

import torch


def stream_seed(seed: int, name: str) -> int:
    """A 63-bit seed for the stream `name` of the run `seed`; different names give unrelated streams."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def stream(seed: int, name: str) -> torch.Generator:
    """A CPU generator at the start of the stream `name` of the run `seed`."""
    return torch.Generator().manual_seed(stream_seed(seed, name))

"""Named random streams for resampling."""

import numpy as np

from gda.artifacts.fingerprint import digest_of


def named_generator(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on `seed` and the names alone, so that adding a comparison never changes another one's resamples."""
    return np.random.default_rng(int(digest_of([seed, *names])[:32], 16))

"""Leaks and duplicates of a synthetic set, and what real images say of the rate at which such happens by chance."""

import hashlib

import numpy as np
import pytest
import torch
from pictures import CHANGES, changed, digits

from gda.errors import DataError
from gda.fidelity.intervals import share
from gda.fidelity.neighbours import ROW_BLOCK, nearest
from gda.gate.checks.duplicates import duplicates, exact_matches
from gda.gate.checks.leaks import Leak, find_leaks, real_rate, sketches_of


def hashes(images: torch.Tensor) -> list[str]:
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]


def test_exact_and_near_leaks_are_distinguished() -> None:
    """Each leaked image is listed once, with its original: pixel for pixel where it is, else as near."""
    real, own = digits()[:40], digits()[100:130].clone()
    own[4] = real[9]
    own[12] = changed(real[[2]], CHANGES["mirrored"])[0]
    own[20] = changed(real[[30]], CHANGES["jpeg 60"])[0]
    found = find_leaks("test", hashes=hashes(own), sketches=sketches_of(own), real_hashes=hashes(real), real_sketches=sketches_of(real))
    assert found == [
        Leak(split="test", query=4, reference=9, exact=True),
        Leak(split="test", query=12, reference=2, exact=False),
        Leak(split="test", query=20, reference=30, exact=False),
    ]


def test_the_real_rate_is_the_upper_end_where_real_images_match_too() -> None:
    """Where real train and test share pictures, a synthetic set at the same rate is not refused for the luck of a small sample."""
    test = digits()[:200]
    assert real_rate(sketches_of(digits()[300:400]), sketches_of(test)) == 0.0
    sharing = torch.cat([changed(test[:3], CHANGES["jpeg 90"]), digits()[300:397]])
    assert real_rate(sketches_of(sharing), sketches_of(test)) == share(3, 100).high
    with pytest.raises(DataError):
        real_rate(sketches_of(test[:0]), sketches_of(test))


def test_exact_duplicates_and_matches_by_hash() -> None:
    """Later repeats are counted once each; matches name the first place."""
    assert duplicates(["a", "b", "a", "a"]) == [2, 3]
    assert exact_matches(["x", "b"], ["b", "c", "b"]) == [(1, 0)]


def test_nearest_agrees_with_brute_force_across_blocks() -> None:
    """Blocking must not change the answer, at a block's edge above all."""
    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(ROW_BLOCK + 3, 4)), rng.normal(size=(50, 4))
    brute = np.linalg.norm(queries[:, None] - references, axis=2)
    distances, indices = nearest(queries, references, k=3)
    assert (indices == np.argsort(brute, axis=1)[:, :3]).all()
    assert distances == pytest.approx(np.sort(brute, axis=1)[:, :3], abs=1e-6)
    own, _ = nearest(queries, queries, skip_self=True)
    assert (own > 0).all()

"""Random streams by name: independent, the same everywhere, and derived in one place."""

import random
import re
from pathlib import Path

import numpy as np
import torch

import gda
from gda.runtime.rng import numpy_stream, shuffled, stream_seed
from gda.runtime.torch_rng import RandomStreams, seeded_globals, torch_stream

# Code that may seed a generator itself, and why.
ALONE = {
    "runtime/rng.py": "the one derivation",
    "runtime/torch_rng.py": "its streams of torch",
    "demo_base/pretrain.py": "the seeds that the shipped base was trained with",
    "demo_base/build.py": "a tiny base of random weights, from the caller's seed",
    "fidelity/kid.py": "torch-fidelity's subsets, for equal figures",
    "fidelity/diversity.py": "torch-fidelity's splits, for equal figures",
    "training/loop/classifier.py": "timm initialises with the global generator",
    "training/loop/forward.py": "dropout uses the global generator",
}
OWN_SEED = re.compile(r"default_rng\(|manual_seed\(|RandomState\(|random\.seed\(|random\.Random\(|SeedSequence\(")


def test_the_seed_of_a_name_never_changes() -> None:
    """Seeds are part of what is stored: another version must sample the same images. The number is of the command sha256sum."""
    assert stream_seed("image", 0, "blue", 7) == 0xAEBD8DA46C709AD6 >> 1


def test_names_give_independent_streams() -> None:
    """Two seeds or two names never share their numbers, also where the joined words are equal, or a number reads like a word."""
    names = [("a", 0), ("a", 1), ("b", 0), ("a", 0, "c"), ("a/0", "c"), ("a", "0/c"), ("a", "0"), ("a", "0", "c")]
    for first in (lambda *n: numpy_stream(*n).random(), lambda *n: float(torch.rand((), generator=torch_stream(*n)))):
        values = [first(*name) for name in names]
        assert len(set(values)) == len(names)
        assert values == [first(*name) for name in names]
    assert all(0 <= stream_seed("x", i) < 2**63 for i in range(1000))


def test_seeds_are_uniform() -> None:
    """Every bit of a seed is set in half of the names, so that no part of it is wasted."""
    seeds = np.array([stream_seed("bits", i) for i in range(4000)], dtype=np.uint64)
    share = [float(((seeds >> np.uint64(bit)) & np.uint64(1)).mean()) for bit in range(63)]
    assert min(share) > 0.45
    assert max(share) < 0.55


def test_a_shuffled_order_depends_on_names_and_keys_alone() -> None:
    """The order of the input does not matter, items that come or go leave the others in place, and all orders are equally likely."""
    items = [f"image-{i}" for i in range(50)]
    order = shuffled(items, "order", 3, key=str)
    assert shuffled(reversed(items), "order", 3, key=str) == order
    assert shuffled(items[:30], "order", 3, key=str) == [item for item in order if item in items[:30]]
    assert shuffled(items, "order", 4, key=str) != order
    first = [shuffled("abc", "turn", i, key=str)[0] for i in range(900)]
    assert all(250 < first.count(letter) < 350 for letter in "abc")


def test_seeded_globals_leave_no_trace() -> None:
    """Code on global generators repeats under the same stream, and the generators go on as if it had not run."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), np.random.random(), float(torch.rand(())))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    seen = []
    for name in ("a", "a", "b"):
        with seeded_globals(torch_stream(name)):
            seen.append((random.random(), np.random.random(), float(torch.rand(()))))
    assert (random.random(), np.random.random(), float(torch.rand(()))) == expected
    assert seen[0] == seen[1] != seen[2]


def test_only_these_modules_seed_a_generator() -> None:
    """A seed that another module derived could repeat or contradict a stream; each exception has its reason in the table."""
    root = Path(gda.__file__).parent
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if OWN_SEED.search(path.read_text())}
    assert found == set(ALONE)


def test_random_streams_are_standard():
    """Uniform numbers fill [0, 1), integers their range, normal ones have mean 0 and deviation 1."""
    streams = RandomStreams([stream_seed("x", i) for i in range(500)])
    normal, uniform, integers = streams.normal(20), streams.uniform(20), streams.integers(4)
    assert abs(float(normal.mean())) < 0.05
    assert abs(float(normal.std()) - 1) < 0.05
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    assert integers.bincount().min() > 80

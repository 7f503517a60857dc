"""How often the intervals of validation hold the mean score of new sets from the same sources, by the sizes of both sets.

Sets are sampled at random from two sources, compared as `gda validate` does, and the interval is held against the mean that fresh pairs of
sets of that n score. Features have 64 dimensions and a falling spectrum, like `glyph`'s, and are skewed. Run by
hand: `python benchmarks/intervals.py` (about half an hour on one core); `docs/validation.md` has the figures.
"""

import argparse

import numpy as np

from gda.fidelity.compare import FeatureSet, compare_sets, measured_once

DIMENSIONS = 64
# Synthetic and real images: a set much smaller than the real one, of half its size, of its size, and much larger.
SIZES = ((100, 800), (100, 200), (200, 200), (1000, 200), (350, 700))
NAMES = ("fid", "kid", "precision", "recall", "density", "coverage", "vendi")


def sample(rng: np.random.Generator, n: int, *, shift: float = 0.0, scale: float = 1.0) -> FeatureSet:
    """Features float64 [n, 64]: gamma variables, dependent, the k-th with a standard deviation of k^-0.75."""
    factors = (rng.gamma(2.0, size=(n, DIMENSIONS)) - 2.0) / np.sqrt(2.0) * np.arange(1, DIMENSIONS + 1) ** -0.75
    mixing = np.linalg.qr(np.random.default_rng(0).normal(size=(DIMENSIONS, DIMENSIONS)))[0]
    return FeatureSet(features=shift * mixing[0] + scale * factors @ mixing)


def coverage(synthetic: int, real: int, *, shift: float, scale: float, sets: int, seed: int = 0) -> dict[str, float]:
    """Share of `sets` pairs of sets whose interval holds the mean score of ten times as many fresh pairs at the same n."""
    rng, n = np.random.default_rng(seed), min(synthetic, real // 2)
    fresh = [measured_once(sample(rng, n, shift=shift, scale=scale), sample(rng, n)) for _ in range(10 * sets)]
    truth = {name: np.mean([each[name] for each in fresh]) for name in NAMES}
    held = dict.fromkeys(NAMES, 0)
    for number in range(sets):
        found = compare_sets(sample(rng, synthetic, shift=shift, scale=scale), sample(rng, real), seed=number)
        for name in NAMES:
            held[name] += found[name].estimate.low <= truth[name] <= found[name].estimate.high
    return {name: held[name] / sets for name in NAMES}


def main() -> None:
    """Print a row for each pair of sizes, for a synthetic set of another source and for one of the same source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=200, help="pairs of sets for each row")
    sets = parser.parse_args().sets
    print("| Synthetic | Real | Source | " + " | ".join(NAMES) + " |\n|" + "---|" * (len(NAMES) + 3))
    for source, shift, scale in (("another", 0.5, 1.1), ("the same", 0.0, 1.0)):
        for synthetic, real in SIZES:
            found = coverage(synthetic, real, shift=shift, scale=scale, sets=sets)
            print(f"| {synthetic} | {real} | {source} | " + " | ".join(f"{found[name]:.1%}" for name in NAMES) + " |", flush=True)


if __name__ == "__main__":
    main()

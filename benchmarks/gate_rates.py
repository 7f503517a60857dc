"""How often the gate errs, and how often it sees a gain: simulated comparisons whose truth is known.

Two arms are right about an image when its ease, what the arm adds to it, what the seed adds, what the synthetic set adds and noise are
above zero together (a probit model); a gain shifts one of them. Per row and repetition: does the interval hold the true gain, and would
the gate open (interval above zero and sign flips, both at the level of a first look)? Next to it the plain test of two factors, a t test
with Satterthwaite's degrees of freedom and sign flips at 0.05, on the same simulated comparisons.

    python benchmarks/gate_rates.py            # every row, minutes
    python benchmarks/gate_rates.py 3 7        # rows by number
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from gda.stats.multiplicity.looks import level_of_look
from gda.stats.paired import sign_flip_test
from gda.stats.two_way import two_way

ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """Standard deviations, on the latent scale, of what a seed, a set and an image add to the difference of two arms; `gain` shifts it."""

    seeds: int
    images: int
    seed: float = 0.1
    image: float = 0.2
    of_set: float = 0.0
    sets: int = 1
    group: int = 1  # images with a common effect
    gain: float = 0.0
    repeats: int = 1000

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Differences [seeds, images] of right and wrong."""
        groups = np.arange(self.images) // self.group
        ease = rng.normal(1.2, 1.0, groups[-1] + 1)[groups]
        twist = rng.normal(0, self.image, groups[-1] + 1)[groups] + self.gain
        luck = rng.normal(0, self.of_set, self.sets)[np.arange(self.seeds) % self.sets]
        arms = []
        for sign in (0.5, -0.5):
            shift = sign * (twist + luck[:, None]) + self.seed * rng.standard_normal((self.seeds, 1), dtype=np.float32)
            arms.append(ease + shift + rng.standard_normal((self.seeds, self.images), dtype=np.float32) > 0)
        return arms[0].astype(np.float64) - arms[1]

    @property
    def truth(self) -> float:
        """The gain in accuracy that this world has on average."""
        width = np.sqrt(1 + 1.0**2 + (self.image**2 + self.of_set**2) / 4 + self.seed**2)
        return float(stats.norm.cdf((1.2 + self.gain / 2) / width) - stats.norm.cdf((1.2 - self.gain / 2) / width))


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares over the repetitions, in [0, 1]; `half` is the mean half width of the interval in points."""

    covered: float
    half: float
    opened: float
    plain: float
    plain_covered: float


def opens(world: ProcessGroup, rng: np.random.Generator, *, looks: int = 1) -> tuple[bool, float, bool, bool, bool]:
    """One comparison: covered, half width, opened by the gate, by the plain test, and covered by the plain test's interval.

    With several `looks` a run that fails goes on with as many seeds more, on the same images, and is assessed again.
    """
    table = world.sample(rng)
    step = world.seeds // looks
    covered = opened = plain = plain_covered = False
    half = 0.0
    for look in range(1, looks + 1):
        seen = table[: step * look]
        sets = np.arange(len(seen)) % world.sets if world.sets > 1 else None
        groups = np.arange(world.images) // world.group if world.group > 1 else None
        estimate = two_way(seen, sets=sets, groups=groups)
        low, high = estimate.interval(0.95)
        covered, half = low <= world.truth <= high, (high - low) / 2
        by_seed = seen.mean(axis=1)
        flipped = by_seed
        if sets is not None and world.sets >= 6:
            flipped = np.array([by_seed[sets == one].mean() for one in range(world.sets)])
        level = level_of_look(ALPHA, look)
        p_value = sign_flip_test(flipped, rng, num_flips=2000)
        opened |= estimate.interval(1 - level)[0] > 0 and p_value <= level
        low, high = plain_interval(seen)
        plain_covered = low <= world.truth <= high
        plain |= low > 0 and (p_value if flipped is by_seed else sign_flip_test(by_seed, rng, num_flips=2000)) <= ALPHA
    return covered, half, opened, plain, plain_covered


def plain_interval(table: np.ndarray) -> tuple[float, float]:
    """The 95% interval of a two-way t test with Satterthwaite's degrees of freedom, seeds and images independent."""
    seeds, images = table.shape
    over_seeds, over_images = table.mean(axis=1).var(ddof=1) / seeds, table.mean(axis=0).var(ddof=1) / images
    error = np.sqrt(max(over_seeds, over_images, over_seeds + over_images - table.var() / table.size))
    freedom = (over_seeds + over_images) ** 2 / (over_seeds**2 / (seeds - 1) + over_images**2 / (images - 1))
    half = stats.t.ppf(0.975, max(freedom, 1.0)) * error
    return table.mean() - half, table.mean() + half


def rates(world: ProcessGroup, *, looks: int = 1, seed: int = 0) -> Rates:
    """Rates of a world over its repetitions."""
    rng = np.random.default_rng([seed, world.seeds, world.images])
    found = np.array([opens(world, rng, looks=looks) for _ in range(world.repeats)], dtype=np.float64)
    covered, half, opened, plain, plain_covered = found.mean(axis=0)
    return Rates(covered=covered, half=100 * half, opened=opened, plain=plain, plain_covered=plain_covered)


Row = tuple[str, Callable[[], Rates]]


def rows() -> list[Row]:
    """Every row of the table: its title, and the world that it simulates."""

    def row(name: str, *, looks: int = 1, **fields: float) -> Row:
        world = ProcessGroup(**fields)  # type: ignore[arg-type]
        worth = f"{name} of {100 * world.truth:.1f} points" if world.gain else name
        return f"{worth}: {world.seeds} seeds, {world.images:,} images", lambda: rates(world, looks=looks)

    table = [row("null", seeds=seeds, images=images) for seeds in (3, 6, 10, 20) for images in (300, 3000)]
    table += [row("null", seeds=6, images=50_000, repeats=400)]
    table += [row("null, seeds hardly differ", seeds=6, images=3000, seed=0.0)]
    table += [row("null, seeds differ much", seeds=seeds, images=3000, seed=0.3) for seeds in (3, 6, 10)]
    table += [row("null, images differ much", seeds=seeds, images=300, seed=0.0, image=0.8) for seeds in (6, 10)]
    table += [row("null, one set for all, sets differ", seeds=10, images=3000, of_set=0.05)]
    table += [row(f"null, {sets} sets that differ", seeds=10, images=3000, of_set=0.05, sets=sets) for sets in (2, 5, 10)]
    table += [row("null, groups of ten images", seeds=6, images=3000, group=10, image=0.5)]
    table += [
        row("null, looked at twice", seeds=12, images=3000, looks=2),
        row("null, looked at five times", seeds=30, images=3000, looks=5),
    ]
    table += [row("gain", seeds=seeds, images=3000, gain=gain) for seeds in (6, 10, 20) for gain in (0.05, 0.1, 0.2)]
    table += [row("gain", seeds=10, images=300, gain=0.2), row("gain", seeds=6, images=50_000, gain=0.1, repeats=400)]
    return table


def main() -> None:
    """Print the rows requested as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", type=int, nargs="*", help="numbers of rows; all by default")
    wanted = parser.parse_args().row
    print("| Row | ProcessGroup | Interval covers | Half width, points | Gate opens | Two-way t opens | Its interval covers |")
    print("|---|---|---|---|---|---|---|")
    for number, (name, simulate) in enumerate(rows(), start=1):
        if not wanted or number in wanted:
            found = simulate()
            cells = (f"{found.covered:.1%}", f"{found.half:.2f}", f"{found.opened:.1%}", f"{found.plain:.1%}", f"{found.plain_covered:.1%}")
            print(f"| {number} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

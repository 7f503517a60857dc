"""How often a sound class is named as harmed, and how many harmed ones are named: simulated classes whose truth is known.

Two arms are right about an image when the ease of its class and its own, what the arm adds to it, what a seed adds to its class and noise
are above zero together (a probit model); in harmed classes one arm is shifted. The gate is compared with the procedure before it, Holm's
correction of the larger p-value of a two-sided two-way t test and McNemar's exact test, each class by itself.

    python benchmarks/harm_rates.py            # every row, minutes
    python benchmarks/harm_rates.py 3 7        # rows by number
"""

import argparse
from dataclasses import dataclass

import numpy as np
from scipy import stats

from gda.stats.multiplicity.harm import harmed_classes
from gda.stats.paired import mcnemar_exact
from gda.stats.two_way import two_way

ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """Standard deviations, on the latent scale, of what an image and a seed add; `shift` of a `share` of the classes is their harm."""

    about: str
    classes: int
    images: int  # per class
    seeds: int
    image: float = 0.2
    seed: float = 0.1  # of a seed in a class
    share: float = 0.0
    shift: float = 0.0
    repeats: int = 200

    @property
    def harmed(self) -> np.ndarray:
        """Whether each class is harmed."""
        return np.arange(self.classes) < round(self.share * self.classes)

    @property
    def drop(self) -> float:
        """Accuracy that a harmed class loses on average."""
        width = np.sqrt(0.7**2 + 1.0**2 + self.image**2 / 4 + self.seed**2 + 0.7**2)
        return float(stats.norm.cdf(1.2 / width) - stats.norm.cdf((1.2 - self.shift) / width))

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Differences [seeds, images] of right and wrong, and the label of each image."""
        shape = (self.classes, self.images)
        ease = rng.normal(1.2, 0.7, (self.classes, 1)) + rng.normal(0, 1.0, shape)
        twist = rng.normal(0, self.image, shape)
        arms = []
        for sign in (0.5, -0.5):
            latent = ease + sign * twist - (self.shift * self.harmed[:, None] if sign > 0 else 0.0)
            whims = self.seed * rng.standard_normal((self.seeds, self.classes, 1))
            arms.append(latent + whims + 0.7 * rng.standard_normal((self.seeds, *shape), dtype=np.float32) > 0)
        differences = (arms[0].astype(np.float64) - arms[1]).reshape(self.seeds, -1)
        return differences, np.repeat(np.arange(self.classes), self.images)


def named_before(differences: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The classes that Holm's correction of t and McNemar names."""
    p_values = np.ones(classes)
    for label in range(classes):
        own = differences[:, labels == label]
        if own.mean() < 0:
            p_values[label] = max(two_way(own).p_value(), mcnemar_exact(own))
    named, order = np.zeros(classes, dtype=bool), np.argsort(p_values)
    for rank, label in enumerate(order):
        if p_values[label] * (classes - rank) > ALPHA:
            break
        named[label] = True
    return named


def main() -> None:
    """Print the rows requested as a table."""
    many, some, few = (
        {"classes": 1000, "images": 50, "repeats": 40},
        {"classes": 100, "images": 100},
        {"classes": 10, "images": 350, "repeats": 1000},
    )
    worlds = [ProcessGroup(about="none harmed", seeds=seeds, **size) for size in (many, some, few) for seeds in (3, 6, 10)]
    worlds += [ProcessGroup(about="none harmed, images differ much", seeds=6, image=0.6, **size) for size in (many, some, few)]
    worlds += [ProcessGroup(about="none harmed, seeds differ much", seeds=6, seed=0.4, **size) for size in (many, some, few)]
    for shift in (0.3, 0.5, 0.8):
        worlds += [ProcessGroup(about="one harmed", seeds=6, share=1 / size["classes"], shift=shift, **size) for size in (many, some, few)]
        worlds += [ProcessGroup(about="a tenth harmed", seeds=6, share=0.1, shift=shift, **size) for size in (many, some)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", type=int, nargs="*", help="numbers of rows; all by default")
    wanted = parser.parse_args().row
    print("| Row | Classes | Harm | Any named falsely | False among the named | Harmed and named | Any falsely, before | Named, before |")
    print("|---|---|---|---|---|---|---|---|")
    for number, world in enumerate(worlds, start=1):
        if wanted and number not in wanted:
            continue
        rng, names, found = np.random.default_rng([0, number]), [str(label) for label in range(world.classes)], []
        for _ in range(world.repeats):
            differences, labels = world.sample(rng)
            now = np.isin(names, [harm.class_name for harm in harmed_classes(differences, labels, names, alpha=ALPHA)])
            before = named_before(differences, labels, world.classes)
            wrong, right = now & ~world.harmed, now & world.harmed
            among = max(1, int(world.harmed.sum()))
            shares = (
                wrong.sum() / max(1, now.sum()),
                right.sum() / among,
                (before & ~world.harmed).any(),
                (before & world.harmed).sum() / among,
            )
            found.append((wrong.any(), *shares))
        any_false, false, seen, any_before, seen_before = np.mean(np.array(found, dtype=np.float64), axis=0)
        size = f"{world.classes:,} of {world.images} images, {world.seeds} seeds"
        harm = world.about if not world.share else f"{world.about}, {100 * world.drop:.1f} points"
        power = (f"{seen:.0%}", f"{seen_before:.0%}") if world.share else ("", "")
        cells = (size, harm, f"{any_false:.1%}", f"{false:.1%}", power[0], f"{any_before:.1%}", power[1])
        print(f"| {number} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

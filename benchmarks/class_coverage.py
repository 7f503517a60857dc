"""What the limits of coverage and recall within a class refuse: collapsed classes of real digits, and how often sound classes.

The gate's own rules apply, with their default ratios. Digits are of scikit-learn (178 per class) by the glyph extractor: in
each trial a class is divided again into real images and others, of which the synthetic ones are made. Sound classes of few images are
simulated by hand of skewed, heavy-tailed and clustered features, with as many synthetic as real images per side, where chance is largest.

    python benchmarks/class_coverage.py            # all tables, minutes on one core
    python benchmarks/class_coverage.py digits     # or fair, or sound
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from gda.artifacts.verdict import Measure
from gda.config.load import parse_config
from gda.config.sections import ValidateConfig
from gda.data.sources.demo import MNIST, load_optical_digits, read_demo
from gda.data.sources.source import Columns
from gda.demo_base.glyphs import GlyphBank
from gda.fidelity.compare import REPEATS
from gda.fidelity.extractors import get_extractor
from gda.fidelity.prdc import NEIGHBOURS
from gda.gate.verdict import limit_of

SYNTHETIC = 100  # images of a class, as in the demo
CLASSES = (10, 1000)
AS_GOOD = {
    "scale": 0.92,
    "shift": 0.55,
}  # the whole set is then at about 7 times the floor of FID, 0.6 of that of coverage and 0.5 of recall
DEFAULT = ValidateConfig()
STRICT = ValidateConfig(min_class_coverage_ratio=0.6, min_class_recall_ratio=0.5)  # for a better generator than the demo's
METRICS = ("coverage", "recall")
Rng = np.random.Generator
Scores = Mapping[str, tuple[float, float]]  # value and floor by metric


def scores(synthetic: np.ndarray, real: np.ndarray, rng: Rng) -> tuple[Scores, int]:
    """Coverage and recall as `compare_class` measures them, all repeats at once, and the images per side."""
    n, count = min(len(synthetic), len(real) // 2), len(real)
    rows = np.concatenate([real, synthetic]).astype(np.float64)
    norms = np.square(rows).sum(1)
    distance = np.maximum(norms[:, None] + norms - 2.0 * rows @ rows.T, 0.0)
    np.fill_diagonal(distance, -1.0)

    def radii(chosen: np.ndarray) -> np.ndarray:
        return np.partition(distance[chosen[:, :, None], chosen[:, None, :]], NEIGHBOURS, axis=2)[:, :, NEIGHBOURS]

    def of(tested: np.ndarray, against: np.ndarray) -> tuple[float, float]:
        between = distance[against[:, :, None], tested[:, None, :]]
        covered = between.min(2) <= radii(against)
        recalled = (between <= radii(tested)[:, None, :]).any(2)
        return float(covered.mean()), float(recalled.mean())

    def shuffled(total: int) -> np.ndarray:
        return np.argsort(rng.random((REPEATS, total)), axis=1)

    halves = shuffled(count)
    value = of(count + shuffled(len(synthetic))[:, :n], shuffled(count)[:, :n])
    floor = of(halves[:, :n], halves[:, n : 2 * n])
    return dict(zip(METRICS, zip(value, floor, strict=True), strict=True)), n


def refused(found: Scores, n: int, classes: int, config: ValidateConfig = DEFAULT) -> dict[str, bool]:
    """The metrics that refuse a class of a set with so many classes."""
    measures = {name: Measure(value=value, floor=floor, n=n, num_classes=classes) for name, (value, floor) in found.items()}
    limits = {name: limit_of(f"{name}_worst_class", measure, config) for name, measure in measures.items()}
    return {name: found[name][0] < limit for name, limit in limits.items() if limit is not None}


# Digits.


class Digits:
    """Real digits with their features; `others` by name are images of other hands and of fonts."""

    def __init__(self) -> None:
        self.extractor = get_extractor("glyph")
        self.images, self.labels = load_optical_digits()
        self.features = self.of(self.images)
        config = parse_config({"snapshot": {"demo_train_per_class": 20, "demo_val_per_class": 50}}, where="benchmark").snapshot
        records = [record for record in read_demo(MNIST, config, Columns()).records if record.split != "test"]
        hands = np.stack([record.payload for record in records]), np.array([int(record.class_name) for record in records])
        batch = GlyphBank().render(5000, torch.Generator().manual_seed(0))
        plain = [i for i, caption in enumerate(batch.captions) if int(batch.characters[i]) < 10 and " on " not in caption]
        fonts = ((batch.images[plain] + 1) * 127.5).round().byte().numpy().transpose(0, 2, 3, 1), batch.characters[plain].numpy()
        self.others = {name: (self.of(images), labels) for name, (images, labels) in {"hands": hands, "fonts": fonts}.items()}

    def of(self, images: np.ndarray) -> np.ndarray:
        """Features [n, 64] of uint8 NHWC images."""
        return self.extractor.features(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))).astype(np.float64)

    def jittered(self, rows: np.ndarray, rng: Rng) -> np.ndarray:
        """Features of `SYNTHETIC` images that show those of `rows` in turn, moved by up to a pixel and under a little noise."""
        picked = self.images[np.resize(rows, SYNTHETIC)]
        shown = np.stack([np.roll(image, rng.integers(-1, 2, 2), (0, 1)) for image in picked])
        noise = rng.normal(0, 2, (SYNTHETIC, *self.images.shape[1:3], 1))
        return self.of(np.clip(shown + noise, 0, 255).astype(np.uint8))

    def as_good(self, fresh: np.ndarray, real: np.ndarray) -> np.ndarray:
        """New real images, shrunk and moved in feature space until the whole set is about as far off as the demo's fine-tuned one."""
        centre, spread = self.features[real].mean(0), self.features[real].std(0)
        return centre + AS_GOOD["scale"] * (self.features[fresh[:SYNTHETIC]] - centre) + AS_GOOD["shift"] * spread

    def planted(self, label: int, fresh: np.ndarray, real: np.ndarray, rng: Rng) -> Iterator[tuple[str, np.ndarray]]:
        """Synthetic features by their defect; `fresh` and `real` are rows of the class."""
        features = self.features[fresh]
        yield "new real images", features[:SYNTHETIC]
        yield "the same, moved by a pixel", self.jittered(fresh, rng)
        yield "as good as the demo's set", self.as_good(fresh, real)
        for pictures in (1, 2, 3, 5, 10):
            yield f"{pictures} of its pictures, jittered", self.jittered(fresh[:pictures], rng)
        _, modes = kmeans2(features, 8, seed=int(rng.integers(1 << 30)), minit="++")
        for kept in (2, 4):
            rows = fresh[np.isin(modes, rng.permutation(np.unique(modes))[:kept])]
            yield f"{kept} of 8 modes", self.jittered(rows, rng)
        near = fresh[np.argsort(np.square(features - features[0]).sum(1))]
        for share in (10, 4):
            yield f"the {100 // share}% nearest to one image", self.jittered(near[: len(near) // share], rng)
        for name, (others, labels) in self.others.items():
            yield f"digits of other {name}", others[labels == label][:SYNTHETIC]


def digits(trials: int, sizes: tuple[int, ...] = (25, 35)) -> None:
    """A row for each defect and each size: mean ratios, and the share of classes refused, as one of ten unless stated."""
    world, rng = Digits(), np.random.default_rng(0)
    heads = [
        "Class",
        "Images per side",
        "Coverage / floor",
        "Recall / floor",
        "Coverage refuses",
        "Recall",
        "Of 1,000 classes",
        "Strict ratios",
    ]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for n in sizes:
        rows: dict[str, list[tuple[Scores, int]]] = defaultdict(list)
        for _ in range(trials):
            for label in range(10):
                members = rng.permutation(np.flatnonzero(world.labels == label))
                real, fresh = members[: 2 * n], members[2 * n :]
                for name, synthetic in world.planted(label, fresh, real, rng):
                    rows[name].append(scores(synthetic, world.features[real], rng))
        for name, found in rows.items():
            ratios = [np.mean([one[metric][0] / one[metric][1] for one, _ in found]) for metric in METRICS]
            ways = ((CLASSES[0], DEFAULT), (CLASSES[1], DEFAULT), (CLASSES[0], STRICT))
            few, many, strict = ([refused(one, size, classes, config) for one, size in found] for classes, config in ways)
            shares = [np.mean([each[metric] for each in few]) for metric in METRICS]
            shares += [np.mean([any(each.values()) for each in tested]) for tested in (many, strict)]
            cells = [name, str(n), *(f"{ratio:.2f}" for ratio in ratios), *(f"{share:.1%}" for share in shares)]
            print("| " + " | ".join(cells) + " |", flush=True)


def fair(trials: int, sizes: tuple[int, ...] = (25, 35)) -> None:
    """A row for each size and each set that should pass: the lowest ratios of all classes, and the share of sets refused."""
    world = Digits()
    heads = ["Set", "Images per side", "Classes", "Lowest coverage / floor", "Lowest recall / floor", "Sets of 10 refused", "of 1,000"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for n in sizes:
        for name in ("new real images", "as good as the demo's set"):
            rng, found = np.random.default_rng(n), []
            for label in np.tile(np.arange(10), trials):
                members = rng.permutation(np.flatnonzero(world.labels == label))
                real, fresh = members[: 2 * n], members[2 * n :]
                synthetic = world.features[fresh[:SYNTHETIC]] if name.startswith("new") else world.as_good(fresh, real)
                found.append(scores(synthetic, world.features[real], rng)[0])
            lowest = [min(one[metric][0] / one[metric][1] for one in found) for metric in METRICS]
            missed = [np.mean([any(refused(one, n, classes).values()) for one in found]) for classes in CLASSES]
            sets = [1 - (1 - share) ** classes for share, classes in zip(missed, CLASSES, strict=True)]
            print(f"| {name} | {n} | {len(found):,} | {lowest[0]:.2f} | {lowest[1]:.2f} | {sets[0]:.1%} | {sets[1]:.1%} |", flush=True)


# Sound classes.


def skewed(rng: Rng, count: int) -> Callable[[int], np.ndarray]:
    return lambda n: (rng.gamma(2.0, size=(n, 64)) - 2.0) * np.arange(1, 65) ** -0.75


def heavy_tailed(rng: Rng, count: int) -> Callable[[int], np.ndarray]:
    return lambda n: rng.standard_t(2, size=(n, 16))


def clustered(rng: Rng, count: int) -> Callable[[int], np.ndarray]:
    """Tight clusters, one for every five images per side: sound sets miss some of them."""
    centres = rng.normal(size=(max(2, count // 5), 16))
    return lambda n: centres[rng.integers(len(centres), size=n)] + 0.01 * rng.normal(size=(n, 16))


def sound(budget: int) -> None:
    """A row for each source and size: the limits, the lowest values, and the share of sets refused, were all classes of this kind."""
    heads = [
        "Features",
        "Images per side",
        "Classes",
        "Metric",
        "Limit of 10",
        "of 1,000",
        "Lowest value",
        "Sets of 10 refused",
        "of 1,000",
    ]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for n in (5, 10, 25, 50, 100):
        count = max(200, min(50_000, budget // n**2))
        for source in (skewed, heavy_tailed, clustered):
            rng = np.random.default_rng(n)
            found = []
            for _ in range(count):
                take = source(rng, n)
                found.append(scores(take(n), take(2 * n), rng)[0])
            for metric in METRICS:
                floor = float(np.mean([one[metric][1] for one in found]))
                measures = [Measure(value=floor, floor=floor, n=n, num_classes=classes) for classes in CLASSES]
                limits = [limit_of(f"{metric}_worst_class", measure, DEFAULT) for measure in measures]
                missed = [np.mean([refused(one, n, classes)[metric] for one in found]) for classes in CLASSES]
                sets = [1 - (1 - share) ** classes for share, classes in zip(missed, CLASSES, strict=True)]
                lowest = min(one[metric][0] for one in found)
                named = f"{source.__name__.replace('_', '-')} | {n} | {count:,} | {metric}"
                print(f"| {named} | {limits[0]:.1%} | {limits[1]:.1%} | {lowest:.1%} | {sets[0]:.1%} | {sets[1]:.1%} |", flush=True)


def main() -> None:
    """Print the tables that are requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=["digits", "fair", "sound"], default=["digits", "fair", "sound"])
    parser.add_argument("--trials", type=int, default=10, help="divisions of each class of digits")
    parser.add_argument("--budget", type=int, default=1_000_000, help="classes simulated for each size n: this over n squared")
    arguments = parser.parse_args()
    if "digits" in arguments.tables:
        digits(arguments.trials)
    if "fair" in arguments.tables:
        fair(20 * arguments.trials)
    if "sound" in arguments.tables:
        sound(arguments.budget)


if __name__ == "__main__":
    main()

"""Groups of classes and images: numbers computed by hand, who falls where, and worst classes that are not merely unlucky ones."""

import numpy as np
import pytest
from scipy import stats

from gda.stats import groups
from gda.stats.intervals import crossed_interval

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])
# Class accuracies 1/4, 1, 1/2 with seed 0, and 3/4, 1/2, 0 with seed 1.
REAL = {0: np.array([1, 0, 0, 0, 1, 1, 1, 0], dtype=bool), 1: np.array([1, 1, 1, 0, 0, 1, 0, 0], dtype=bool)}
# 2/4, 1, 1 and 3/4, 1, 1/2.
ARM = {0: np.array([1, 1, 0, 0, 1, 1, 1, 1], dtype=bool), 1: np.array([1, 1, 0, 1, 1, 1, 0, 1], dtype=bool)}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def group(chosen: list[int], seeds: tuple[int, ...] = (0, 1)) -> groups.Group:
    found = groups.of_classes(chosen, LABELS, seeds)
    assert found is not None
    return found


def test_balanced_accuracy_is_the_mean_of_class_accuracies() -> None:
    """Protects balanced accuracy and its paired gain from being an accuracy over images: by hand 7/12 and 5/12 against 5/6 and 3/4."""
    every = group([0, 1, 2])
    own = groups.group_arm(every, ARM)
    real = groups.group_arm(every, REAL)
    assert real.top1 == pytest.approx((7 / 12, 5 / 12))
    assert own.top1 == pytest.approx((5 / 6, 3 / 4))
    assert own.mean == pytest.approx(19 / 24)
    gain = groups.group_gain(every, ARM, REAL, rng())
    assert (gain.mean, gain.seeds, gain.p_value) == (pytest.approx(7 / 24), 2, 0.5)
    assert own.ci95[0] <= own.mean <= own.ci95[1] <= 1.0


def test_a_gain_is_of_the_seeds_that_both_have() -> None:
    """Protects the pairing: by hand 1/4 with seed 0 alone, as the rival has no other; without a shared seed it is an error."""
    gain = groups.group_gain(group([0, 1, 2]), ARM, {0: REAL[0]}, rng())
    assert (gain.mean, gain.seeds) == (pytest.approx(1 / 4), 1)
    with pytest.raises(ValueError, match="a seed that both arms have"):
        groups.group_gain(group([0, 1, 2], (0, 1, 5)), ARM, {5: REAL[0]}, rng())


def test_some_classes_and_some_images() -> None:
    """Protects groups from images outside: classes 0 and 2 by hand 3/8 each seed; images 0, 4 and 7 are 2/3 and 1/3."""
    assert groups.group_arm(group([0, 2]), REAL).top1 == pytest.approx((3 / 8, 3 / 8))
    inside = np.isin(np.arange(8), [0, 4, 7])
    some = groups.of_images(inside, (0, 1))
    assert groups.group_arm(some, REAL).top1 == pytest.approx((2 / 3, 1 / 3))
    assert some.members.tolist() == inside.tolist()


def test_a_group_of_all_images_has_the_interval_of_the_whole() -> None:
    """Protects one set of numbers: where classes have equally many images, balanced accuracy is top-1 and so is its interval."""
    labels = np.repeat(np.arange(3), 20)
    right = np.random.default_rng(1).random((4, 60)) < 0.7
    every = groups.of_classes(range(3), labels, range(4))
    assert every is not None
    found = groups.group_arm(every, dict(enumerate(right)))
    assert found.ci95 == crossed_interval(right.astype(np.float64))
    assert found.mean == pytest.approx(right.mean())


def test_a_class_without_test_images_is_left_out() -> None:
    """Protects balanced accuracy from a zero that was not measured, and a group of such classes from being stated."""
    assert groups.group_arm(group([0, 1, 2, 9]), REAL).top1 == pytest.approx((7 / 12, 5 / 12))
    assert groups.of_classes([9], LABELS, (0,)) is None


def test_many_medium_and_few_shot_classes() -> None:
    """Protects the field's cuts: over 100 is many, under 20 few, both bounds medium; one bin alone is no comparison."""
    found = groups.by_frequency([500, 101, 100, 20, 19, 0], (20, 100))
    assert {name: classes.tolist() for name, classes in found.items()} == {
        "many-shot (over 100)": [0, 1],
        "medium-shot (20 to 100)": [2, 3],
        "few-shot (under 20)": [4, 5],
    }
    assert list(groups.by_frequency([500, 5], (20, 100))) == ["many-shot (over 100)", "few-shot (under 20)"]
    assert groups.by_frequency([500, 101], (20, 100)) == {}


def test_worst_classes_are_chosen_on_other_images_and_seeds() -> None:
    """Protects the choice, by hand: seed 0 takes the classes that seed 1 has lowest in one half of the images and counts the other half."""
    labels = np.repeat(np.arange(3), 4)
    # Halves alternate within a class. Of seed 1, class 2 is lowest in the even half (0 of 2) and class 0 in the odd half (0 of 2).
    rival = np.array([[1] * 12, [1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 0, 1]], dtype=bool)
    worst = groups.least_accurate_classes(rival, (0, 1), labels, 1, (0, 1), num_classes=3)
    assert worst is not None
    # Chosen in even images, counted in odd ones, and the other way round.
    assert np.flatnonzero(worst.shares[0][worst.strata]).tolist() == [0, 2, 9, 11]
    own = {0: np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1], dtype=bool)}
    assert groups.group_arm(worst, own).top1 == pytest.approx(((1 / 2 + 1) / 2,))
    # Seed 0 has every image right, so the choice of seed 1, which is by seed 0 alone, is the first class in both halves.
    assert np.flatnonzero(worst.shares[1][worst.strata]).tolist() == [0, 1, 2, 3]


def test_worst_classes_need_images_to_halve_and_another_seed() -> None:
    """Protects against a worst class of one image, a group of the worst that is every class, and a seed that chooses for itself."""
    rival = np.ones((2, 5), dtype=bool)
    labels = np.array([0, 0, 1, 1, 2])
    assert groups.least_accurate_classes(rival, (0, 1), labels, 2, (0, 1), num_classes=3) is None
    assert groups.least_accurate_classes(rival[:1], (0,), labels, 1, (0, 1), num_classes=3) is None
    worst = groups.least_accurate_classes(rival, (0, 1), labels, 1, (0, 1), num_classes=3)
    assert worst is not None
    assert 2 not in labels[worst.members]


@pytest.mark.parametrize(("share", "classes", "number"), [(0.1, 10, 1), (0.1, 11, 2), (0.1, 1000, 100), (0.05, 10, 1), (0.3, 10, 3)])
def test_a_share_of_the_classes_is_rounded_up(share: float, classes: int, number: int) -> None:
    """Protects the tail from rounding: 0.3 of 10 classes are 3, not 4."""
    assert groups.num_worst(share, classes) == number


def test_two_arms_that_are_alike_gain_nothing_on_the_worst_class() -> None:
    """Protects against a gain that is regression to the mean: where the class is chosen on the images that count, it is 10 points here."""
    generator, cross, naive, inside = np.random.default_rng(5), [], [], 0
    labels, seeds = np.repeat(np.arange(10), 40), range(3)
    repeats = 200
    for _ in range(repeats):
        # Each seed has classes that it happens to be bad at; images and classes are alike otherwise.
        arm, rival = (generator.random((3, 400)) < np.clip(generator.normal(0.8, 0.1, (3, 10)), 0, 1)[:, labels] for _ in range(2))
        worst = groups.least_accurate_classes(rival, seeds, labels, 1, seeds, num_classes=10)
        assert worst is not None
        gain = groups.group_gain(worst, dict(enumerate(arm)), dict(enumerate(rival)), generator)
        cross.append(gain.mean)
        inside += gain.ci95[0] <= 0 <= gain.ci95[1]
        lowest = labels == np.argmin([rival[:, labels == each].mean() for each in range(10)])
        naive.append(arm[:, lowest].mean() - rival[:, lowest].mean())
    assert abs(np.mean(cross)) < 4 * np.std(cross) / np.sqrt(repeats)
    assert np.mean(naive) > 0.05
    assert inside >= stats.binom.ppf(0.001, repeats, 0.95)


def test_the_interval_of_balanced_accuracy_holds_the_truth() -> None:
    """Protects the linearised spread: classes of 10 to 300 test images, each as heavy; 95% of 200, less what chance allows."""
    generator, sizes, repeats = np.random.default_rng(6), np.array([10, 20, 40, 80, 300]), 200
    labels, truth = np.repeat(np.arange(5), sizes), np.array([0.5, 0.6, 0.7, 0.8, 0.9])
    every = groups.of_classes(range(5), labels, range(4))
    assert every is not None
    inside, widths = 0, []
    for _ in range(repeats):
        easy = generator.random(len(labels)) < truth[labels]  # shared by seeds
        right = np.where(generator.random((4, len(labels))) < 0.3, generator.random((4, len(labels))) < truth[labels], easy)
        low, high = groups.group_arm(every, dict(enumerate(right))).ci95
        inside += low <= 0.7 <= high
        widths.append(high - low)
    assert inside >= stats.binom.ppf(0.001, repeats, 0.95)
    assert np.median(widths) < 0.2


def test_what_was_sampled_together_counts_as_one() -> None:
    """Protects intervals of groups of classes from seeds that share synthetic images, and from images that were taken together."""
    normal = np.random.default_rng(8).normal
    labels = np.repeat([0, 1, 2], (60, 60, 80))
    shared, together = normal(0, 1, 2)[np.arange(12) % 2, None], normal(0, 1, 20).repeat(10)
    own, rival = (dict(enumerate(normal(0.5, 1, (12, 200)) + sign * (shared + together) > 0)) for sign in (0.5, -0.5))
    some = groups.of_classes([0, 2], labels, range(12))
    assert some is not None

    def widths(**sampled: object) -> tuple[float, float]:
        gain, arm = groups.group_gain(some, own, rival, rng(), **sampled), groups.group_arm(some, own, **sampled)
        return gain.ci95[1] - gain.ci95[0], arm.ci95[1] - arm.ci95[0]

    for sampled in ({"parts": 2}, {"groups": np.arange(200) // 10}):
        assert all(wide > 1.3 * narrow for wide, narrow in zip(widths(**sampled), widths(), strict=True))

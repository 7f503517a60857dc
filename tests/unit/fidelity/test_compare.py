"""Comparison at equal N: floors cancel the bias, intervals cover, no image is used twice."""

import numpy as np
import pytest
from scipy.stats import t as student

from gda.config.sections import ValidateConfig
from gda.errors import DataError
from gda.fidelity.compare import (
    FeatureSet,
    compare_at_class_size,
    compare_class,
    compare_sets,
    compare_with_split,
    equal_n,
    fid,
    fid_floor,
    fid_floor_to,
    fid_of_split,
    fid_to,
)
from gda.fidelity.frechet import statistics
from gda.fidelity.intervals import (
    JACKKNIFE_GROUPS,
    Estimate,
    LeftOut,
    disjoint_halves,
    jackknifed,
    left_out,
    over_repeats,
    share,
    subsets,
)
from gda.fidelity.kid import kernel_distance
from gda.fidelity.prdc import prdc
from gda.gate.closeness import closeness, to_statistics
from gda.gate.measures import MeasuredWith
from gda.gate.worst_class import worst_classes


def rows(seed: int, n: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (n, 12))


def images(seed: int, n: int, scale: float = 1.0) -> FeatureSet:
    return FeatureSet(features=rows(seed, n, scale))


def test_a_perfect_generator_scores_the_floor_at_any_size() -> None:
    """FID falls with the number of images; measured at equal N, new real images must look real whatever N is."""
    real = rows(0, 400)
    for size in (40, 100, 1000):
        result = compare_sets(images(1, size), FeatureSet(features=real), seed=0)["fid"]
        assert result.n == min(size, 200)
        assert result.estimate.value == pytest.approx(result.floor.value, rel=0.35)
    assert fid(rows(1, 40), real) > 1.5 * fid(rows(1, 1000), real)  # what would have happened without


def test_a_narrow_generator_is_detected() -> None:
    """Half the spread: FID above the floor's interval, recall and coverage below their intervals."""
    found = compare_sets(images(1, 300, scale=0.5), images(0, 400), seed=0)
    assert found["fid"].estimate.low > found["fid"].floor.high
    assert found["recall"].estimate.high < found["recall"].floor.low
    assert found["precision"].estimate.value > found["precision"].floor.value


def test_same_seed_same_numbers() -> None:
    """The verdict of one set must not change from run to run."""
    assert compare_sets(images(1, 50), images(0, 90), seed=3) == compare_sets(images(1, 50), images(0, 90), seed=3)


def test_floor_of_the_reference_is_the_floor_of_the_comparison() -> None:
    """`reference` states the same number that `validate` uses."""
    real = rows(0, 120)
    floor, n = fid_floor(real, seed=5)
    found = compare_sets(images(1, 300), FeatureSet(features=real), seed=5)["fid"]
    assert (floor, n) == (found.floor, found.n)


def test_too_few_images_are_refused() -> None:
    """Three images on each side have no third neighbour."""
    with pytest.raises(DataError, match="too few images"):
        equal_n(100, 7)


def test_halves_are_disjoint_and_subsets_without_repeats() -> None:
    """With replacement FID is biased upward and nearest-neighbour radii collapse."""
    for one, other in disjoint_halves(31, 15, 5, np.random.default_rng(0)):
        assert len(set(one) | set(other)) == 30
    assert all(len(set(rows)) == 20 for rows in subsets(40, 20, 5, np.random.default_rng(0)))


def test_wilson_interval_at_the_ends_and_in_the_middle() -> None:
    """None of 100 is not known to be none: the interval of 0 reaches to 3.7%; published values for 15 of 148."""
    nothing = share(0, 100)
    assert (nothing.value, nothing.low) == (0.0, 0.0)
    assert nothing.high == pytest.approx(0.0370, abs=1e-4)
    some = share(15, 148)  # Newcombe 1998, table I
    assert (some.low, some.high) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    with pytest.raises(DataError):
        share(0, 0)


def test_repeats_give_mean_and_percentiles() -> None:
    """The interval's ends are those of the middle 95% of repeats."""
    estimate = over_repeats(np.arange(101.0))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((50.0, 2.5, 97.5))


@pytest.mark.parametrize(("synthetic", "real"), [(40, 160), (40, 80), (160, 80)], ids=["few synthetic", "half", "many synthetic"])
def test_intervals_hold_what_new_sets_score_whatever_the_sizes(synthetic: int, real: int) -> None:
    """Simulated: at least 90% of the 95% intervals hold the mean over new sets at that n, and those of FID and KID are not too wide.

    Where every repeat holds all synthetic images, the spread of the repeats does not show their variance: it held 70%.
    """
    n, rng = min(synthetic, real // 2), np.random.default_rng(0)

    def new(count: int, shift: float = 0.0) -> np.ndarray:
        return rng.normal(shift, 1.0, (count, 6))

    fresh = [(new(n, 0.4), new(n)) for _ in range(1000)]
    true = {"fid": [fid(*pair) for pair in fresh], "kid": [kernel_distance(*pair) for pair in fresh]}
    true["coverage"] = [prdc(*pair).coverage for pair in fresh]
    found: dict[str, list[Estimate]] = {name: [] for name in true}
    for number in range(200):
        synthetic_rows, real_rows = new(synthetic, 0.4), new(real)
        found["fid"].append(fid_of_split(synthetic_rows, real_rows, n=n, seed=number, repeats=8))
        of_class = compare_class(synthetic_rows, real_rows, seed=number, repeats=8)
        assert of_class is not None
        for name in ("kid", "coverage"):
            found[name].append(of_class[name].estimate)
    for name, estimates in found.items():
        mean = np.mean(true[name])
        assert np.mean([each.low <= mean <= each.high for each in estimates]) >= 0.9, name
        width = np.mean([(each.high - each.low) / 2 for each in estimates])
        assert name == "coverage" or width < 1.6 * 1.96 * np.std([each.value for each in estimates]), name


def test_a_group_is_left_out_once_and_leaves_the_bias_in_n_out() -> None:
    """Each row is missing once; the jackknife of a mean is its standard error; a part of n that all repeats hold counts in full."""
    kept = list(left_out(25, np.random.default_rng(0)))
    assert len(kept) == JACKKNIFE_GROUPS
    assert np.sort(np.concatenate([np.setdiff1d(np.arange(25), rows) for rows in kept])).tolist() == list(range(25))
    data = np.random.default_rng(1).normal(size=10)
    means = np.array([(data.sum() - one) / 9 for one in data])
    whole = jackknifed(np.array([data.mean()]), [LeftOut(values=means, total=10)], n=10)
    assert (whole.high - whole.value) / student.ppf(0.975, 9) == pytest.approx(data.std(ddof=1) / np.sqrt(10))
    fourth = jackknifed(np.full(20, data.mean()), [LeftOut(values=means + 7.0, total=40)], n=10)
    assert fourth.value == whole.value
    assert (fourth.high - fourth.low) / (whole.high - whole.low) == pytest.approx(np.sqrt(1 / 4 + 3 / 4 / 20))


def test_the_interval_of_a_point_covers_what_other_sets_score() -> None:
    """Around the FID of the whole set, and nine times in ten around the mean FID of sets of its size."""
    reference = statistics(rows(0, 2000))
    sets = [rows(100 + i, 80, scale=1.2) for i in range(60)]
    found = [fid_to(reference, each, seed=1) for each in sets]
    assert [estimate.value for estimate in found] == [fid(each, rows(0, 2000)) for each in sets]
    assert all(estimate.low < estimate.value < estimate.high for estimate in found)
    mean = np.mean([estimate.value for estimate in found])
    assert np.mean([estimate.low <= mean <= estimate.high for estimate in found]) >= 0.85
    width = np.mean([(estimate.high - estimate.low) / 2 for estimate in found])
    assert 0.7 < width / (1.96 * np.std([estimate.value for estimate in found])) < 1.4
    with pytest.raises(DataError, match="at least four images, got 3"):
        fid_to(reference, rows(1, 3), seed=0)


def test_the_floor_of_a_sweep_is_at_its_number_of_images() -> None:
    """What as many real images score: far above the same with all of them, and their own where there are fewer."""
    reference, real = statistics(rows(0, 2000)), rows(1, 1000)
    few, many = (fid_floor_to(reference, real, n=n, seed=0) for n in (50, 1000))
    assert few > 5 * many
    assert few == pytest.approx(np.mean([fid(rows(2 + i, 50), rows(0, 2000)) for i in range(20)]), rel=0.15)
    assert fid_floor_to(reference, real[:30], n=50, seed=0) == pytest.approx(fid(real[:30], rows(0, 2000)))


def classes(scale: float = 1.0, each: int = 60, seed: int = 0) -> tuple[FeatureSet, np.ndarray]:
    """Four classes, far apart, with classifiers that are sure of them."""
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(4), each)
    centres = 6 * np.eye(4, 12)
    probabilities = 0.88 * np.eye(4)[labels] + 0.03
    return FeatureSet(features=centres[labels] + rng.normal(0, scale, (len(labels), 12)), probabilities=probabilities), labels


def test_a_set_of_one_class_scores_what_one_real_class_scores() -> None:
    """Shows how a collapsed set is recognised: far from the floor in all metrics that need more than plausible images."""
    real, labels = classes()
    fresh, _ = classes(seed=1)
    collapsed = fresh.pick(np.flatnonzero(labels == 2))
    sound = compare_at_class_size(fresh, real, labels, seed=0)
    fallen = compare_at_class_size(collapsed, real, labels, seed=0)
    assert sound["inception_score"].one_class.value < 1.01 < 2.0 < sound["inception_score"].floor.low  # type: ignore[union-attr]
    assert {found.n for found in (*sound.values(), *fallen.values())} == {48}
    for name in ("fid", "kid", "recall", "coverage", "vendi", "inception_score"):
        mark, floor = sound[name].one_class, sound[name].floor
        assert mark is not None
        assert mark == fallen[name].one_class
        middle = (mark.value + floor.value) / 2
        assert (fallen[name].estimate.value > middle) == (mark.value > floor.value), name
        assert (sound[name].estimate.value > middle) != (mark.value > floor.value), name


def test_one_class_is_held_against_others_and_not_against_itself() -> None:
    """The images of the class must not be among those that they are compared with: FID of equal sets is zero."""
    real, labels = classes(each=24)
    found = compare_at_class_size(real, real, labels, seed=0)
    assert found["coverage"].one_class is not None
    assert found["coverage"].one_class.value < 0.5


@pytest.mark.parametrize("labels", [np.zeros(80, int), np.arange(80)], ids=["one class", "one image per class"])
def test_without_classes_of_a_size_nothing_is_stated(labels: np.ndarray) -> None:
    """A mark that was measured on nothing would warn of anything."""
    assert compare_at_class_size(images(1, 50), images(0, 80), labels, seed=0) == {}


def test_the_floor_of_a_split_is_the_other_split() -> None:
    """Where val differs from train, so does the floor: a set is not rejected for it."""
    train, val = images(0, 90), images(1, 120, scale=2.0)
    found = compare_with_split(images(2, 100), val, train, n=80, seed=0)
    assert all(each.n == 80 for each in found.values())
    assert found["fid"].estimate.value == pytest.approx(found["fid"].floor.value, rel=0.2)
    assert found["fid"].floor.value > 3 * compare_sets(images(2, 160), images(0, 160), seed=0)["fid"].floor.value


def test_val_is_what_stands_in_the_name() -> None:
    """A set that is as val is, and unlike train, is near the one and far from the other."""
    splits = {"train": images(0, 90), "val": images(1, 120, scale=2.0)}
    labels = {"train": np.zeros(90, int), "val": np.zeros(120, int)}
    found = closeness(images(2, 100, scale=2.0), np.zeros(100, int), splits, labels, classes=1, seed=0).overall
    assert found["fid_val"].estimate.high < found["fid_train"].estimate.low


def test_a_class_that_went_wrong_is_found_by_its_own_floor() -> None:
    """One class of four shows the images of another: hardly seen over all images, seen at once within the class."""
    (real, labels), (fresh, _) = classes(), classes(seed=1)
    spoiled = fresh.features.copy()
    spoiled[labels == 3] = classes(seed=2)[0].features[labels == 1]
    splits = {"train": real.pick(np.arange(0, 240, 2)), "val": real.pick(np.arange(1, 240, 2))}
    split_labels = {"train": labels[::2], "val": labels[1::2]}
    found = closeness(FeatureSet(features=spoiled), labels, splits, split_labels, classes=5, seed=0)
    *measured, absent = found.by_class
    assert absent is None
    assert measured[3]["kid"].estimate.low > measured[3]["kid"].floor.high
    assert measured[3]["coverage"].estimate.value == measured[3]["recall"].estimate.value == 0.0
    worst = worst_classes(found.by_class, list("abcde"), ValidateConfig(), measured=MeasuredWith())
    assert {(measure.class_name, measure.num_classes) for name, measure in worst.items() if "distance" not in name} == {("d", 4)}
    assert all(each["coverage"].estimate.value > 0.5 for each in measured[:3])
    assert "inception_score" not in found.overall  # no probabilities, no score


def test_every_metric_is_stated_with_floor_and_interval_at_equal_n() -> None:
    """A number without what real images score, or how sure it is, says nothing."""
    (real, labels), (fresh, _) = classes(), classes(seed=1)
    splits = {"train": real.pick(np.arange(0, 240, 2)), "val": real.pick(np.arange(1, 240, 2))}
    found = closeness(fresh, labels, splits, {"train": labels[::2], "val": labels[1::2]}, classes=4, seed=0).overall
    metrics = {"fid", "kid", "precision", "recall", "density", "coverage", "vendi", "inception_score"}
    expected = metrics | {f"{name}_val" for name in metrics} | {f"{name}_at_class_size" for name in metrics}
    assert set(found) == expected | {"fid_train"}
    assert all(each.estimate.low <= each.estimate.value <= each.estimate.high and np.isfinite(each.floor.value) for each in found.values())
    assert all((each.one_class is not None) == name.endswith("_at_class_size") for name, each in found.items())
    assert (found["fid"].n, found["fid_val"].n, found["fid_at_class_size"].n) == (120, 120, 48)


def test_distance_to_given_statistics_has_its_floor_at_equal_n() -> None:
    """As many real images as synthetic ones, against the same statistics: a perfect generator scores the floor."""
    given = statistics(rows(0, 4000))
    found = to_statistics(rows(1, 500), rows(2, 150), given, seed=0)
    assert found.n == 150
    assert found.estimate.value == pytest.approx(found.floor.value, rel=0.3)
    assert found.floor.value > 2 * fid(rows(1, 500), rows(0, 4000))


def test_the_narrowest_class_is_that_by_its_own_floor() -> None:
    """A class of naturally similar images is not flagged; one whose images are half as far apart as its real ones is."""
    (real, labels), (fresh, _) = classes(), classes(seed=1)
    scale = np.where(labels == 0, 0.05, 1.0)[:, None]
    centre = np.stack([real.features[labels == c].mean(0) for c in range(labels.max() + 1)])[labels]
    narrowed = np.where((labels == 2)[:, None], 0.5, 1.0) * scale
    given = FeatureSet(features=centre + narrowed * (fresh.features - centre))
    held = FeatureSet(features=centre + scale * (real.features - centre))
    splits = {"train": held.pick(np.arange(0, 240, 2)), "val": held.pick(np.arange(1, 240, 2))}
    found = closeness(given, labels, splits, {"train": labels[::2], "val": labels[1::2]}, classes=4, seed=0)
    worst = worst_classes(found.by_class, list("abcd"), ValidateConfig(), measured=MeasuredWith())["mean_distance_worst_class"]
    assert (worst.class_name, worst.n) == ("c", 30)
    assert worst.value == pytest.approx(0.5 * worst.floor, rel=0.15)  # type: ignore[operator]

"""Gain and per-class harm: known answers on planted effects, and false alarms under nulls."""

import numpy as np
import pytest
from scipy import stats

from gda.stats.gain import paired_gain
from gda.stats.multiplicity import harm
from gda.stats.multiplicity.harm import harm_p_values, harmed_classes, per_class_change, smallest_visible_harm

CLASSES = ("a", "b", "c", "d", "e")
LABELS = np.arange(500) % 5


def sample(rng: np.random.Generator, *, gain: float = 0.0, harmed: int | None = None, seeds: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Two arms of equal correctness but for `gain` (latent units) overall and a large loss on class `harmed`."""
    ease = rng.normal(1.0, 1.5, LABELS.size)
    shift = np.full(LABELS.size, gain)
    if harmed is not None:
        shift[harmed == LABELS] -= 1.2
    arms = [ease + s + rng.normal(0, 0.1, (seeds, 1)) + rng.normal(0, 0.7, (seeds, LABELS.size)) > 0 for s in (shift, 0.0)]
    return arms[0], arms[1]


def test_a_planted_gain_is_measured() -> None:
    """Protects every number of a gain on arms whose difference is known exactly."""
    rival = np.zeros((6, 500), bool)
    correct = rival.copy()
    correct[:, :50] = True
    correct[0, 50:60] = True
    gain = paired_gain(correct, rival, LABELS, CLASSES, np.random.default_rng(0))
    assert gain.mean == pytest.approx((5 * 50 + 60) / 3000)
    assert gain.differences == pytest.approx((0.12, 0.1, 0.1, 0.1, 0.1, 0.1))
    assert gain.p_value == 0.03125
    assert 0 < gain.ci95[0] < gain.mean < gain.ci95[1]
    assert gain.seeds == 6
    assert gain.harmed_classes == ()
    assert gain.mcnemar_p is not None
    assert gain.mcnemar_p < 1e-12


def test_exchanging_the_arms_negates_the_gain() -> None:
    """Protects antisymmetry of the whole comparison."""
    correct, rival = sample(np.random.default_rng(1), gain=0.3)
    forth = paired_gain(correct, rival, LABELS, CLASSES, np.random.default_rng(2))
    back = paired_gain(rival, correct, LABELS, CLASSES, np.random.default_rng(2))
    assert back.mean == -forth.mean
    assert back.ci95 == pytest.approx((-forth.ci95[1], -forth.ci95[0]))
    assert (back.p_value, back.mcnemar_p) == (forth.p_value, forth.mcnemar_p)


def test_a_planted_harm_is_found_and_named() -> None:
    """Protects the per-class check: the one class made worse is the one reported."""
    correct, rival = sample(np.random.default_rng(3), gain=0.2, harmed=3)
    found = harmed_classes(correct.astype(float) - rival, LABELS, CLASSES, alpha=0.05)
    assert [h.class_name for h in found] == ["d"]
    assert found[0].change < -0.1
    assert found[0].p_value <= 0.05


def null_with_whims(rng: np.random.Generator, whim: float) -> np.ndarray:
    """Differences of two equal arms in which every seed moves every class as one, by chance and in either direction."""
    ease = rng.normal(1.0, 1.5, LABELS.size)
    arms = [ease + rng.normal(0, whim, (6, 5))[:, LABELS] + rng.normal(0, 0.7, (6, LABELS.size)) > 0 for _ in range(2)]
    return arms[0].astype(float) - arms[1]


@pytest.mark.parametrize("whim", [0.0, 0.5])
def test_nulls_rarely_report_a_harmed_class(whim: float) -> None:
    """Protects the family-wise level of harm, also where whims of single seeds look like harm to a test over images alone."""
    rng = np.random.default_rng(4)
    alarms = sum(bool(harmed_classes(null_with_whims(rng, whim), LABELS, CLASSES, alpha=0.05)) for _ in range(400))
    assert alarms <= stats.binom.ppf(0.9999, 400, 0.05)


def test_a_class_without_test_images_is_neither_harmed_nor_hidden() -> None:
    """Protects against a missing class raising, or passing as safe without a word."""
    differences = -np.ones((6, 500))
    labels = np.where(LABELS == 4, 0, LABELS)
    assert harm_p_values(differences, labels, 5)[4] == 1.0
    assert np.isnan(per_class_change(differences, labels, 5)[4])
    assert "e" not in [h.class_name for h in harmed_classes(differences, labels, CLASSES, alpha=0.05)]
    assert smallest_visible_harm(differences, labels, 5, alpha=0.05) == 1.0


def test_the_smallest_visible_harm_shrinks_with_more_images() -> None:
    """Protects the printed limit of what could have been seen: 4 images per class show nothing, 400 show a few points."""
    few = smallest_visible_harm(np.zeros((6, 20)), np.arange(20) % 5, 5, alpha=0.05)
    many = smallest_visible_harm(np.zeros((6, 2000)), np.arange(2000) % 5, 5, alpha=0.05)
    assert few == 1.0
    assert many == 7 / 400  # 2^-7 is the first to reach 0.05 / 5
    assert smallest_visible_harm(np.zeros((6, 2000)), np.arange(2000) % 5, 5, alpha=0.05, share=0.4) == 6 / 400  # and 2^-6 0.02


def test_a_drop_of_the_smallest_visible_size_is_significant() -> None:
    """Protects that the printed limit and the test agree: losing exactly that many images is found."""
    differences = np.zeros((6, 2000))
    labels = np.arange(2000) % 5
    differences[:, np.flatnonzero(labels == 2)[:7]] = -1
    assert [h.class_name for h in harmed_classes(differences, labels, CLASSES, alpha=0.05)] == ["c"]
    differences[:, np.flatnonzero(labels == 2)[6]] = 0
    assert harmed_classes(differences, labels, CLASSES, alpha=0.05) == ()


def with_whims(rng: np.random.Generator, shape: tuple[int, int, int], lowered: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences and labels of [seeds, classes, images]; arms differ in seeds' small whims, and in what the first classes lose."""
    ease = rng.normal(1.2, 0.7, (shape[1], 1)) + rng.normal(0, 1.0, shape[1:])
    shift = np.where(np.arange(shape[1]) < lowered, 0.5, 0.0)[:, None]
    arms = [
        ease - lost + 0.1 * rng.standard_normal((*shape[:2], 1)) + 0.7 * rng.standard_normal(shape, dtype=np.float32) > 0
        for lost in (shift, 0.0)
    ]
    return (arms[0].astype(float) - arms[1]).reshape(shape[0], -1), np.repeat(np.arange(shape[1]), shape[2])


@pytest.mark.parametrize(("lowered", "found", "unlent"), [(20, 8, 3), (100, 65, 55)])
def test_harm_is_seen_among_a_thousand_classes(monkeypatch: pytest.MonkeyPatch, lowered: int, found: int, unlent: int) -> None:
    """Protects the power of many classes with few images each: drops of 12 points, which classes that lend each other nothing hide."""
    differences, labels = with_whims(np.random.default_rng(5), (6, 1000, 50), lowered=lowered)
    names = [str(label) for label in range(1000)]

    def harmed() -> list[int]:
        return [int(each.class_name) for each in harmed_classes(differences, labels, names, alpha=0.05)]

    lent = harmed()
    assert sum(label < lowered for label in lent) >= found
    assert sum(label >= lowered for label in lent) <= 0.05 * lowered + 3
    monkeypatch.setattr(harm, "moderated", lambda variances, _, freedom: (variances, freedom))
    assert len(harmed()) <= unlent


def test_what_the_arms_share_is_no_harm_to_many_classes() -> None:
    """Protects the family-wise level at a hundred classes, where variances that are lent too freely would name some class."""
    rng, names = np.random.default_rng(6), [str(label) for label in range(100)]
    alarms = sum(bool(harmed_classes(*with_whims(rng, (6, 100, 40), lowered=0), names, alpha=0.05)) for _ in range(100))
    assert alarms <= stats.binom.ppf(0.999, 100, 0.05)


def test_classes_need_not_be_equally_large() -> None:
    """Protects classes of one image, of none and of many together: the one that loses is named."""
    labels = np.concatenate([np.zeros(1, int), np.ones(400, int), np.full(60, 2), np.full(50, 4)])
    differences = np.zeros((6, labels.size))
    differences[:, np.flatnonzero(labels == 2)[:12]] = -1
    differences[0, 5:9] = 1
    assert [harm.class_name for harm in harmed_classes(differences, labels, CLASSES, alpha=0.05)] == ["c"]
    assert smallest_visible_harm(differences, labels, 5, alpha=0.05) == 1.0
    assert smallest_visible_harm(differences, labels, 5, alpha=0.05, share=0.5) < 1.0


def test_images_of_a_group_count_as_one() -> None:
    """Protects groups in sign flips too: eight lost images of two groups are two."""
    labels = np.repeat([0, 1], 40)
    differences = np.zeros((6, 80))
    differences[:, :8] = -1
    assert [harm.class_name for harm in harmed_classes(differences, labels, CLASSES[:2], alpha=0.05)] == ["a"]
    groups = np.arange(80) // 4
    assert harmed_classes(differences, labels, CLASSES[:2], alpha=0.05, groups=groups) == ()
    assert harm_p_values(differences, labels, 2, groups=groups)[0] == pytest.approx(0.25)

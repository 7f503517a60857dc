"""The ratio search: nested proportional sets, rounds that double their seeds, and answers that are kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from gda.config.sections import RatioConfig
from gda.data.store.in_memory import ImageSet
from gda.training.loop.classifier import TrainRecipe
from gda.tuning import ratio_search
from gda.tuning.ratio_search import REAL_ALONE, RatioSearch, Sets, images_of, nested_order, num_classifiers, rungs

RECIPE = TrainRecipe(
    model="resnetv2_18",
    model_args={"layers": [1], "channels": [16], "stem_chs": 8},
    image_size=8,
    num_train_steps=12,
    batch_size=8,
    learning_rate=5e-3,
    weight_decay=0.05,
    warmup_steps=2,
    label_smoothing=0.0,
)


def images(per_class: int, *, seed: int) -> ImageSet:
    """Noisy dark and bright squares."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], per_class)
    pixels = rng.integers(0, 100, (len(labels), 3, 8, 8)) + 120 * labels[:, None, None, None]
    keys = tuple(f"{seed}-{i}" for i in range(len(labels)))
    return ImageSet(
        images=torch.from_numpy(pixels.astype(np.uint8)), labels=torch.from_numpy(labels), keys=keys, classes=("dark", "bright")
    )


def sets() -> Sets:
    return Sets(real=images(5, seed=0), synthetic=images(10, seed=1), val=images(6, seed=2), digests={"real": "r", "synthetic": "s"})


@pytest.mark.parametrize("counts", [(5, 5), (1, 9, 30), (7,), (3, 1)])
def test_every_beginning_has_the_classes_in_proportion(counts: tuple[int, ...]) -> None:
    """Protects small sets from lacking classes: a beginning is never more than one image of a class off its share, and order is kept."""
    labels = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    order = nested_order(labels)
    assert sorted(order.tolist()) == list(range(sum(counts)))
    for end in range(1, sum(counts) + 1):
        seen = np.bincount(labels[order[:end]].numpy(), minlength=len(counts))
        assert np.abs(seen - end * np.array(counts) / sum(counts)).max() <= 1.0
    for label in range(len(counts)):
        own = order[labels[order] == label]
        assert (own.diff() > 0).all()


def test_rounds_double_seeds_and_halve_ratios() -> None:
    """Protects the cost that is given beforehand: real alone takes part in every round."""
    config = RatioConfig(first_seeds=2, seeds=10)
    assert rungs(config, 6) == [(6, 2), (3, 4), (2, 8), (2, 10)]
    assert num_classifiers(config, 6) == 7 * 2 + 4 * 2 + 3 * 4 + 3 * 2
    assert rungs(RatioConfig(first_seeds=3, seeds=3), 4) == [(4, 3)]
    assert rungs(RatioConfig(first_seeds=1, seeds=2, keep_fraction=1.0), 1) == [(1, 1), (1, 2)]


@pytest.mark.parametrize(("ratio", "num_real", "images"), [(0.0, 100, 0), (0.1, 100, 10), (0.1, 3, 1), (0.25, 10, 3), (5.0, 7, 35)])
def test_images_of_a_ratio(ratio: float, num_real: int, images: int) -> None:
    """Protects the axis of the curve: rounded half up, and never none of a ratio above zero."""
    assert images_of(ratio, num_real) == images


def test_the_search_trains_what_it_says_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the work of hours: nothing is trained twice, a longer search trains what is new, a damaged answer is redone."""
    trained: list[tuple[int, int]] = []

    def here(function, jobs):  # one process, so that the test sees the jobs
        trained.extend((job.count, job.seed) for job in jobs)
        return [function(job) for job in jobs]

    monkeypatch.setattr(ratio_search, "run_parallel", here)

    def found(**changes: object) -> dict[float, np.ndarray]:
        trained.clear()
        config = RatioConfig.model_validate({"first_seeds": 1, "seeds": 2, **changes})
        return RatioSearch(sets(), RECIPE, config, batch_share=0.5, folder=tmp_path / "kept").run([0.1, 1.0, 2.0])

    def whole() -> tuple[dict[float, np.ndarray], list[tuple[int, int]]]:
        return found(), list(trained)

    first, jobs = whole()
    assert {count for count, _ in jobs} == {0, 1, 10, 20}
    assert len(jobs) == num_classifiers(RatioConfig(first_seeds=1, seeds=2), 3)
    assert {ratio: len(rows) for ratio, rows in first.items()}[REAL_ALONE] == 2
    assert sorted(len(rows) for ratio, rows in first.items() if ratio != REAL_ALONE) == [1, 2, 2]

    again, jobs = whole()
    assert jobs == []
    assert all(np.array_equal(again[ratio], first[ratio]) for ratio in first)
    next(iter(sorted((tmp_path / "kept").iterdir()))).write_bytes(b"cut")
    again, jobs = whole()
    assert len(jobs) == 1
    assert all(np.array_equal(again[ratio], first[ratio]) for ratio in first)
    (tmp_path / "kept" / sorted(path.name for path in (tmp_path / "kept").iterdir())[1]).write_bytes(
        save({"correct": np.ones(3, np.uint8)})
    )
    assert len(whole()[1]) == 1
    _, jobs = found(seeds=4), list(trained)
    assert {seed for _, seed in jobs} == {1002, 1003}


def test_the_share_of_a_batch_follows_the_number_or_the_configuration(tmp_path: Path) -> None:
    """Protects what is compared: by number every image is seen as often, otherwise the batch is as in classify."""
    by_number = RatioSearch(sets(), RECIPE, RatioConfig(), batch_share=0.25, folder=tmp_path)
    configured = RatioSearch(sets(), RECIPE, RatioConfig(batch_share="classify"), batch_share=0.25, folder=tmp_path)
    assert [by_number._job(ratio, 0).share for ratio in (0.0, 1.0, 3.0)] == [0.0, 0.5, 0.75]
    assert [configured._job(ratio, 0).share for ratio in (0.0, 1.0, 3.0)] == [0.0, 0.25, 0.25]
    assert len({search._job(1.0, 0).keep for search in (by_number, configured)}) == 2


def test_only_ratios_depend_on_what_distinguishes_origins(tmp_path: Path) -> None:
    """Protects kept answers: another weight retrains what has synthetic images, and not real alone."""

    def kept(recipe: TrainRecipe, ratio: float) -> Path:
        return RatioSearch(sets(), recipe, RatioConfig(), batch_share=0.5, folder=tmp_path)._job(ratio, 0).keep

    weighted = replace(RECIPE, synthetic_weight=0.25)
    assert kept(weighted, REAL_ALONE) == kept(RECIPE, REAL_ALONE)
    assert kept(weighted, 1.0) != kept(RECIPE, 1.0)


def test_a_ratio_trains_the_soft_labels_and_the_weight_of_its_images(tmp_path: Path) -> None:
    """Protects the curve: images with the other class's label do no harm where they keep little of it, or weigh little."""
    given = sets()
    wrong = 1 - given.synthetic.labels
    soft = {"second": given.synthetic.labels, "first_share": torch.full((len(wrong),), 0.05)}

    def right(name: str, recipe: TrainRecipe = RECIPE, **changes: torch.Tensor) -> float:
        parts = replace(given, synthetic=replace(given.synthetic, labels=wrong, **changes), digests={"real": "r", "synthetic": name})
        config = RatioConfig(first_seeds=2, seeds=2)
        found = RatioSearch(parts, replace(recipe, num_train_steps=30), config, batch_share=0.5, folder=tmp_path).run([4.0])
        return float(found[4.0].mean())

    assert right("hard") < 0.5
    assert right("soft", **soft) == 1.0
    assert right("light", replace(RECIPE, synthetic_weight=0.01)) > 0.9

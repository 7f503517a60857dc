"""What the report says of mistakes: plots of what there is, and none of what there is not."""

import io

import numpy as np
import pytest
from PIL import Image

from gda.artifacts.evaluation import ArmResult, Confusion, Metrics
from gda.config.sections import Arm
from gda.data.store.predictions import Predictions
from gda.report.mistakes import calibration_rows, confusion_figure, confusion_rows, reliability_figure

IMAGES = 600


def predictions(num_classes: int, *, seeds: int = 2, probabilities: bool = True) -> Predictions:
    """Two arms on random labels: real is right on 80 % of the images and says so, synthetic on half and is as sure."""
    rng = np.random.default_rng(0)
    labels = rng.integers(num_classes, size=IMAGES).astype(np.int32)
    top, both = {}, {}
    for arm, share in ((Arm.REAL, 0.8), (Arm.SYNTHETIC, 0.5)):
        for seed in range(seeds):
            wrong = rng.random(IMAGES) >= share
            first = np.where(wrong, (labels + 1) % num_classes, labels)
            top[arm, seed] = np.stack([first, (first + 1) % num_classes], axis=1).astype(np.int32)
            both[arm, seed] = np.stack([np.full(IMAGES, 0.8), np.where(wrong, 0.1, 0.8)], axis=1).astype(np.float32)
    return Predictions(labels=labels, top=top, test_digest="0", probabilities=both if probabilities else {})


def image(png: bytes | None) -> Image.Image:
    assert png is not None
    return Image.open(io.BytesIO(png))


def result(**changes: object) -> ArmResult:
    return ArmResult.model_validate(
        {"seeds": (0, 1), "top1": (0.8, 0.8), "top5": (1, 1), "mean": 0.8, "ci95": (0.7, 0.9), "per_class": (0.8,), **changes}
    )


def test_an_overconfident_arm_is_plotted_below_the_line() -> None:
    """Protects the plot: adding an arm changes it, and one without runs or probabilities does not."""
    found = predictions(3)
    alone, two = reliability_figure(found, [Arm.REAL]), reliability_figure(found, [Arm.REAL, Arm.SYNTHETIC])
    assert image(alone).width > 600
    assert alone != two
    assert reliability_figure(found, [Arm.REAL, Arm.MIXED]) == alone
    assert reliability_figure(predictions(3, probabilities=False), [Arm.REAL]) is None


@pytest.mark.parametrize(("num_classes", "plotted"), [(2, True), (40, True), (41, False), (1000, False)])
def test_a_matrix_is_plotted_where_it_can_be_read(num_classes: int, plotted: bool) -> None:
    """Protects pages of a thousand classes from a picture of a million cells: the table of the largest confusions is for them."""
    names = [f"class {i}" for i in range(num_classes)]
    png = confusion_figure(predictions(num_classes), Arm.REAL, names)
    assert (png is not None) == plotted
    if plotted:
        assert image(png).height < 3000
    assert confusion_figure(predictions(num_classes), Arm.MIXED, names) is None


def test_no_mistakes_at_all_are_plotted_too() -> None:
    """Protects against a scale of nothing."""
    found = predictions(3)
    perfect = Predictions(labels=found.labels, top={(Arm.REAL, 0): found.labels[:, None]}, test_digest="0")
    assert image(confusion_figure(perfect, Arm.REAL, ["a", "b", "c"])).width > 600


def test_rows_are_means_over_seeds() -> None:
    """Protects the tables: an arm of older metrics has no row, and shares are percentages."""
    arms = {
        Arm.REAL: result(ece=(0.02, 0.04), nll=(0.5, 0.7), most_confused=(Confusion(class_name="a", predicted="b", share=0.125),)),
        Arm.SYNTHETIC: result(),
    }
    metrics = Metrics.model_construct(arms=arms)
    assert calibration_rows(metrics) == [("real only", "3.0%", "0.600")]
    assert confusion_rows(metrics, Arm.REAL) == [("a", "b", "12.5%")]
    assert confusion_rows(metrics, Arm.MIXED) == []

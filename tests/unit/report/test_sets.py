"""The table of robustness sets says what was measured, on how many images, and among which classes."""

from pathlib import Path

from gda.artifacts.document import read_document
from gda.artifacts.evaluation import Metrics
from gda.config.sections import Arm
from gda.report.robustness_table import set_tables
from gda.report.wording import gain_cells, has_all_seeds, interval, p_value, points

FIXTURES = Path(__file__).parents[2] / "contract/fixtures"


def test_every_number_is_stated_with_its_conditions() -> None:
    """Protects readers from comparing restricted with unrestricted accuracies, or a gain without its interval."""
    metrics = read_document(FIXTURES / "metrics.passed.json", Metrics)
    (table,) = set_tables(metrics)
    assert table.name == "sketch"
    assert table.measured == "250 images of 2 classes; predictions among these 2 classes alone; 12 images without a label of ours left out"
    accuracies = (("real only", "2", "51.0%", "47.0 to 55.0"), ("real + synthetic", "2", "55.0%", "51.0 to 59.0"))
    assert table.rows == ((*accuracies[0], "–", "–"), (*accuracies[1], "+4.0", "–")), "two seeds of six"
    two = {Arm.REAL: metrics.arms[Arm.REAL].model_copy(update={"seeds": (0, 1)})}
    (table,) = set_tables(metrics.model_copy(update={"arms": metrics.arms | two}))
    assert table.rows == ((*accuracies[0], "–", "–"), (*accuracies[1], "+4.0 (+1.0 to +7.0)", "p = 0.5"))


def test_other_conditions_are_other_words() -> None:
    """Protects the wording of a set over all classes with several labels per image, and of nothing left out."""
    metrics = read_document(FIXTURES / "metrics.passed.json", Metrics)
    changes = {"restricted": False, "several_labels": True, "left_out": 0, "num_classes": 1, "num_images": 1}
    (table,) = set_tables(metrics.model_copy(update={"sets": {"r": metrics.sets["sketch"].model_copy(update=changes)}}))
    among = f"predictions among all {len(metrics.classes)} classes"
    assert table.measured == f"1 image of 1 class; {among}; any of an image's labels is right"


def test_no_sets_no_tables() -> None:
    """Protects reports of runs without sets from an empty section."""
    assert set_tables(read_document(FIXTURES / "metrics.refused.json", Metrics)) == []


def test_a_control_arm_with_fewer_seeds_has_a_mean_alone() -> None:
    """Protects readers from an interval or a p-value of two seeds next to those of six; with all seeds both are there."""
    metrics = read_document(FIXTURES / "metrics.passed.json", Metrics)
    gain = metrics.gain[Arm.MIXED]
    assert has_all_seeds(metrics, gain)
    assert gain_cells(metrics, gain) == (f"{points(gain.mean)} ({interval(gain.ci95)})", p_value(gain.p_value))
    assert gain_cells(metrics, gain.model_copy(update={"seeds": 2})) == (points(gain.mean), "–")
    assert gain_cells(metrics, None) == ("–", "–")

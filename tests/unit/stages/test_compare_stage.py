"""compare: evaluations of several sizes and samples on one test split, from what they kept."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gda.artifacts.curves import Exchange, SizeComparison
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.evaluation import Metrics
from gda.artifacts.outcome import Outcome
from gda.config.load import Config
from gda.config.sections import Arm
from gda.data.store.predictions import Predictions, read_predictions, write_predictions
from gda.errors import DataError
from gda.stages import compare

PASSED = read_document(Path(__file__).parents[2] / "contract/fixtures/metrics.passed.json", Metrics)
TEST = 400
CONFIG = Config()


@pytest.fixture(autouse=True)
def own_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in its own folder."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))


def evaluation(
    folder: Path, num_train: int | None, *, real: float, gain: float, choice: int = 0, seeds: int = 3, **changes: object
) -> Path:
    """Predictions of which real alone has `real` right and the arm `gain` more, and metrics that say where they come from."""
    path = folder / f"{num_train}-{choice}"
    path.mkdir(parents=True)
    rng = np.random.default_rng([num_train or 0, choice])
    labels = (np.arange(TEST) % 2).astype(np.int32)
    top = {}
    for seed in range(seeds):
        chance = rng.random(TEST)
        for arm, share in ((Arm.REAL, real), (Arm.MIXED, real + gain)):
            top[arm, seed] = np.where(chance < share, labels, 1 - labels).astype(np.int32)[:, None]
    fields = {"num_train": num_train, "snapshot_digest": f"{num_train}-{choice}".ljust(64, "0"), "test_digest": "t" * 64, **changes}
    metrics = PASSED.model_copy(update=fields)
    (path / "metrics.json").write_bytes(dump_document(metrics))
    write_predictions(path / "predictions.safetensors", Predictions(labels=labels, top=top, test_digest=metrics.test_digest))
    return path


def compared(out: Path, *paths: Path, config: Config = CONFIG) -> tuple[Outcome, SizeComparison]:
    outcome = compare.run(config, evaluations=paths, out=out)
    return outcome, read_document(out / "comparison.json", SizeComparison)


def test_sizes_and_choices_are_put_together(tmp_path: Path) -> None:
    """Protects the curve: a gain that shrinks with more real images, samples of one size in one point, every file written."""
    paths = [evaluation(tmp_path, 10, real=0.6, gain=0.2, choice=choice) for choice in range(4)] + [
        evaluation(tmp_path, 80, real=0.9, gain=0.0)
    ]
    outcome, found = compared(tmp_path / "out", *paths)
    few, many = found.points
    assert [(p.num_train, p.choices, p.seeds) for p in found.points] == [(10, 4, 12), (80, 1, 3)]
    assert few.gain == pytest.approx(0.2, abs=0.03)
    assert few.ci95[0] > 0.1
    assert many.gain == 0.0
    assert np.mean(few.top1) - np.mean(few.real_top1) == pytest.approx(few.gain)
    table = pd.read_csv(tmp_path / "out/comparison.csv")
    assert table.groupby("num_train")["gain"].mean().to_dict() == pytest.approx({10: few.gain, 80: 0.0})
    assert Image.open(io.BytesIO((tmp_path / "out/sizes.png").read_bytes())).width > 600
    assert "         10        4" in outcome.summary
    assert compare.run(CONFIG, evaluations=paths, out=tmp_path / "out").reused


@pytest.mark.parametrize("choices", [1, 3])
def test_a_synthetic_image_is_priced_in_real_ones(tmp_path: Path, choices: int) -> None:
    """Protects the exchange rate: 1,000 synthetic images lift 20 real ones to what 40 reach, so that one is worth 0.02 of a real one."""
    reached = {10: 0.5, 20: 0.6, 40: 0.7, 80: 0.8}
    paths = [
        evaluation(tmp_path, size, real=real, gain=0.1 if size == 20 else 0.0, choice=choice, seeds=4)
        for size, real in reached.items()
        for choice in range(choices)
    ]
    outcome, found = compared(tmp_path / "out", *paths)
    worth = {point.num_train: point.exchange for point in found.points}
    assert worth[20] is not None
    assert worth[20].rate == pytest.approx(0.02, abs=0.008)
    assert (worth[20].num_synthetic, worth[20].method) == (1000, "measured sizes")
    assert worth[20].low in (None, -0.01, 0.0)
    assert worth[20].high in (None, 0.02, 0.06)
    assert worth[40] is not None
    assert worth[40].low is None or worth[40].low <= 0 <= (worth[40].high or 1)
    assert "about 0.0" in outcome.summary
    _, two = compared(tmp_path / "two", *paths[: 2 * choices])
    assert {point.exchange for point in two.points} == {None}


def test_a_curve_that_falls_prices_nothing_and_says_why(tmp_path: Path) -> None:
    """Protects against a price where more real images clearly lower accuracy, and against one that is missing without a reason."""
    paths = [evaluation(tmp_path, size, real=real, gain=0.1, seeds=8) for size, real in ((10, 0.8), (20, 0.7), (40, 0.6))]
    outcome, found = compared(tmp_path / "out", *paths)
    assert {point.exchange for point in found.points} == {None}
    assert {point.unpriced for point in found.points} == {
        "real-only accuracy falls from 10 to 20 images, so it cannot be turned into a number of images"
    }
    assert "at 20 real images no exchange rate: real-only accuracy falls from 10 to 20 images" in outcome.summary


def test_one_seed_for_each_size_prices_nothing_and_says_why(tmp_path: Path) -> None:
    """Protects against a price without anything to assess its spread by."""
    paths = [evaluation(tmp_path, size, real=real, gain=0.1, seeds=1) for size, real in ((10, 0.6), (20, 0.7), (40, 0.8))]
    _, found = compared(tmp_path / "out", *paths)
    assert {(point.exchange, point.unpriced) for point in found.points} == {(None, "every size needs two choices, or two seeds in common")}


def test_a_comparison_of_before_is_still_read() -> None:
    """Protects old documents: a rate without a method was one of the power law."""
    assert Exchange.model_validate({"rate": 0.3, "low": None, "high": 1.0, "num_synthetic": 10}).method == "power law"


def test_choices_that_differ_widen_the_interval(tmp_path: Path) -> None:
    """Protects against taking the seeds of one sample for independent: two samples that differ prove little, however many seeds."""
    for choice, gain in enumerate((0.2, 0.02)):
        evaluation(tmp_path, 10, real=0.6, gain=gain, choice=choice, seeds=8)
    _, found = compared(tmp_path / "out", tmp_path / "10-0", tmp_path / "10-1")
    low, high = found.points[0].ci95
    assert low < 0 < found.points[0].gain < high
    _, alone = compared(tmp_path / "alone", tmp_path / "10-0")
    assert alone.points[0].ci95[0] > 0


def test_only_seeds_that_both_have_are_compared(tmp_path: Path) -> None:
    """Protects the pairing: real alone ran with fewer seeds."""
    path = evaluation(tmp_path, 10, real=0.6, gain=0.1)
    whole = read_predictions(path / "predictions.safetensors")
    top = {key: value for key, value in whole.top.items() if key != (Arm.REAL, 2)}
    write_predictions(path / "predictions.safetensors", Predictions(labels=whole.labels, top=top, test_digest=whole.test_digest))
    _, found = compared(tmp_path / "out", path)
    assert found.points[0].seeds == 2
    top = {(arm, seed + 5 * (arm is Arm.REAL)): value for (arm, seed), value in top.items()}
    write_predictions(path / "predictions.safetensors", Predictions(labels=whole.labels, top=top, test_digest=whole.test_digest))
    with pytest.raises(DataError, match="share no seed"):
        compared(tmp_path / "none", path)


def test_the_order_in_which_they_are_named_does_not_matter(tmp_path: Path) -> None:
    """Protects reuse: the same evaluations are the same comparison."""
    one, two = (evaluation(tmp_path, 10, real=0.6, gain=0.1, choice=choice) for choice in range(2))
    _, first = compared(tmp_path / "first", one, two)
    assert compare.run(CONFIG, evaluations=[two, one], out=tmp_path / "first").reused
    _, second = compared(tmp_path / "second", two, one)
    assert first == second


def test_an_arm_that_did_not_run_is_left_out_and_reported(tmp_path: Path) -> None:
    """Protects sizes at which the synthetic set was refused: a missing point has its reason."""
    arms = dict(PASSED.arms)
    arms[Arm.MIXED] = arms[Arm.MIXED].model_copy(update={"skipped": "because the synthetic set was refused: FID is 9."})
    refused = evaluation(tmp_path, 10, real=0.6, gain=0.1, arms=arms)
    outcome, found = compared(tmp_path / "out", refused, evaluation(tmp_path, 80, real=0.9, gain=0.05))
    assert [point.num_train for point in found.points] == [80]
    assert found.skipped == ("10-0: because the synthetic set was refused: FID is 9.",)
    assert "left out 10-0: because" in outcome.summary
    with pytest.raises(DataError, match="ran in none of these evaluations"):
        compared(tmp_path / "none", refused)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_digest": "u" * 64}, "another test split"),
        ({"classes": ("a", "b", "c")}, "another classes"),
        ({"snapshot_digest": "10-0".ljust(64, "0")}, "of the same real images"),
        ({"num_train": None}, "does not say how many images"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """Protects the plot from points that are not of one kind."""
    first = evaluation(tmp_path, 10, real=0.6, gain=0.1)
    other = evaluation(tmp_path, **{"num_train": 20, "real": 0.6, "gain": 0.1, **changes})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        compared(tmp_path / "out", first, other)


def test_predictions_of_another_split_are_refused(tmp_path: Path) -> None:
    """Protects against files of two evaluations in one folder."""
    path = evaluation(tmp_path, 10, real=0.6, gain=0.1)
    content = json.loads((path / "metrics.json").read_text())
    (path / "metrics.json").write_text(json.dumps(content | {"test_digest": "v" * 64}))
    with pytest.raises(DataError, match="predictions are of another test split"):
        compared(tmp_path / "out", path)

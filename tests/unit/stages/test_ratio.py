"""ratio: a curve on validation whose peak is known, the gate before it, and what it leaves alone."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gda.artifacts.curves import RatioCurve
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.outcome import Outcome
from gda.artifacts.snapshot import ClassInfo, SnapshotIndex
from gda.artifacts.verdict import Verdict
from gda.config.load import Config
from gda.config.sections import ClassifyConfig, RatioConfig
from gda.data.store.snapshot import commit_snapshot
from gda.data.store.writer import ImageRecord, write_image_shard
from gda.data.test_split.ledger import read_ledger
from gda.errors import DataError
from gda.stages import ratio

CLASSES = tuple(ClassInfo(name=name, prompt_name=name) for name in ("dark", "light"))
CONFIG = Config(
    classify=ClassifyConfig(
        model="resnetv2_18",
        model_args_json='{"layers": [1], "channels": [16], "stem_chs": 8}',
        image_size=8,
        mixed_num_train_steps=60,
        batch_size=16,
        learning_rate=5e-3,
        warmup_steps=2,
    ),
    ratio=RatioConfig(ratios=(0.25, 1.0, 2.0, 9.0), first_seeds=2, seeds=4),
)


@pytest.fixture(autouse=True)
def own_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in its own folder."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    return tmp_path / "work"


def write_set(folder: Path, kind: str, splits: dict[str, int], *, hues: int, wrong: bool = False, seed: int = 0) -> Path:
    """Dark and light squares in `hues` of three colours; with `wrong`, every label is the other one's."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    frames = []
    for split, per_class in splits.items():
        records = []
        for label, info in enumerate(CLASSES):
            for i in range(per_class):
                rgb = rng.integers(0, 60, (8, 8, 3))
                hue = i % (3 if split != "train" else hues)
                # In red light is dark and dark is light: who has seen no red is wrong about all of it.
                rgb[..., hue] += 60 + 130 * ((label ^ wrong) if hue else 1 - (label ^ wrong))
                records.append(ImageRecord(key=f"{split}-{label}-{i}", rgb=rgb.astype(np.uint8), label=label, class_name=info.name))
        frames.append(write_image_shard(folder, name=f"{split}-000000.tar", split=split, records=records))
    rows = pd.concat(frames, ignore_index=True)
    commit_snapshot(folder, kind=kind, classes=CLASSES, rows=rows, provenance={}, licence="CC0-1.0")  # type: ignore[arg-type]
    return folder


def verdict_on(folder: Path, *, reasons: tuple[str, ...] = ()) -> Path:
    digests = [read_document(folder / name / "snapshot.json", SnapshotIndex).digest for name in ("synthetic", "real")]
    verdict = Verdict(passed=not reasons, reasons=reasons, metrics={}, synthetic_digest=digests[0], real_digest=digests[1])
    (folder / "verdict.json").write_bytes(dump_document(verdict))
    return folder / "verdict.json"


def search(folder: Path, config: Config = CONFIG, *, out: str = "out", reasons: tuple[str, ...] = ()) -> Outcome:
    verdict = verdict_on(folder, reasons=reasons)
    return ratio.run(config, snapshot=folder / "real", synthetic=folder / "synthetic", verdict=verdict, out=folder / out)


def curve_of(outcome: Outcome) -> RatioCurve:
    return read_document(outcome.output / "ratio.json", RatioCurve)


def test_images_that_add_what_is_missing_help_and_too_many_are_not_there(tmp_path: Path, own_work_folder: Path) -> None:
    """Protects the whole answer: a third of the validation images are of a hue that only the synthetic images show."""
    write_set(tmp_path / "real", "real", {"train": 8, "val": 30, "test": 2}, hues=1)
    write_set(tmp_path / "synthetic", "synthetic", {"train": 20}, hues=3, seed=1)
    outcome = search(tmp_path)
    curve = curve_of(outcome)
    assert [(point.ratio, point.num_images) for point in curve.points] == [(0.25, 4), (1.0, 16), (2.0, 32)]
    assert (curve.num_real, curve.num_val, curve.num_train_steps, curve.skipped) == (16, 60, 60, None)
    assert curve.notes == ("the set has 40 images, too few for the ratio 9",)
    found = {point.ratio: point for point in curve.points}
    assert curve.best in (1.0, 2.0)
    assert found[2.0].gain > 0.15
    assert found[2.0].ci95[0] > 0
    assert len(curve.real_top1) == 4
    for point in curve.points:
        rivals = curve.real_top1[: len(point.top1)]
        assert point.gain == pytest.approx(np.mean(np.array(point.top1) - rivals))
    assert {path.name for path in outcome.output.iterdir()} == {"ratio.json", "ratio.png", "fingerprint.json"}
    assert read_ledger() == []
    assert search(tmp_path).reused
    assert (search(tmp_path, out="again").output / "ratio.json").read_bytes() == (outcome.output / "ratio.json").read_bytes()


def test_wrong_labels_do_not_help(tmp_path: Path) -> None:
    """Protects against a curve that only knows gains: the more images with the other class's label, the worse."""
    write_set(tmp_path / "real", "real", {"train": 8, "val": 30, "test": 2}, hues=3)
    write_set(tmp_path / "synthetic", "synthetic", {"train": 20}, hues=3, wrong=True, seed=1)
    outcome = search(tmp_path)
    curve = curve_of(outcome)
    gains = [point.gain for point in curve.points]
    assert gains[-1] < -0.2
    assert (curve.best, curve.at_edge) == (0.25, "smallest")
    assert [len(point.top1) for point in curve.points] == [4, 4, 2]  # the worst was left
    assert "no ratio clearly helps" in outcome.summary


def test_a_refused_set_is_not_searched(tmp_path: Path, own_work_folder: Path) -> None:
    """Protects the gate: nothing is trained on refused images, and the curve says why it is empty."""
    write_set(tmp_path / "real", "real", {"train": 8, "val": 4, "test": 2}, hues=1)
    write_set(tmp_path / "synthetic", "synthetic", {"train": 20}, hues=3, seed=1)
    outcome = search(tmp_path, reasons=("FID is 9, above 6.",))
    curve = curve_of(outcome)
    assert outcome.refused
    assert (curve.points, curve.peak, curve.num_real) == ((), None, 16)
    assert curve.skipped is not None
    assert "FID is 9" in curve.skipped
    assert not (own_work_folder / "ratios").exists()
    assert not search(tmp_path, out="passed").refused


def test_too_few_images_for_any_ratio_are_reported(tmp_path: Path) -> None:
    """Protects against an empty curve."""
    write_set(tmp_path / "real", "real", {"train": 8, "val": 4, "test": 2}, hues=1)
    write_set(tmp_path / "synthetic", "synthetic", {"train": 1}, hues=3, seed=1)
    with pytest.raises(DataError, match=r"2 images, too few for the smallest of ratio\.ratios, 0\.25 to one of 16"):
        search(tmp_path)


def test_only_what_decides_the_answer_is_in_the_fingerprint(tmp_path: Path) -> None:
    """Protects finished searches: the seeds of the comparison and its test intervals' arms do not matter, the length of training does."""
    write_set(tmp_path / "real", "real", {"train": 8, "val": 4, "test": 2}, hues=1)
    write_set(tmp_path / "synthetic", "synthetic", {"train": 20}, hues=3, seed=1)
    search(tmp_path)
    fingerprint = json.loads((tmp_path / "out/fingerprint.json").read_text())
    other = CONFIG.model_copy(update={"classify": CONFIG.classify.model_copy(update={"seeds": (7, 8), "num_train_steps": 3, "ratio": 2.0})})
    assert search(tmp_path, other).reused
    longer = CONFIG.model_copy(update={"ratio": CONFIG.ratio.model_copy(update={"num_train_steps": 61})})
    search(tmp_path, longer, out="longer")
    assert json.loads((tmp_path / "longer/fingerprint.json").read_text()) != fingerprint

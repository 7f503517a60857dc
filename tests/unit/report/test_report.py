"""The report: one self-contained page that states every outcome truthfully, with deterministic pictures."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from two_colours import SYNTHETIC_COLUMNS

from gda.artifacts.document import read_document
from gda.artifacts.evaluation import GroupResult, Metrics, SetArm, SetGain
from gda.artifacts.tuning import SamplingSettings, Settings, TuningPoint
from gda.artifacts.verdict import Verdict
from gda.config.sections import Arm, PromoteConfig
from gda.data.store.classes import make_classes
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.data.store.writer import ImageRecord, write_image_shard
from gda.report.gallery import _COLUMNS, image_grid
from gda.report.page import ReportInputs, write_report
from gda.report.sentences import judgement

FIXTURES = Path(__file__).parents[2] / "contract/fixtures"
PASSED = read_document(FIXTURES / "metrics.passed.json", Metrics)
REFUSED = read_document(FIXTURES / "metrics.refused.json", Metrics)
CLASSES = PASSED.classes
LOW, HIGH = SamplingSettings(guidance_scale=1.0), SamplingSettings(guidance_scale=1.5)
SETTINGS = Settings(
    chosen=HIGH,
    points=(
        TuningPoint(settings=LOW, nfe=22, fid=14.0, fid_ci95=(12.0, 16.0), pareto=True),
        TuningPoint(settings=HIGH, nfe=38, fid=9.5, fid_ci95=(8.0, 11.0), cas=0.94, cas_by_seed=(0.93, 0.95), pareto=True),
    ),
    extractor="glyph",
    fid_floor=4.0,
    num_images=200,
    generator_digest="9" * 64,
    snapshot_digest="1" * 64,
)


def write_snapshot(folder: Path, classes: tuple[str, ...], *, grey: int, side: int = 8, synthetic: bool = False) -> Snapshot:
    """Six images per class, all of one grey, by which the snapshots differ in a picture."""
    folder.mkdir(parents=True)
    records = [
        ImageRecord(
            key=f"{label}-{i}",
            rgb=np.full((side, side, 3), grey, dtype=np.uint8),
            label=label,
            class_name=name,
            meta=SYNTHETIC_COLUMNS if synthetic else {},
        )
        for label, name in enumerate(classes)
        for i in range(6)
    ]
    rows = write_image_shard(folder, name="train-000000.tar", split="train", records=records)
    kind = "synthetic" if synthetic else "real"
    commit_snapshot(
        folder,
        kind=kind,  # type: ignore[arg-type]
        classes=make_classes(classes),
        rows=rows,
        provenance={},
        licence="apache-2.0",
        plan_digest="8" * 64 if synthetic else None,
    )
    return Snapshot.open(folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Snapshot]:
    """Real, zero-shot and synthetic snapshots in greys 50, 130 and 200."""
    root = tmp_path_factory.mktemp("sets")
    return {
        "real": write_snapshot(root / "real", CLASSES, grey=50),
        "zero_shot": write_snapshot(root / "zero_shot", CLASSES, grey=130, synthetic=True),
        "synthetic": write_snapshot(root / "synthetic", CLASSES, grey=200, synthetic=True),
    }


def write(sets: dict[str, Snapshot], folder: Path, metrics: Metrics = PASSED, **changes: Any) -> str:
    """The page for `metrics`; keyword arguments override its inputs."""
    folder.mkdir(exist_ok=True)
    inputs: dict[str, Any] = {
        "metrics": metrics,
        "verdict": read_document(FIXTURES / f"verdict.{'passed' if metrics.verdict_passed else 'refused'}.json", Verdict),
        "settings": SETTINGS,
        "promote": PromoteConfig(),
        "confidence": 0.95,
        "gate_reasons": (),
        "timings": {"sample": 66.0, "classify real": 125.0},
    }
    return write_report(folder, ReportInputs(**(inputs | sets | changes))).read_text()


def with_gain(**changes: Any) -> Metrics:
    return PASSED.model_copy(update={"gain": PASSED.gain | {Arm.MIXED: PASSED.gain[Arm.MIXED].model_copy(update=changes)}})


def visible(page: str) -> str:
    """What a person reads: text without tags, style and runs of spaces."""
    return " ".join(re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.S).split())


def test_a_gain_is_the_first_sentence(sets: dict[str, Snapshot], tmp_path: Path) -> None:
    """Protects the reader in a hurry: counts, accuracies, interval, p-value, rivals, verdict and gate at the top."""
    text = visible(write(sets, tmp_path))
    top = text[: text.index("The images")]
    assert "Adding 12 synthetic images to 12 real ones raised accuracy from 93.6% to 95.1%" in top
    assert "(+1.5 points, 95% CI +0.9 to +2.0, p = 0.031, 6 seeds)" in top
    assert "the synthetic images are better: +1.1 points" in top
    assert "the synthetic images are better: +1.5 points" in top
    assert "The synthetic set passed validation (2 checks)" in top
    assert "Promotion gate: open" in top


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (None, "opened to evaluate an unknown number of times"),
        (1, "opened to evaluate once"),
        (3, "opened to evaluate 3 times: each further look weakens it"),
    ],
)
def test_how_often_the_test_split_was_opened_is_stated(sets: dict[str, Snapshot], tmp_path: Path, times: int | None, expected: str) -> None:
    """Protects the reader from a gain that was looked for until it came: from the second look on, the top of the page warns."""
    text = visible(write(sets, tmp_path, PASSED.model_copy(update={"test_openings": times})))
    assert f"test split {expected}" in text
    assert (f"This test split was opened {times} times" in text[: text.index("The images")]) is (times == 3)


def test_no_gain_is_stated_as_plainly(sets: dict[str, Snapshot], tmp_path: Path) -> None:
    """Protects against a report that can only cheer."""
    metrics = with_gain(mean=0.001, ci95=(-0.006, 0.008), p_value=0.8)
    page = write(sets, tmp_path, metrics, gate_reasons=("the gain over real is not clearly above zero",))
    assert "did not clearly change accuracy: 93.6% before, 93.7% after" in visible(page)
    assert "Promotion gate: shut, because the gain over real is not clearly above zero." in visible(page)
    assert 'class="outcome neutral"' in page


def test_a_loss_and_a_better_rival_are_stated(sets: dict[str, Snapshot], tmp_path: Path) -> None:
    """Protects honesty: a loss is called one, and a rival that does better is in the headline."""
    loss = write(sets, tmp_path / "loss", with_gain(mean=-0.01, ci95=(-0.02, -0.004), p_value=0.03125), gate_reasons=("no",))
    assert "lowered accuracy from 93.6% to 92.6%" in visible(loss)
    assert 'class="outcome bad"' in loss
    rivals = PASSED.gain_over_rivals | {
        Arm.REAL_STRONG: PASSED.gain_over_rivals[Arm.REAL_STRONG].model_copy(update={"ci95": (-0.02, -0.01)})
    }
    beaten = write(sets, tmp_path / "beaten", PASSED.model_copy(update={"gain_over_rivals": rivals}))
    assert "But “real only, strong augmentation” does better still: 94.0%." in visible(beaten)
    assert 'class="outcome good"' not in beaten
    rivals |= {Arm.REAL_LONG: rivals[Arm.REAL_STRONG]}
    both = write(sets, tmp_path / "both", PASSED.model_copy(update={"gain_over_rivals": rivals}))
    assert re.search(
        r"But “real only, trained as long” \([0-9.]+%\) and “real only, strong augmentation” \(94.0%\) do better still\.", visible(both)
    )


def test_a_rival_with_fewer_seeds_is_a_mean_alone(sets: dict[str, Snapshot], tmp_path: Path) -> None:
    """Protects readers from an interval of two seeds: neither the headline nor the answer concludes anything from it."""
    two = {"ci95": (-0.5, -0.3), "mean": -0.4, "seeds": 2, "differences": (-0.4, -0.4)}
    few = {Arm.RETRIEVED: PASSED.gain_over_rivals[Arm.REAL_STRONG].model_copy(update=two)}
    arms = PASSED.arms | {Arm.RETRIEVED: PASSED.arms[Arm.REAL_STRONG]}
    text = visible(write(sets, tmp_path, PASSED.model_copy(update={"gain_over_rivals": few, "arms": arms})))
    assert "mixed in alike, −40.0 points over 2 seeds: too few seeds to say." in text
    assert "better still" not in text


@pytest.mark.parametrize(
    ("declared", "rival", "subject", "question"),
    [
        (
            "real+synthetic_strong",
            "real_strong",
            "to 12 real ones, all with strong augmentation, raised",
            "Is it only the strong augmentation?",
        ),
        ("real+synthetic_strong", "retrieved", "all with strong augmentation, raised", "mixed in alike, with standard training, the"),
        ("real+synthetic_vit", "real_vit", "to 12 real ones, and training as “vit”, raised", "Is it only the training as “vit”?"),
        ("real+synthetic_vit", "real_strong", "and training as “vit”, raised", "Would strong hand-made augmentation do as well?"),
        ("real+synthetic", "real_vit", "to 12 real ones raised", "Would training as “vit” do as well?"),
        ("real+synthetic", "real+zero_shot", "to 12 real ones raised", "Was fine-tuning needed?"),
    ],
)
def test_arms_of_every_training_are_put_in_words(
    sets: dict[str, Snapshot], tmp_path: Path, declared: str, rival: str, subject: str, question: str
) -> None:
    """Protects the top of the page for any pair of images and training: what was done, and the question that each rival answers."""
    arm, other = Arm(declared), Arm(rival)
    changes = {
        "arms": PASSED.arms | {arm: PASSED.arms[Arm.MIXED], other: PASSED.arms[Arm.REAL_STRONG]},
        "gain": PASSED.gain | {arm: PASSED.gain[Arm.MIXED]},
        "gain_over_rivals": {other: PASSED.gain_over_rivals[Arm.REAL_STRONG]},
    }
    page = write(sets, tmp_path, PASSED.model_copy(update=changes), promote=PromoteConfig(arm=arm))
    top = visible(page)[: visible(page).index("The images")]
    assert subject in top
    assert question in top


def test_a_refused_set_is_explained(sets: dict[str, Snapshot], tmp_path: Path) -> None:
    """Protects the report after a refusal: why, what real images reach alone, and no empty gain section."""
    page = write(sets, tmp_path, REFUSED, gate_reasons=("there is no candidate",))
    text = visible(page)
    assert (
        "The synthetic set was refused by validation, so no classifier was trained on it. 12 real images alone reach 93.6% accuracy."
        in text
    )
    assert "Why it was refused: FID is 41, above 24." in text
    assert "✗ fail FID 41" in text
    assert "There is no gain to show" in text
    assert not (tmp_path / "gain.png").exists()


def test_missing_parts_are_stated_to_be_missing(sets: dict[str, Snapshot], tmp_path: Path) -> None:
    """Protects a run without tuning, verdict, timings or synthetic sets: every section still says something."""
    text = visible(write(sets, tmp_path, settings=None, verdict=None, timings={}, synthetic=None, zero_shot=None))
    assert "No tuning results were given." in text
    assert "No verdict was given." in text
    assert "No timings were recorded." in text
    assert "Adding synthetic images to 12 real ones" in text


def test_the_sweep_is_shown_as_a_table(sets: dict[str, Snapshot], tmp_path: Path) -> None:
    """Protects the tuning section: the chosen point first with its interval, CAS by seed and cost; what was left out is stated."""
    text = visible(write(sets, tmp_path / "few"))
    assert "chosen, undominated, alike guidance 1.5 9.5 (8 to 11) 94.0% (93.0, 95.0) 38" in text
    assert "undominated guidance 1 14 (12 to 16) 22" in text
    assert "points are shown" not in text
    more = tuple(SETTINGS.points[0].model_copy(update={"settings": SamplingSettings(guidance_scale=2.0 + i)}) for i in range(20))
    changes = {"points": SETTINGS.points + more, "notes": ("tune.sr_noise_levels: does not apply",)}
    many = visible(write(sets, tmp_path / "many", settings=SETTINGS.model_copy(update=changes)))
    assert "12 of 22 points are shown; the others are in settings.json. tune.sr_noise_levels: does not apply." in many


def test_the_page_needs_nothing_else(sets: dict[str, Snapshot], tmp_path: Path) -> None:
    """Protects readers offline: no scripts, no outside references, every picture embedded and equal to its file."""
    page = write(sets, tmp_path)
    assert not re.search(r"<script|<link|@import|url\(|https?://", page)
    embedded = {base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)}
    files = {path.read_bytes() for path in tmp_path.glob("*.png")}
    assert embedded == files
    assert len(files) == 6
    assert len(re.findall("<img ", page)) == 6


def test_equal_inputs_give_equal_bytes(sets: dict[str, Snapshot], tmp_path: Path) -> None:
    """Protects determinism: no dates, versions or object ids in pictures or page."""
    write(sets, tmp_path / "a")
    write(sets, tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert [(tmp_path / "a" / n).read_bytes() for n in names] == [(tmp_path / "b" / n).read_bytes() for n in names]
    assert all(b"Software" not in (tmp_path / "a" / n).read_bytes() for n in names if n.endswith(".png"))


def test_names_from_the_data_cannot_inject_markup(sets: dict[str, Snapshot], tmp_path: Path) -> None:
    """Protects readers of the page: reasons and names are escaped as text, whatever they hold."""
    page = write(sets, tmp_path, gate_reasons=("class <script>alert(1)</script> is worse",))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_groups_and_top5_are_shown_and_stated_to_decide_nothing(sets: dict[str, Snapshot], tmp_path: Path) -> None:
    """Protects the tables of groups and of top-5, each with the note that the gate does not read it; without them no heading."""
    gain = SetGain(mean=0.1, ci95=(0.05, 0.15), p_value=0.5, seeds=6)
    arm = SetArm(seeds=(0, 1), top1=(0.6, 0.6), mean=0.6, ci95=(0.5, 0.7), gain=gain)
    groups = {"few-shot (under 20)": GroupResult(kind="frequency", num_images=12, num_classes=2, arms={Arm.MIXED: arm})}
    top = {name: each.model_copy(update={"ci95_top5": (0.9, 1.0)}) for name, each in PASSED.arms.items()}
    shown = PASSED.model_copy(update={"groups": groups, "arms": top, "gain_top5": {Arm.MIXED: gain}, "classes": tuple("abcdef")})
    page = visible(write(sets, tmp_path / "with", shown))
    assert "few-shot (under 20) 12 images of 2 classes real + synthetic 2 60.0% 50.0 to 70.0 +10.0 (+5.0 to +15.0) p = 0.5" in page
    assert "These numbers decide nothing in the gate." in page
    assert "The gain in top-5 decides nothing in the gate." in page
    assert "100.0% 90.0 to 100.0 +10.0 (+5.0 to +15.0) p = 0.5" in page
    without = visible(write(sets, tmp_path / "without"))
    assert "Groups of classes and images" not in without
    assert "Top-1 and top-5" not in without


def test_times_and_counts_are_shown(sets: dict[str, Snapshot], tmp_path: Path) -> None:
    """Protects the tables at the end: time a stage, and how often the test split was looked at."""
    text = visible(write(sets, tmp_path))
    assert "classify real 2 min 5 s" in text
    assert "total 3 min 11 s" in text
    assert "test split opened to evaluate once" in text
    assert PASSED.test_digest in text


def test_the_validation_report_is_linked(sets: dict[str, Snapshot], tmp_path: Path) -> None:
    """Protects the way to the pictures of the worst cases, which lie next to the verdict."""
    assert '<a href="../validation/index.html">' in write(sets, tmp_path, validation_page="../validation/index.html")
    assert "<a " not in write(sets, tmp_path)


def test_the_grid_shows_each_set_in_its_block(sets: dict[str, Snapshot]) -> None:
    """Protects the picture: blocks in order, one row per class, pixels enlarged without blurring."""
    png = image_grid({"real": sets["real"], "fine-tuned": sets["synthetic"]}, CLASSES)
    pixels = np.asarray(Image.open(io.BytesIO(png)))[:, :, 0]
    rows, columns = np.nonzero(pixels == 50)
    assert len(rows) == 2 * _COLUMNS * 48 * 48  # two classes, 8-pixel images enlarged six times
    assert columns.max() < np.nonzero((pixels == 200).sum(axis=0) > 40)[0].min()


def test_many_classes_and_large_images_stay_readable(tmp_path: Path) -> None:
    """Protects the page of a large data set: at most twelve rows of images of at most 96 pixels."""
    names = tuple(f"class number {i:02d}" for i in range(30))
    snapshot = write_snapshot(tmp_path / "many", names, grey=50, side=150)
    width, height = Image.open(io.BytesIO(image_grid({"real": snapshot}, names))).size
    assert height < 12 * 100 + 60
    assert width < 5 * 100 + 250


@pytest.mark.parametrize(
    ("ci95", "p_value", "seeds", "expected"),
    [
        ((0.01, 0.02), 0.03, 6, "better"),
        ((0.01, 0.02), 0.06, 6, "likely better"),
        ((0.01, 0.02), 0.25, 3, "better"),
        ((-0.02, -0.01), 0.03, 6, "worse"),
        ((-0.02, -0.01), 0.06, 6, "likely worse"),
        ((-0.01, 0.01), 0.03, 6, "no clear difference"),
        ((0.0, 0.01), 0.03, 6, "no clear difference"),
    ],
)
def test_words_follow_the_numbers(ci95: tuple[float, float], p_value: float, seeds: int, expected: str) -> None:
    """Protects the wording: nothing is called better while its interval holds zero."""
    gain = PASSED.gain[Arm.MIXED].model_copy(update={"ci95": ci95, "p_value": p_value, "seeds": seeds})
    assert judgement(gain, 0.05) == expected

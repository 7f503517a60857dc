"""evaluate: known accuracies come out, the test split is opened once, and what does not belong is refused or ignored."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluation_world import COMPARED, TEST_PER_CLASS, ProcessGroup, config

from gda.artifacts.document import read_document
from gda.artifacts.evaluation import Metrics
from gda.artifacts.outcome import Outcome
from gda.config.sections import Arm
from gda.data.store.predictions import read_predictions, write_predictions
from gda.data.store.snapshot import Snapshot
from gda.data.test_split.ledger import count_test_openings, read_ledger
from gda.errors import DataError
from gda.stages import evaluate
from gda.stats.calibration import reliability


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> ProcessGroup:
    """A world that no test changes."""
    return ProcessGroup(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def evaluated(pristine: ProcessGroup) -> Outcome:
    """The evaluation of the pristine world."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(pristine.root.parent / "module-work"))
        return run(pristine, out="../evaluated")


@pytest.fixture
def world(pristine: ProcessGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProcessGroup:
    """A copy to change, with a work folder of its own."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    copy = object.__new__(ProcessGroup)
    copy.__dict__.update(pristine.__dict__)
    copy.root = tmp_path / "world"
    shutil.copytree(pristine.root, copy.root)
    copy.runs = copy.root / "classifiers"
    return copy


def run(
    world: ProcessGroup,
    *,
    out: str = "out",
    runs: list[Path] | None = None,
    settings: bool = True,
    arms: tuple[Arm, ...] = COMPARED,
    **promote: object,
) -> Outcome:
    request = config(**promote)
    return evaluate.run(
        request.model_copy(update={"classify": request.classify.model_copy(update={"arms": arms})}),
        runs=runs or [world.runs],
        snapshot=world.root / "real",
        synthetic=world.root / "synthetic",
        zero_shot=world.root / "zero_shot",
        tuning=world.root / "tuning" if settings else None,
        verdict=world.verdict,
        out=world.root / out,
        timings={"sample": 12.0},
    )


def metrics_of(outcome: Outcome) -> Metrics:
    return read_document(outcome.output / "metrics.json", Metrics)


def test_known_accuracies_and_gains_come_out(pristine: ProcessGroup, evaluated: Outcome) -> None:
    """Protects the numbers end to end: classifiers wrong on known classes give exactly those accuracies, gains and candidate."""
    metrics = metrics_of(evaluated)
    assert {arm: result.mean for arm, result in metrics.arms.items()} == {
        Arm.REAL: 0.75,
        Arm.REAL_LONG: 0.75,
        Arm.REAL_STRONG: 1.0,
        Arm.RETRIEVED: 0.5,
        Arm.ZERO_SHOT: 0.5,
        Arm.IMG2IMG: 0.75,
        Arm.SYNTHETIC: 0.75,
        Arm.MIXED: 1.0,
        Arm.MIXED_STRONG: 1.0,
        Arm("real+zero_shot"): 0.75,
        Arm.TARGETED: 1.0,
        Arm.LAST_LAYER: 1.0,
    }
    assert metrics.cas == 0.75
    assert metrics.cas_zero_shot == 0.5
    assert metrics.arms[Arm.REAL].per_class == (0.0, 1.0, 1.0, 1.0)
    assert metrics.gain[Arm.MIXED].mean == 0.25
    assert metrics.gain[Arm.MIXED].p_value == 0.03125
    assert {rival: gain.mean for rival, gain in metrics.gain_over_rivals.items()} == {
        Arm.REAL_LONG: 0.25,
        Arm.REAL_STRONG: 0.0,
        Arm.RETRIEVED: 0.5,
        Arm.IMG2IMG: 0.25,
        Arm("real+zero_shot"): 0.25,
    }
    assert {arm: (each.rival, each.gain.mean) for arm, each in metrics.gain_within_training.items()} == {
        Arm.MIXED: (Arm.REAL, 0.25),  # which took as many updates here
        Arm.MIXED_STRONG: (Arm.REAL_STRONG, 0.0),
        Arm.TARGETED: (Arm.REAL, 0.25),
        Arm.LAST_LAYER: (Arm.REAL, 0.25),
    }
    assert metrics.gain[Arm.SYNTHETIC].seeds == 2
    assert metrics.num_test == 4 * TEST_PER_CLASS
    assert metrics.test_digest == pristine.real.split_digest("test")
    assert {"metrics.json", "report.html", "predictions.safetensors", "accuracy.png"} <= {p.name for p in evaluated.output.iterdir()}


def test_arms_that_are_not_compared_are_left_out(world: ProcessGroup) -> None:
    """Classifiers of other arms that lie about are ignored, and the report does without the arms that it is used to."""
    world.add_classifier(Arm.SYNTHETIC, 0, folder=world.runs / "copy")
    outcome = run(world, arms=(Arm.REAL, Arm.MIXED))
    metrics = metrics_of(outcome)
    assert (list(metrics.arms), list(metrics.gain), metrics.gain_over_rivals) == ([Arm.REAL, Arm.MIXED], [Arm.MIXED], {})
    assert (metrics.cas, metrics.cas_ci95, metrics.cas_zero_shot) == (None, None, None)
    assert "Promotion gate: open" in (outcome.output / "report.html").read_text()


def test_the_candidate_is_chosen_on_validation(world: ProcessGroup) -> None:
    """Protects the test split from choosing: the seed with the best validation accuracy wins, though others are better on test."""
    world.add_classifier(Arm.MIXED, 3, wrong=(1,), val_top1=0.99)
    candidate = metrics_of(run(world)).candidate
    assert candidate is not None
    assert (candidate.seed, candidate.path) == (3, (world.runs / "real+synthetic-3").as_posix())


def test_the_test_split_is_opened_once(world: ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the ledger: neither a failure after predicting nor a finished second run opens the test split again."""
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "write_report", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(world)
    assert not (world.root / "out").exists()
    run(world)
    assert run(world).reused
    assert [line["purpose"] for line in read_ledger()] == ["evaluate", "judge"]


def test_another_gate_does_not_open_the_test_split_again(world: ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the test split from every setting by which it is assessed: those classifiers' predictions are there."""
    first = metrics_of(run(world))
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "open_test", lambda *_, **__: 1 / 0)
        again = run(world, out="other", alpha=0.001)
    assert metrics_of(again).arms == first.arms
    assert (again.output / "predictions.safetensors").read_bytes() == (world.root / "out/predictions.safetensors").read_bytes()
    assert [line["purpose"] for line in read_ledger()] == ["evaluate", "judge"]


def test_other_classifiers_open_it_again(world: ProcessGroup) -> None:
    """Protects the kept predictions from being taken for those of another classifier, and the ledger from missing its look."""
    first = metrics_of(run(world))
    shutil.rmtree(world.runs / "real-0")
    world.add_classifier(Arm.REAL, 0, wrong=(1, 2))
    second = metrics_of(run(world, out="other"))
    assert second.arms[Arm.REAL].mean != first.arms[Arm.REAL].mean
    assert count_test_openings(world.real.split_digest("test"), "evaluate") == 2


def test_openings_are_in_the_metrics_wherever_they_were_made(world: ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the reader of a report: looks of other classifiers count, in other work folders too; one that went on is one."""
    first = run(world)
    assert (metrics_of(first).test_openings, first.metrics["test_openings"]) == (1, 1.0)
    assert "opened" not in first.summary
    monkeypatch.setenv("GDA_WORK_DIR", str(world.root.parent / "elsewhere"))
    assert metrics_of(run(world, out="same")).test_openings == 1  # it went on elsewhere, and opened it once more for the same
    shutil.rmtree(world.runs / "real-0")
    world.add_classifier(Arm.REAL, 0, wrong=(1, 2))
    second = run(world, out="other")
    assert metrics_of(second).test_openings == 2
    assert "this test split was opened 2 times: each further look weakens it" in second.summary
    assert "This test split was opened 2 times" in (second.output / "report.html").read_text()
    assert metrics_of(run(world, out="accepted", alpha=0.001)).test_openings == 2


def test_groups_of_test_images_go_with_their_predictions(world: ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects resampling by patient: predictions have the snapshot's groups, also those kept by a version that wrote none."""
    groups = np.arange(4 * TEST_PER_CLASS, dtype=np.int32) // 3
    assert read_predictions(run(world, out="plain").output / "predictions.safetensors").groups is None
    monkeypatch.setattr(Snapshot, "groups", lambda _, split: groups if split == "test" else None)
    found = read_predictions(run(world, alpha=0.001).output / "predictions.safetensors").groups
    np.testing.assert_array_equal(found, groups)
    shutil.rmtree(world.root.parent / "work/test-predictions")
    found = read_predictions(run(world, out="again", alpha=0.002).output / "predictions.safetensors").groups
    np.testing.assert_array_equal(found, groups)
    (kept,) = (world.root.parent / "work/test-predictions").iterdir()
    np.testing.assert_array_equal(read_predictions(kept).groups, groups)


def test_another_declaration_is_another_look(world: ProcessGroup) -> None:
    """Protects the level of the gate: another arm, declared when all are known, has a stricter one; the same again is no new look."""
    assert metrics_of(run(world)).look == 1
    assert metrics_of(run(world, out="report", alpha=0.01)).look == 1
    assert metrics_of(run(world, out="arm", arm=Arm.SYNTHETIC)).look == 2
    assert metrics_of(run(world, out="rivals", rivals=(Arm.REAL_LONG,))).look == 3
    assert metrics_of(run(world, out="again", alpha=0.02)).look == 1


def test_images_of_a_group_are_assessed_as_one(world: ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects tests with several images of one patient: fewer, larger units are behind every number."""
    alone = metrics_of(run(world, out="plain")).gain[Arm.MIXED]
    groups = np.arange(4 * TEST_PER_CLASS, dtype=np.int32) // 3
    monkeypatch.setattr(Snapshot, "groups", lambda _, split: groups if split == "test" else None)
    together = metrics_of(run(world, alpha=0.001)).gain[Arm.MIXED]
    assert (alone.groups, together.groups) == (None, len(set(groups.tolist())))
    assert alone.spread is not None
    assert together.spread is not None
    assert together.spread.image_freedom < alone.spread.image_freedom / 2


def test_metrics_of_before_openings_were_counted_are_read(world: ProcessGroup) -> None:
    """Protects evaluations of earlier versions: they say nothing of it, which is no number."""
    path = run(world).output / "metrics.json"
    content = json.loads(path.read_bytes())
    assert content.pop("test_openings") == 1
    path.write_text(json.dumps(content))
    assert read_document(path, Metrics).test_openings is None


def test_kept_predictions_that_are_damaged_are_made_again(world: ProcessGroup) -> None:
    """Protects the figures from a file that changed on disk; the same classifiers' second look is for the same work."""
    first = metrics_of(run(world))
    (kept,) = (world.root.parent / "work/test-predictions").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-4] + bytes([whole[-4] ^ 1]) + whole[-3:])
    assert metrics_of(run(world, out="other", alpha=0.001)).arms == first.arms
    assert kept.read_bytes() == whole
    assert (len(read_ledger()), count_test_openings(world.real.split_digest("test"), "evaluate")) == (3, 1)


def test_two_runs_give_equal_bytes(pristine: ProcessGroup, evaluated: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects determinism: metrics, predictions, plots and report do not depend on when or where they were made."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "elsewhere"))
    first, second = evaluated.output, run(pristine, out=str(tmp_path / "second")).output
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()}
    assert {n for n in names if (first / n).read_bytes() != (second / n).read_bytes()} == set()


def test_stale_classifiers_are_ignored(world: ProcessGroup, evaluated: Outcome) -> None:
    """Protects against directories left by an earlier list of seeds: they change nothing."""
    world.add_classifier(Arm.REAL, 17, wrong=(0, 1, 2))
    world.add_classifier(Arm.SYNTHETIC, 5, wrong=(0, 1, 2))
    assert metrics_of(run(world)).arms == metrics_of(evaluated).arms


def test_single_classifiers_may_be_given(world: ProcessGroup) -> None:
    """Protects --runs with one directory a classifier, as a cluster hands them over."""
    folders = sorted(world.runs.iterdir())
    assert metrics_of(run(world, runs=folders)).arms[Arm.MIXED].mean == 1.0


def test_exchanged_weights_are_refused(world: ProcessGroup) -> None:
    """Protects against results under the digests of other classifiers: before a finished output is called up to date, too."""
    one, two = (world.runs / name / "model.safetensors" for name in ("real-0", "real+synthetic-0"))
    before = one.read_bytes()
    one.write_bytes(two.read_bytes())
    with pytest.raises(DataError, match=r"real-0/model\.safetensors: holds weights"):
        run(world)
    one.write_bytes(before)
    assert evaluate.select_runs(config(), [world.runs])


@pytest.mark.parametrize("lost", ["real-4", "synthetic-1"])
def test_a_missing_classifier_is_named(world: ProcessGroup, lost: str) -> None:
    """Protects against evaluating fewer seeds than were requested."""
    shutil.rmtree(world.runs / lost)
    with pytest.raises(DataError, match=f"expected a folder such as {lost.replace('-', '/')}"):
        run(world)


def test_a_classifier_given_twice_is_named(world: ProcessGroup) -> None:
    """Protects against an arbitrary choice between two classifiers of one seed."""
    world.add_classifier(Arm.REAL, 0, folder=world.runs / "copy")
    with pytest.raises(DataError, match="real, seed 0 is also in"):
        run(world)


@pytest.mark.parametrize(
    ("card", "message"),
    [({"snapshot_digest": "7" * 64}, "was trained on snapshot 777777777777"), ({"classes": ("a", "b", "c", "d")}, "its classes are not")],
)
def test_a_classifier_of_other_data_is_refused(world: ProcessGroup, card: dict[str, object], message: str) -> None:
    """Protects the comparison from classifiers that were trained on another snapshot or with other labels."""
    world.add_classifier(Arm.REAL, 2, **card)
    with pytest.raises(DataError, match=message):
        run(world)


def test_a_refused_set_is_a_result(world: ProcessGroup) -> None:
    """Protects the run after a refusal: real arms are still measured, skipped arms say why, and the report opens with it."""
    world.write_verdict(passed=False)
    for arm, seeds in ((Arm.MIXED, 6), (Arm.SYNTHETIC, 2)):
        for seed in range(seeds):
            world.skip(arm, seed, "because the synthetic set was refused: FID is 9, above 6")
    outcome = run(world, settings=False)
    metrics = metrics_of(outcome)
    assert metrics.arms[Arm.REAL].mean == 0.75
    assert metrics.arms[Arm.MIXED].skipped == "because the synthetic set was refused: FID is 9, above 6"
    assert metrics.cas is None
    assert metrics.candidate is None
    assert Arm.MIXED not in metrics.gain
    assert "skipped synthetic, real+synthetic" in outcome.summary
    assert "The synthetic set was refused by validation" in (outcome.output / "report.html").read_text()


def test_a_half_skipped_arm_is_refused(world: ProcessGroup) -> None:
    """Protects against averaging over the seeds that happened to run before a refusal."""
    world.skip(Arm.MIXED, 1, "because")
    with pytest.raises(DataError, match="some seeds ran and others were skipped"):
        run(world)


def test_predictions_agree_with_the_metrics(evaluated: Outcome, tmp_path: Path) -> None:
    """Protects the file that later candidates are compared with: it holds the very predictions that were counted."""
    written = evaluated.output / "predictions.safetensors"
    predictions = read_predictions(written)
    assert predictions.correct(Arm.REAL, range(6)).mean() == 0.75
    assert predictions.seeds(Arm.ZERO_SHOT) == (0, 1)
    (tmp_path / "cut.safetensors").write_bytes(written.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"cut\.safetensors: not a whole file"):
        read_predictions(tmp_path / "cut.safetensors")


def test_confusions_and_calibration_are_those_of_the_predictions(evaluated: Outcome) -> None:
    """Protects what is reported of mistakes: arms that cannot see blue always take it for others, largest share first."""
    metrics, predictions = metrics_of(evaluated), read_predictions(evaluated.output / "predictions.safetensors")
    confusions = metrics.arms[Arm.REAL].most_confused
    assert {each.class_name for each in confusions} == {"blue"}
    assert sum(each.share for each in confusions) == pytest.approx(1.0)
    assert [each.share for each in confusions] == sorted((each.share for each in confusions), reverse=True)
    assert metrics.arms[Arm.MIXED].most_confused == ()
    table = pd.read_csv(evaluated.output / "confusion.csv")
    seeds = len(predictions.seeds(Arm.REAL))
    blue = table[(table["arm"] == "real") & (table["class"] == "blue")]
    assert dict(zip(blue["predicted"], blue["images"] / (seeds * TEST_PER_CLASS), strict=True)) == {
        each.predicted: pytest.approx(each.share) for each in confusions
    }
    assert table.groupby("arm")["images"].sum().to_dict() == {
        str(arm): len(predictions.seeds(arm)) * metrics.num_test for arm in metrics.arms if metrics.arms[arm].skipped is None
    }
    for (arm, seed), both in predictions.probabilities.items():
        right = predictions.correct(arm, (seed,))[0]
        assert (both[right, 0] == both[right, 1]).all()
        assert (both[~right, 0] > both[~right, 1]).all()
        place = metrics.arms[arm].seeds.index(seed)
        assert metrics.arms[arm].ece[place] == pytest.approx(reliability(both[:, 0], right).error)
        assert metrics.arms[arm].nll[place] == pytest.approx(-np.log(both[:, 1].astype(float)).mean())
    assert metrics.arms[Arm.REAL].ece[0] > 2 * metrics.arms[Arm.MIXED].ece[0]  # sure of blue and wrong


def test_mistakes_are_in_the_report(evaluated: Outcome) -> None:
    """Protects the two sections and their plots, which also are files."""
    page = (evaluated.output / "report.html").read_text()
    assert "Can the probabilities be believed?" in page
    assert {"reliability.png", "confusion.png", "confusion.csv"} <= {path.name for path in evaluated.files}


def test_predictions_of_before_probabilities_were_kept_can_be_read(evaluated: Outcome, tmp_path: Path) -> None:
    """Protects the champions of earlier versions: their file says less, and what is reported is the same."""
    whole = read_predictions(evaluated.output / "predictions.safetensors")
    write_predictions(tmp_path / "old.safetensors", replace(whole, probabilities={}))
    old = read_predictions(tmp_path / "old.safetensors")
    assert old.probabilities == {}
    assert (old.correct(Arm.REAL, range(6)) == whole.correct(Arm.REAL, range(6))).all()
    one = whole.only(Arm.REAL, 2)
    assert list(one.top) == list(one.probabilities) == [(Arm.REAL, 2)]
    assert old.only(Arm.REAL, 2).probabilities == {}


def test_the_report_links_to_the_validation_report(world: ProcessGroup) -> None:
    """Protects the default place of the validation report: next to the verdict, as seen from the output."""
    (world.root / "index.html").write_text("validation")
    assert '<a href="../index.html">' in (run(world).output / "report.html").read_text()

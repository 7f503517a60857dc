"""Every component as a function on tiny data: what it writes, shows and passes on; refusals, failures, and the report after each."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster_world import IMAGE, Pods, task_config
from fake_kubernetes import FakeKubernetes
from PIL import Image
from step_world import Run, two_textures

from components.evaluate import evaluate
from components.look_up import look_up
from components.promote import promote, register
from components.ratio import ratio
from components.sample import plan_sampling, sample_job
from components.snapshot import snapshot
from components.tune import plan_points, tune, tune_points
from components.validate import reject
from gda.artifacts.decision import Decision
from gda.artifacts.document import read_document
from gda.artifacts.evaluation import Metrics
from gda.artifacts.tuning import Settings
from gda.errors import ConfigError, DataError, UsageError
from gda.steps.graph import parse_reference
from gda.steps.step import StepRecord


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, dict[str, Any]]]:
    """A run by hand of all steps, and what each passed on."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "GDA_WORK_DIR"):
            patch.delenv(name, raising=False)
        folder = tmp_path_factory.mktemp("components")
        patch.chdir(folder)
        two_textures(folder / "given", 40)
        run = Run(root=folder, images=folder / "given" / "images", base=folder / "given" / "generator")
        configured = run.configure()
        have: dict[str, Any] = {"configured": configured} | run.real(configured)
        have |= run.generated(configured, have)
        have["verdict"], have["accepted"], have["passed"] = run.validated(configured, have)
        have |= run.compared(configured, have, have["verdict"], have["accepted"])
        have["text"], have["page"] = run.report()
        yield run, have


def _folder(reference: str) -> Path:
    return parse_reference(reference, role="test").path


def test_the_whole_job_by_hand(world: tuple[Run, dict[str, Any]]) -> None:
    """Steps that pass only references to each other end with an evaluation and a registered challenger."""
    _, have = world
    assert have["passed"] is True
    metrics = read_document(_folder(have["evaluation"]) / "metrics.json", Metrics)
    assert {arm: result.seeds for arm, result in metrics.arms.items()} == {"real": (0, 1), "real+synthetic": (0, 1), "zero_shot": (0,)}
    decision = read_document(_folder(have["challenger"]) / "decision.json", Decision)
    assert decision.aliases == ("challenger",)
    assert decision.model_version == "1"


def test_steps_hand_on_references_and_not_data(world: tuple[Run, dict[str, Any]]) -> None:
    """A pipeline stores only pages and small texts of each step: no shard, no image, no weights pass through it."""
    run, have = world
    handed = [value for name, value in have.items() if isinstance(value, str) and name not in ("text", "page")]
    assert all(len(text) < 1000 for text in handed)
    assert all(parse_reference(line, role="test").path.is_dir() for text in handed for line in text.splitlines())
    pages = [path for path in (run.root / "pages" / run.name).rglob("*") if path.is_file()]
    assert {path.name for path in pages} == {"summary", "page"}
    images = sum(path.stat().st_size for path in (run.root / "volume").rglob("*.tar"))
    assert images > 0
    assert max(path.stat().st_size for path in pages if path.name == "summary") < 20_000


def test_what_the_user_interface_shows(world: tuple[Run, dict[str, Any]]) -> None:
    """Measures are numbers, the report's page is the comparison's, the text says how the run ended."""
    run, have = world
    assert set(run.metrics) >= {"snapshot", "reference", "finetune", "tune", "sample", "validate", "classify", "evaluate", "register"}
    assert all(isinstance(value, float) for shown in run.metrics.values() for value in shown.values())
    assert have["page"] == (_folder(have["evaluation"]) / "report.html").read_text()
    assert "gda-classifier version 1 is a challenger that did not pass the gate" in have["text"]
    assert "| classify-real+synthetic-1 | done |" in have["text"]
    assert "not done" not in have["text"]
    (page,) = (run.root / "pages" / run.name).glob("*-gather_classifiers/summary")
    text = page.read_text()
    assert text.startswith("# 5 classifiers\n")
    assert re.search(r"^\| real\+synthetic \| 1 \| \d+\.\d\d% \|$", text, re.M)


def test_a_finished_step_is_found_again(world: tuple[Run, dict[str, Any]]) -> None:
    """The same request does not run twice: a retried pod, or a second run, gets the same reference."""
    run, have = world
    record = _folder(have["snapshot"]).parents[1] / "step.json"
    before = record.stat().st_mtime_ns
    assert run.call(snapshot, settings=have["configured"]["snapshot"], code=have["configured"]["code"]) == have["snapshot"]
    assert record.stat().st_mtime_ns == before
    assert run.call(snapshot, settings=have["configured"]["snapshot"], code="other code") != have["snapshot"]


def test_new_images_under_the_same_path_are_frozen_again(world: tuple[Run, dict[str, Any]]) -> None:
    """A second run whose source has one image more does not train on the old ones; one without a change finds them frozen."""
    run, _ = world
    source = run.root / "growing"
    shutil.copytree(run.images, source)
    grown = replace(run, name="run-6", images=source, metrics={})
    before = grown.configure()
    first = grown.call(snapshot, settings=before["snapshot"], code=before["code"])
    assert grown.call(snapshot, settings=grown.configure()["snapshot"], code=before["code"]) == first
    (image,) = sorted((source / "red").iterdir())[:1]
    Image.open(image).transpose(Image.Transpose.ROTATE_90).save(source / "red" / "more.png")
    after = replace(grown, name="run-7").configure()
    second = grown.call(snapshot, settings=after["snapshot"], code=before["code"])
    assert second != first
    assert {name for name in before if before[name] != after[name]} == {"snapshot"}


def test_an_output_that_was_swept_away_is_made_again(world: tuple[Run, dict[str, Any]]) -> None:
    """A record without its output is none: old steps may be removed by age."""
    run, have = world
    configured = {"settings": have["configured"]["snapshot"], "code": "code of the sweep"}
    made = run.call(snapshot, **configured)
    shutil.rmtree(_folder(made))
    assert run.call(snapshot, **configured) == made
    assert (_folder(made) / "snapshot.json").is_file()


def test_the_registry_is_queried_each_time(world: tuple[Run, dict[str, Any]]) -> None:
    """A second registration writes its decision again: between two, another model may have become champion."""
    run, have = world
    configured = have["configured"]
    file = _folder(have["challenger"]) / "decision.json"
    before = file.stat().st_mtime_ns
    again = run.call(
        register, evaluation=have["evaluation"], verdict=have["verdict"], settings=configured["promote"], code=configured["code"]
    )
    assert again == have["challenger"]
    assert file.stat().st_mtime_ns > before


def test_an_input_that_changed_is_refused(world: tuple[Run, dict[str, Any]]) -> None:
    """A reference whose content is not what was referred to stops the step before it computes anything."""
    run, have = world
    other = parse_reference(have["snapshot"], role="snapshot").model_copy(update={"digest": "0" * 64}).text()
    with pytest.raises(DataError, match=r"snapshot: .* holds [0-9a-f]{12}, but 000000000000 was requested"):
        run.validated(have["configured"], have | {"snapshot": other})


def test_no_more_workers_than_shards(world: tuple[Run, dict[str, Any]]) -> None:
    """The plan has three shards: seven workers would idle, none or too many are refused."""
    run, have = world
    given = {"snapshot": have["snapshot"], "settings": have["configured"]["sample"], "code": "1"}
    assert run.call(plan_sampling, num_workers=7, **given) == ["0/3", "1/3", "2/3"]
    assert run.call(plan_sampling, num_workers=2, **given) == ["0/2", "1/2"]
    for count in (0, 13):
        with pytest.raises(UsageError, match=f"sample_workers {count}: accepted: 1 to 12"):
            run.call(plan_sampling, num_workers=count, **given)


def test_promotion_applies_the_gate_again(world: tuple[Run, dict[str, Any]]) -> None:
    """The pipeline that may move `champion` does not, where the gate does not hold."""
    run, have = world
    configured = have["configured"]
    done = run.call(
        promote, evaluation=have["evaluation"], verdict=have["verdict"], settings=configured["promote"], code=configured["code"]
    )
    decision = read_document(_folder(done) / "decision.json", Decision)
    assert not decision.promoted
    assert "champion" not in decision.aliases


def test_a_refused_set_is_reported(world: tuple[Run, dict[str, Any]]) -> None:
    """The verdict stops the run before any classifier; its reasons are the report."""
    run, have = world
    refused = replace(run, name="run-2", changes={"validate": {"fid_max_ratio": 1e-9}}, metrics={})
    configured = refused.configure()
    verdict, _, passed = refused.validated(configured, have)
    assert passed is False
    reasons = refused.call(reject, verdict=verdict)
    assert reasons.startswith("FID is ")
    text, page = refused.report()
    assert text.startswith("# The synthetic set was refused; no classifier was trained on it")
    assert reasons in text
    assert "FID is " in page
    assert "| validate | refused |" in text


def test_a_failed_step_is_reported(world: tuple[Run, dict[str, Any]]) -> None:
    """The report names the step, its one line of error, and what was never reached."""
    run, _ = world
    failed = replace(run, name="run-3", images=shutil.copytree(run.images, run.root / "nowhere"), metrics={})
    configured = failed.configure()
    shutil.rmtree(failed.images)
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        failed.real(configured)
    text, page = failed.report("FAILED", "Task job failed.")
    assert text.startswith("# The run failed at snapshot")
    assert str(run.root / "nowhere") in text
    assert "| reference | not done |" in text
    assert "The run failed at snapshot" in page


def test_a_wrong_configuration_is_reported(world: tuple[Run, dict[str, Any]]) -> None:
    """A run whose form is refused reports which field is wrong."""
    run, _ = world
    wrong = replace(run, name="run-4", changes={"validate": {"fid_max_ratio": 2.0}}, metrics={})
    form = wrong.form()
    settings = json.dumps(json.loads(form["settings"]) | {"sedes": 1})
    wrong.form = lambda: form | {"settings": settings}  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="unknown key 'sedes'"):
        wrong.configure()
    text, _ = wrong.report("FAILED", "Task job failed.")
    assert text.startswith("# The run was refused: its configuration is wrong")
    assert "unknown key 'sedes'" in text


def test_images_that_are_not_there_are_reported(world: tuple[Run, dict[str, Any]]) -> None:
    """A path without images is reported before anything is begun, by the field that names it."""
    run, _ = world
    wrong = replace(run, name="run-8", images=run.root / "never", metrics={})
    with pytest.raises(DataError, match=r"snapshot\.source: .*never: no such file, folder or pattern of files"):
        wrong.configure()
    text, _ = wrong.report("FAILED", "Task configure failed.")
    assert "snapshot.source: " in text


def test_a_run_that_never_began_is_reported(world: tuple[Run, dict[str, Any]]) -> None:
    """If a run has no configuration, the report has the status that the pipeline states."""
    run, _ = world
    lost = replace(run, name="run-5", metrics={})
    text, _ = lost.report("FAILED", "image could not be pulled")
    assert text.startswith("# The run did not get as far as its configuration")
    assert "image could not be pulled" in text


def test_what_a_run_made_is_found(world: tuple[Run, dict[str, Any]]) -> None:
    """Pipelines that continue a run get its references, its code, and its settings."""
    run, have = world
    found = _looked_up(run)
    for role in ("snapshot", "accepted", "zero_shot", "tuning", "verdict", "evaluation"):
        assert found[role] == have[role]
    assert len(found["runs"]) == 5
    assert found["code"] == have["configured"]["code"]
    assert found["evaluate_settings"] == have["configured"]["evaluate"]
    assert found["promote_settings"] == have["configured"]["promote"]


def test_a_run_is_compared_again(world: tuple[Run, dict[str, Any]]) -> None:
    """With other settings the evaluation is another; with the run's own it is found finished."""
    run, have = world
    sets = {"snapshot": have["snapshot"], "zero_shot": have["zero_shot"], "tuning": have["tuning"], "verdict": have["verdict"]}
    for settings, same in (("{}", True), ('{"evaluate": {"confidence": 0.9}}', False)):
        found = _looked_up(run, settings)
        again = run.call(
            evaluate, runs=found["runs"], synthetic=found["accepted"], settings=found["evaluate_settings"], code=found["code"], **sets
        )
        assert (again == have["evaluation"]) is same


def test_the_ratio_of_a_run(world: tuple[Run, dict[str, Any]]) -> None:
    """The curve is for the set that the verdict is about."""
    run, have = world
    few = {"ratio": {"ratios": [0.1, 0.3], "first_seeds": 1, "seeds": 2, "num_train_steps": 2}}
    found = _looked_up(run, json.dumps(few))
    curve = run.call(
        ratio,
        snapshot=found["snapshot"],
        synthetic=found["accepted"],
        verdict=found["verdict"],
        settings=found["ratio_settings"],
        code=found["code"],
    )
    assert (
        json.loads((_folder(curve) / "ratio.json").read_bytes())["synthetic_digest"] == parse_reference(have["accepted"], role="t").digest
    )


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("run-1", '{"finetune": {"jitter": 0.1}}', ConfigError, "finetune: cannot be changed here; accepted: evaluate, promote, ratio"),
        ("run-1", '{"evaluate": {"confidense": 0.1}}', ConfigError, "did you mean 'confidence'"),
        ("run-1", "{", ConfigError, "settings: not valid JSON"),
        ("run-0", "{}", DataError, "not found"),
        ("../run-1", "{}", UsageError, "accepted: letters, digits"),
    ],
)
def test_what_cannot_be_looked_up(world: tuple[Run, dict[str, Any]], name: str, settings: str, error: type, message: str) -> None:
    """A wrong name, or a setting that decided what the run made, is one line."""
    with pytest.raises(error, match=re.escape(message)):
        _looked_up(world[0], settings, name)


def test_a_sweep_is_shared(world: tuple[Run, dict[str, Any]]) -> None:
    """Workers measure all points between them; the step that chooses samples none again, and its table is that of one worker alone."""
    run, _ = world
    wide = {"tune": {"guidance_scales": [1.0, 1.5, 2.0], "survivors": 1}}
    found = _looked_up(run, json.dumps(wide), accepted="tune")
    configured = {"snapshot": found["snapshot"], "generator": found["generator"], "code": found["code"], "settings": found["tune_settings"]}
    workers = run.call(plan_points, settings=found["tune_settings"], num_workers=9)
    assert workers == ["0/3", "1/3", "2/3"]
    points = run.root / "volume/.gda/points"
    sampled = [len(list(points.glob("*.safetensors")))]
    for worker in workers:
        message = run.call(tune_points, worker=worker, resources="", **configured)
        assert "measured 1 of 3 points" in message
        sampled.append(len(list(points.glob("*.safetensors"))))
    assert sampled[0] == sampled[1] < sampled[2] < sampled[3], "the run has sampled the first point; each other worker samples one"
    chosen = run.call(tune, step="tune", measured=workers, **configured)
    assert len(list(points.glob("*.safetensors"))) == sampled[-1]
    settings = read_document(_folder(chosen) / "settings.json", Settings)
    assert [point.guidance_scale for point in settings.points] == [1.0, 1.5, 2.0]
    alone = run.call(tune, step="tune", measured=[], **(configured | {"code": "another"}))
    assert parse_reference(alone, role="t").digest == parse_reference(chosen, role="t").digest


def _looked_up(run: Run, settings: str = "{}", name: str = "run-1", accepted: str = "evaluate promote ratio") -> dict[str, Any]:
    names = [key for key, spec in look_up.component_spec.outputs.items() if key != "summary"]
    return dict(zip(names, run.call(look_up, run=name, settings=settings, accepted=accepted, resources=""), strict=True))


def test_a_job_samples_the_same_set(world: tuple[Run, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pods of an Indexed Job, here processes that run its very command, sample what the workers of the pipeline sample."""
    run, have = world
    with FakeKubernetes() as kube:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig(run.root / "kubeconfig")))
        pods = Pods(kube)
        request = {
            "snapshot": have["snapshot"],
            "generator": have["generator"],
            "tuning": have["tuning"],
            "settings": have["configured"]["sample"],
            "workers": 2,
            "image": IMAGE,
            "job": "{}",
            "code": "code of the job",
            "resources": "",
            "task_config": task_config(run.root / "volume"),
        }
        sampled = run.call(sample_job, **request)
    assert run.call(sample_job, **request) == sampled, "a finished step needs no cluster"
    assert pods.codes == [0, 0]
    assert parse_reference(sampled, role="t").digest == parse_reference(have["synthetic"], role="t").digest
    record = read_document(_folder(sampled).parents[1] / "step.json", StepRecord)
    assert record.metrics["images"] == 12
    assert record.summary.endswith("is up to date"), "the last worker published the set; the step only found it"

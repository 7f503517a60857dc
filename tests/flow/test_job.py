"""The whole job by `dvc repro`: what it writes, what re-runs when, and that other tools read it."""

import json
import re
import shutil

import pytest
from flow_job import COMPARED as NAMES
from trees import tree

from gda.artifacts.decision import Decision
from gda.artifacts.document import read_document
from gda.artifacts.evaluation import Metrics
from gda.artifacts.tuning import Settings
from gda.artifacts.verdict import Verdict
from gda.config.arm import Arm
from gda.config.load import load_config
from gda.flow import ARM_SETS, CLASSIFIERS, GRAPH, arm_inputs

COMPARED = tuple(map(Arm, NAMES))


def _stage(name: str) -> str:
    return name.split("@")[0]


def test_every_node_ran_once(job):
    """All stages run, the classifiers once per arm, with a folder per seed."""
    assert {_stage(name) for name in job.first} == {node.name for node in GRAPH} | {"inputs", "arms"}
    assert {role for arm in COMPARED for role in arm_inputs(arm)} == set(ARM_SETS), "every set that is made for arms is used"
    assert sorted(name.removeprefix("classify@") for name in job.first if name.startswith("classify@")) == sorted(COMPARED)
    folders = {
        path.parent.relative_to(job.folder / CLASSIFIERS).as_posix() for path in job.folder.glob(f"{CLASSIFIERS}/*/*/classifier.json")
    }
    assert folders == {f"{arm}/{seed}" for arm in COMPARED for seed in (range(2) if arm.data.compared_by_seed else range(1))}


def test_metrics_json_has_what_others_rely_on(job):
    """Arms by seed, CAS, and for every arm but real a gain with interval, p-value and seeds."""
    raw = json.loads((job.folder / "reports/evaluation/metrics.json").read_text())
    metrics = read_document(job.folder / "reports/evaluation/metrics.json", Metrics)
    assert set(raw["arms"]) == set(COMPARED)
    assert [len(raw["arms"][arm]["top1"]) for arm in ("real", "real+synthetic", "synthetic")] == [2, 2, 1]
    assert set(raw["gain"]) == set(COMPARED) - {"real"}
    for gain in raw["gain"].values():
        assert {"mean", "ci95", "p_value", "seeds"} <= gain.keys()
        assert gain["ci95"][0] <= gain["mean"] <= gain["ci95"][1]
    assert raw["cas"] == pytest.approx(sum(raw["arms"]["synthetic"]["top1"]) / 1)
    assert metrics.num_test == 3500
    differences = [m - r for m, r in zip(raw["arms"]["real+synthetic"]["top1"], raw["arms"]["real"]["top1"], strict=True)]
    assert raw["gain"]["real+synthetic"]["mean"] == pytest.approx(sum(differences) / 2)


def test_the_other_documents_read_back(job):
    """Verdict, tuned settings and decision are valid and agree about digests."""
    verdict = read_document(job.folder / "reports/validation/verdict.json", Verdict)
    settings = read_document(job.folder / "reports/tuning/settings.json", Settings)
    decision = read_document(job.folder / "reports/promotion/decision.json", Decision)
    generator = json.loads((job.folder / "models/generator/generator.json").read_text())
    assert settings.generator_digest == generator["digest"]
    assert verdict.real_digest == settings.snapshot_digest == json.loads((job.folder / "data/real/snapshot.json").read_text())["digest"]
    assert not decision.promoted, "four training steps on tiny classifiers have no provable gain"
    assert decision.reasons


def test_the_report_stands_alone(job):
    """One HTML file that loads nothing from anywhere, with its pictures inside and PNG plots next to it."""
    html = (job.folder / "reports/evaluation/report.html").read_text()
    assert not re.search(r"""(src|href)=["']?https?://""", html)
    assert html.count("data:image/png;base64,") >= 4
    assert len(list((job.folder / "reports/evaluation").glob("*.png"))) >= 4


def test_other_tools_read_the_outputs(job):
    """WebDataset reads the shards, diffusers the generator, timm the classifier."""
    import timm
    import torch
    import webdataset
    from diffusers import IFPipeline, IFSuperResolutionPipeline

    index = json.loads((job.folder / "data/synthetic/snapshot.json").read_text())
    shards = [str(job.folder / "data/synthetic" / shard["name"]) for shard in index["shards"]]
    images = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8").to_tuple("png", "cls", "json"))
    assert len(images) == 100
    assert images[0][0].shape == (28, 28, 3)
    assert sorted({label for _, label, _ in images}) == list(range(10))
    assert {"seed", "prompt", "generator_digest"} <= images[0][2].keys()
    base = IFPipeline.from_pretrained(job.folder / "models/generator/base")
    upscale = IFSuperResolutionPipeline.from_pretrained(job.folder / "models/generator/super_resolution")
    for pipe in (base, upscale):
        pipe.set_progress_bar_config(disable=True)
    states, empty = base.encode_prompt("3")
    small = base(prompt_embeds=states, negative_prompt_embeds=empty, num_inference_steps=2, output_type="pt").images
    large = upscale(image=small, prompt_embeds=states, negative_prompt_embeds=empty, num_inference_steps=2, noise_level=0).images
    assert large[0].size == (28, 28)
    model = timm.create_model(f"local-dir:{job.folder}/models/classifiers/real+synthetic/0", pretrained=True)
    assert model.eval()(torch.zeros(2, 3, 28, 28)).shape == (2, 10)


def test_mlflow_shows_runs_data_sets_and_the_registered_model(job):
    """Every stage is a run with its data sets; the candidate is a registered version with an alias."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{job.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("gda")
    runs = client.search_runs([experiment.experiment_id], max_results=200)
    stages = {run.data.tags.get("gda.stage") for run in runs}
    assert {"snapshot", "finetune", "tune", "sample", "validate", "classify", "evaluate"} <= stages
    finetune = next(run for run in runs if run.data.tags.get("gda.stage") == "finetune")
    assert "base_loss" in finetune.data.metrics
    digest = json.loads((job.folder / "data/real/snapshot.json").read_text())["digest"]
    assert {d.dataset.digest for d in finetune.inputs.dataset_inputs} == {digest[:36]}
    evaluate = next(run for run in runs if run.data.tags.get("gda.stage") == "evaluate")
    assert "report.html" in {file.path for file in client.list_artifacts(evaluate.info.run_id)}
    version = client.get_model_version_by_alias("gda-classifier", "challenger")
    assert version.tags


def test_nothing_changed_runs_nothing(job):
    """A second `dvc repro` checks the external inputs, queries the registry, and finds everything else up to date."""
    assert job.repro() == ["inputs", "promote"]


def _trained(job, run):
    """The classifiers (ARM-SEED) that `run` makes: each leaves a record of its time."""

    def times():
        return {path.stem.removeprefix("classify-"): path.stat().st_mtime_ns for path in (job.folder / ".gda/timings").glob("classify-*")}

    before = times()
    run()
    return {name for name, time in times().items() if before.get(name) != time}


def _alone(job, *stages):
    """Run these stages without those that they depend on."""
    return job.run("dvc", "repro", "--single-item", *stages)


def _all_seeds(job, *, of=COMPARED):
    config = load_config(job.folder / "params.yaml").classify
    return {f"{arm}-{seed}" for arm in of for seed in config.seeds_of(arm)}


def _tested(job, arm):
    return len(json.loads((job.folder / "reports/evaluation/metrics.json").read_text())["arms"][arm]["top1"])


def _changed(job, *stages):
    """Stages that DVC reports as changed, of those named or of all, except those that always run."""
    return json.loads(job.run("dvc", "status", "--json", *stages).stdout).keys() - {"inputs", "promote"}


def test_one_more_seed_trains_that_seed_alone(job):
    """Every arm that has it trains one classifier, and the evaluation has it; without it again its folders go, and nothing is trained."""
    stages, before = [*(f"classify@{arm}" for arm in COMPARED), "evaluate"], _all_seeds(job)
    job.set("classify", seeds=[0, 1, 2])
    assert set(stages) <= _changed(job)
    trained = _trained(job, lambda: _alone(job, *stages))
    assert trained == _all_seeds(job) - before == {f"{arm}-2" for arm in COMPARED if arm.data.compared_by_seed}
    assert _tested(job, "real") == 3
    assert not _changed(job) & set(stages)
    job.set("classify", seeds=[0, 1])
    assert _trained(job, job.repro) == set()
    assert not list(job.folder.glob(f"{CLASSIFIERS}/*/2"))
    assert _tested(job, "real") == 2
    assert not _changed(job)
    assert job.repro() == ["inputs", "promote"]


def test_another_setting_trains_every_seed(job):
    """The negative control of the test before: classifiers are made as the settings say, and the way back trains nothing."""
    arms = (Arm.REAL, Arm.MIXED)
    stages = [f"classify@{arm}" for arm in arms]
    params = job.folder / "params.yaml"
    was = params.read_text()  # DVC compares what is written, so a default that is spelt out is a change
    job.set("classify", learning_rate=1e-3)
    assert _trained(job, lambda: _alone(job, *stages)) == _all_seeds(job, of=arms)
    params.write_text(was)
    assert _trained(job, lambda: _alone(job, *stages)) == set()
    assert not _changed(job)


def test_an_arm_that_is_gone_is_restored_by_dvc_or_made_again(job):
    """Protects a fresh clone: from DVC's cache nothing is trained, and without cache and work folder the arm is made as the first time."""
    real = job.folder / CLASSIFIERS / "real"
    before = tree(real)
    shutil.rmtree(real)
    assert _trained(job, lambda: job.run("dvc", "checkout", f"{CLASSIFIERS}/real")) == set()
    assert (tree(real), _changed(job)) == (before, set())
    shutil.rmtree(real)
    kept = {name: job.folder / name for name in (".dvc/cache", ".gda/replaced")}
    for path in kept.values():
        path.rename(job.folder / f"{path.name}-away")
    try:
        assert _trained(job, lambda: _alone(job, "classify@real")) == _all_seeds(job, of=(Arm.REAL,))
    finally:
        for path in kept.values():
            shutil.copytree(job.folder / f"{path.name}-away", path, dirs_exist_ok=True)
            shutil.rmtree(job.folder / f"{path.name}-away")
    assert (tree(real), _changed(job)) == (before, set())


@pytest.fixture(scope="module")
def ran_again(job):
    """The stages that ran with another guidance scale, and with a gate that cannot hold."""
    job.set("sample", guidance_scale=3.0)
    job.set("validate", min_label_agreement=1.0, min_class_agreement=1.0)
    return job.repro()


def test_guidance_re_runs_from_sample_on(ran_again):
    """Changing `sample.guidance_scale` runs sampling and what depends on it, and nothing before or next to it."""
    assert {_stage(name) for name in ran_again} <= {
        "inputs",
        "sample",
        "sample_zero_shot",
        "sample_img2img",
        "validate",
        "arms",
        "classify",
        "evaluate",
        "promote",
    }
    assert "sample" in ran_again
    again = {name.removeprefix("classify@") for name in ran_again if name.startswith("classify")}
    assert again == {arm for arm in COMPARED if arm.data.synthetic}


def test_a_refused_set_is_a_result(job, ran_again):
    """With a gate that cannot hold, arms that needed the set are skipped, and the real arms and the report are there."""
    verdict = read_document(job.folder / "reports/validation/verdict.json", Verdict)
    metrics = read_document(job.folder / "reports/evaluation/metrics.json", Metrics)
    decision = read_document(job.folder / "reports/promotion/decision.json", Decision)
    assert not verdict.passed
    for arm in (Arm.SYNTHETIC, Arm.MIXED, Arm.TARGETED, Arm.LAST_LAYER):
        assert metrics.arms[arm].skipped.startswith("because the synthetic set was refused")
    assert metrics.arms[Arm.REAL].mean is not None
    assert metrics.arms[Arm.ZERO_SHOT].mean is not None
    assert metrics.cas is None
    assert not decision.promoted
    assert "skipped" in job.run("gda", "summary").stdout


def test_snapshot_digest_is_verified(job):
    """`gda verify` passes both snapshots, and names the shard when a bit flips."""
    job.run("gda", "verify", "data/synthetic")
    shard = next((job.folder / "data/zero_shot").glob("train-*.tar"))
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(bytes(data))
    result = job.run("gda", "verify", "data/zero_shot", code=3)
    assert shard.name in result.stdout + result.stderr

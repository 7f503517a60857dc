"""A generator is registered once, whatever interrupts it, and what MLflow gives back loads with diffusers alone."""

import json
import shutil
import threading
import time
from pathlib import Path

import mlflow
import pytest
import torch
from diffusers import DiffusionPipeline
from generator_runs import DIGEST, NAME, SNAPSHOT, STEPS, generator_card, generator_run, write_generator
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from PIL import Image
from tiny_pipelines import build_tiny_pipeline

from gda.artifacts.document import dump_document
from gda.tracking import connect, flush, keep


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return build_tiny_pipeline("sd1", tmp_path_factory.mktemp("tiny") / "sd1")


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """MLflow's tables without content: to make them takes longer than most tests."""
    path = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}/mlflow.db")
        connect().search_experiments()
    return path / "mlflow.db"


@pytest.fixture
def folder(tmp_path, monkeypatch, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tests")
    monkeypatch.chdir(tmp_path)  # the artifacts of a SQLite store go next to it
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield tmp_path / "unlogged"
    mlflow.set_tracking_uri(None)


@pytest.fixture
def generator(tmp_path):
    return write_generator(tmp_path / "generator")


def _log(path: Path, folder: Path, **changes):
    keep(generator_run(path, **changes), folder)
    return flush(folder)


def _logged() -> list:
    client = connect()
    return client.search_runs([client.get_experiment_by_name("tests").experiment_id])


def _versions() -> list:
    return connect().search_model_versions(f"name = '{NAME}'")


def _downloaded(version: str = "1") -> Path:
    return Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/{version}"))


def _fail_once(monkeypatch, method: str, *, after: bool):
    """Let the first call of an MLflow client's method be the last thing its process does, before or after it has worked."""
    works = getattr(MlflowClient, method)

    def dying(self, *args, **kwargs):
        monkeypatch.setattr(MlflowClient, method, works)
        if after:
            works(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, method, dying)


def test_a_version_says_what_it_is_and_loads_with_diffusers_alone(folder, tmp_path, weights):
    """What a user finds in the registry: run, data set, source, tags; and a directory that needs neither gda nor MLflow."""
    (weights / "generator.json").write_bytes(dump_document(generator_card()))
    for step in STEPS:
        Image.new("RGB", (8, 8)).save(weights / f"step-{step}.png")
    assert _log(weights, folder) is None
    (version,), (run,) = _versions(), _logged()
    assert version.run_id == run.info.run_id
    assert version.source == f"{run.info.artifact_uri}/generator"
    assert version.description == "two classes"
    assert version.tags == {
        "gda.digest": DIGEST,
        "gda.family": "latent_unet",
        "gda.licence": "OpenRAIL-M",
        "gda.snapshot": SNAPSHOT,
        "gda.base_digest": "b" * 64,
    }
    assert version.aliases == []
    assert run.data.tags["gda.model"] == f"models:/{NAME}/1"
    assert run.inputs.dataset_inputs[0].dataset.digest == SNAPSHOT[:36]
    ours, other = (DiffusionPipeline.from_pretrained(path, local_files_only=True).unet.state_dict() for path in (weights, _downloaded()))
    assert ours.keys() == other.keys()
    assert all(torch.equal(ours[key], other[key]) for key in ours)


def test_one_content_is_registered_once_however_often_it_is_logged(folder, generator):
    """The same result reported again adds nothing; the same weights from another run point to the version that is there."""
    for name in ("finetune generator", "finetune generator", "finetune copy"):
        assert _log(generator, folder, name=name) is None
    (version,), runs = _versions(), _logged()
    assert len(runs) == 2
    assert {run.data.tags["gda.model"] for run in runs} == {f"models:/{NAME}/1"}
    (copy,) = (run for run in runs if run.info.run_id != version.run_id)
    assert "generator" not in {info.path for info in connect().list_artifacts(copy.info.run_id)}


def test_another_content_is_the_next_version(folder, generator, tmp_path):
    """Two generators under one name are two versions, each with its own files."""
    other = write_generator(tmp_path / "other", "f" * 64)
    assert _log(generator, folder) is None
    assert _log(other, folder, digest="f" * 64) is None
    assert {v.version: v.tags["gda.digest"] for v in _versions()} == {1: DIGEST, 2: "f" * 64}
    assert (_downloaded("2") / "unet" / "weights").read_bytes().endswith(b"f" * 64)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "method",
    [
        "create_run",
        "log_batch",
        "log_inputs",
        "log_artifact",
        "log_image",
        "set_terminated",
        "create_registered_model",
        "log_artifacts",
        "set_tag",
        "create_model_version",
    ],
)
def test_an_interrupted_logging_is_completed_by_the_next(folder, generator, monkeypatch, method, after):
    """Wherever the first attempt is killed, the second ends with one complete run and one version."""
    keep(generator_run(generator), folder)
    _fail_once(monkeypatch, method, after=after)
    with pytest.raises(KeyboardInterrupt):
        flush(folder)
    assert len(list(folder.glob("*.json"))) == 1
    assert flush(folder) is None
    (run,), (version,) = _logged(), _versions()
    client = connect()
    assert run.info.status == "FINISHED"
    assert run.data.params == {"steps": "2"}
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "base_loss")] == [(1, 2.0), (2, 1.0)]
    assert len(run.inputs.dataset_inputs) == 1
    assert _steps(run) == {"images/sampled_ 7_a+step+10": 2, "images/sampled_ 7_a+step+20": 2}
    assert (version.version, version.run_id) == (1, run.info.run_id)
    assert run.data.tags["gda.model"] == f"models:/{NAME}/1"
    assert (_downloaded() / "unet" / "weights").read_bytes().endswith(DIGEST.encode())


def test_an_upload_that_is_whole_needs_its_folder_no_more(folder, generator, monkeypatch, tmp_path):
    """Killed between upload and version: the version is made from what MLflow has, though the folder was deleted meanwhile."""
    keep(generator_run(generator), folder)
    _fail_once(monkeypatch, "create_model_version", after=False)
    with pytest.raises(KeyboardInterrupt):
        flush(folder)
    generator.rename(tmp_path / "deleted")
    assert flush(folder) is None
    assert len(_versions()) == 1
    assert (_downloaded() / "generator.json").is_file()


def _steps(run) -> dict[str, int]:
    """The images of `run` as MLflow's image grid groups them, with the number of their files."""
    paths = [info.path.split("+timestamp+")[0] for info in connect().list_artifacts(run.info.run_id, "images")]
    return {path: paths.count(path) for path in sorted(paths)}


def test_images_are_a_series_over_steps(folder, generator):
    """MLflow shows a slider of images only for its own file names and tag; the picture is the one that was sampled."""
    assert _log(generator, folder) is None
    (run,) = _logged()
    assert run.data.tags["mlflow.loggedImages"] == "True"
    assert list(_steps(run)) == ["images/sampled_ 7_a+step+10", "images/sampled_ 7_a+step+20"]
    (sampled,) = (i.path for i in connect().list_artifacts(run.info.run_id, "images") if "+step+20+" in i.path and i.path.endswith(".png"))
    with Image.open(connect().download_artifacts(run.info.run_id, sampled)) as image:
        assert image.getpixel((0, 0)) == (20, 0, 0)


def test_a_generator_is_kept_while_the_server_is_away(folder, generator, monkeypatch):
    """An unreachable server loses no registration; the record holds paths that are good in any working folder."""
    here = f"sqlite:///{folder.parent}/mlflow.db"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    keep(generator_run(Path("generator")), folder)
    assert "1 runs are kept" in (flush(folder) or "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert flush(folder) is None
    (run,) = _logged()
    assert len(_versions()) == 1
    assert len(_steps(run)) == 2


@pytest.mark.parametrize(
    ("loss", "reason"), [("deleted", " is gone"), ("replaced", " holds another"), ("card deleted", "/generator.json: not found")]
)
def test_a_generator_that_is_gone_costs_the_version_alone(folder, generator, tmp_path, loss, reason):
    """The run is logged and forgotten, the sentence names the model, and no other content is registered in its stead."""
    keep(generator_run(generator), folder)
    if loss == "card deleted":
        (generator / "generator.json").unlink()
    else:
        generator.rename(tmp_path / "moved")
    if loss == "replaced":
        write_generator(generator, "f" * 64)
    message = flush(folder) or ""
    assert f"{NAME}: not registered, {generator}{reason}" in message
    assert ("2 images were gone" in message) == (loss == "deleted")
    assert _versions() == []
    (run,) = _logged()
    assert run.info.status == "FINISHED"
    assert run.data.metrics["loss"] == 0.5
    assert flush(folder) is None


def test_a_generator_made_again_is_registered_for_the_run_that_lacked_it(folder, generator, tmp_path):
    """A run logged without its generator gets its version when the same result is there again."""
    keep(generator_run(generator), folder)
    generator.rename(tmp_path / "moved")
    assert flush(folder) is not None
    (tmp_path / "moved").rename(generator)
    assert _log(generator, folder) is None
    assert len(_logged()) == 1
    assert (_downloaded() / "unet" / "weights").is_file()


def test_no_name_registers_nothing(folder, generator):
    """`finetune.model_name: null` logs the run and uploads no weights."""
    assert _log(generator, folder, model=None) is None
    (run,) = _logged()
    assert connect().search_registered_models() == []
    assert {info.path for info in connect().list_artifacts(run.info.run_id)} == {"generator.json", "images"}


def test_a_refused_name_keeps_its_own_record_alone(folder, generator, tmp_path):
    """A name that MLflow does not take is reported with its reason, uploads nothing, and does not hold up the runs after it."""
    keep(generator_run(generator, model="not/a/name"), folder)
    other = write_generator(tmp_path / "other", "f" * 64)
    message = _log(other, folder, digest="f" * 64) or ""
    assert "not/a/name" in message
    assert str(folder) in message
    assert [v.tags["gda.digest"] for v in _versions()] == ["f" * 64]
    assert len(list(folder.glob("*.json"))) == 1
    uploads = [i.path for run in _logged() for i in connect().list_artifacts(run.info.run_id) if i.is_dir and i.path == "generator"]
    assert len(uploads) == 1


def test_records_of_earlier_versions_are_still_logged(folder, generator):
    """A record that was kept before generators and images were logged has neither field."""
    path = keep(generator_run(generator), folder)
    content = json.loads(path.read_text())
    del content["model"], content["images"]
    path.write_text(json.dumps(content))
    assert flush(folder) is None
    assert len(_logged()) == 1


def test_a_broken_record_does_not_hold_up_the_others(folder, generator):
    """What is no record is named and left; the run next to it is logged."""
    keep(generator_run(generator), folder)
    (folder / "broken.json").write_text("{")
    assert "broken.json: not a kept run" in (flush(folder) or "")
    assert len(_versions()) == 1


def test_two_processes_at_once_log_a_run_once(folder, generator, monkeypatch):
    """Stages that end together wait for each other instead of both logging what they find."""
    works = MlflowClient.create_run

    def slow(self, *args, **kwargs):
        time.sleep(0.5)
        return works(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", slow)
    keep(generator_run(generator), folder)
    connect()
    both = [threading.Thread(target=flush, args=(folder,)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(_logged()) == len(_versions()) == 1


def test_a_proxied_upload_may_take_longer_than_a_question(folder, generator, monkeypatch):
    """The short patience with which a server is looked for would cut off the upload of a large file."""
    patience = []
    works = MlflowClient.log_artifacts

    def timed(self, *args, **kwargs):
        patience.append(MLFLOW_HTTP_REQUEST_TIMEOUT.get())
        return works(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_artifacts", timed)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    assert _log(generator, folder) is None
    assert patience == [1800]
    assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 20


def test_an_artifact_store_that_fails_in_its_own_way_costs_no_result(folder, generator, monkeypatch):
    """The clouds' libraries raise errors that are neither MLflow's nor the system's; the run is kept, and completed next time."""
    works = MlflowClient.log_artifacts

    def failing(self, *args, **kwargs):
        raise type("NoCredentialsError", (Exception,), {})("unable to locate credentials")

    monkeypatch.setattr(MlflowClient, "log_artifacts", failing)
    assert "NoCredentialsError" in (_log(generator, folder) or "")
    monkeypatch.setattr(MlflowClient, "log_artifacts", works)
    assert flush(folder) is None
    assert len(_logged()) == len(_versions()) == 1

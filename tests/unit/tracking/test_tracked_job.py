"""One tree in MLflow: the job's run, its stages' runs below it, with the times at which things happened."""

import json
import shutil
import time

import pytest

from gda.artifacts.outcome import Outcome
from gda.cli.main import main
from gda.tracking import connect, ensure_experiment, flush
from gda.tracking.job import StepTimes, TrackedJob, current_job, step_times
from gda.tracking.replay import _times
from gda.tracking.runs import keep, read_kept, record, record_job
from gda.tracking.sqlite import ensure_database

PARENT = "mlflow.parentRunId"


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database of MLflow without runs, which takes seconds to make."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    ensure_database(f"sqlite:///{path}")
    return path


@pytest.fixture
def place(tmp_path, monkeypatch, empty):
    """A folder with a database of its own, outside any job."""
    shutil.copy(empty, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / ".gda"))
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "GDA_JOB"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def logged():
    """Every run by its name."""
    client = connect()
    found = client.search_runs([ensure_experiment(client)])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def within(job, monkeypatch):
    """As a process that the job started."""
    for name, value in job.environment().items():
        monkeypatch.setenv(name, value)


def test_stages_lie_below_their_job_with_true_times(place, small_images, monkeypatch):
    """A run of 0 ms among 43 flat ones says nothing: the tree and the durations do."""
    job = TrackedJob.begin("gda run photos")
    within(job, monkeypatch)
    before = time.time()
    for out in ("real", "other"):
        assert main(["snapshot", str(small_images), "--out", out, "--quiet"]) == 0
    monkeypatch.delenv("GDA_JOB")
    keep(record_job(job, metrics={"gain": 0.034}, files=(), failed=False), place / ".gda/unlogged")
    assert main(["doctor"]) == 0
    runs = logged()
    parent = runs.pop("gda run photos")
    assert {run.data.tags[PARENT] for run in runs.values()} == {parent.info.run_id}
    assert set(runs) == {"snapshot real", "snapshot other"}
    assert (parent.info.status, parent.data.metrics) == ("FINISHED", {"gain": 0.034})
    for run in (parent, *runs.values()):
        assert 0 < run.info.end_time - run.info.start_time < 60_000
        assert run.info.end_time > 1000 * before - 1000
    assert parent.info.start_time <= min(run.info.start_time for run in runs.values())


def test_a_job_that_failed_says_so(place, small_images, monkeypatch):
    """A job whose stage failed is no finished one; logging it again changes nothing."""
    job = TrackedJob.begin("gda run photos")
    within(job, monkeypatch)
    assert main(["snapshot", str(small_images), "--out", "real", "--quiet"]) == 0
    ended = record_job(job, metrics={}, files=(), failed=True)
    for _ in range(2):
        keep(ended, place / ".gda/unlogged")
        assert flush(place / ".gda/unlogged") is None
    assert logged()["gda run photos"].info.status == "FAILED"


def test_a_server_that_was_away_gets_one_tree(place, small_images, monkeypatch, capsys):
    """Runs that were kept are logged below one parent, however many processes kept them."""
    job, here = TrackedJob.begin("gda run photos"), f"sqlite:///{place}/mlflow.db"
    within(job, monkeypatch)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for out in ("real", "other"):
        assert main(["snapshot", str(small_images), "--out", out, "--quiet"]) == 0
    assert "2 runs are kept" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    monkeypatch.delenv("GDA_JOB")
    for _ in range(2):
        assert main(["doctor"]) == 0
    runs = logged()
    assert set(runs) == {"gda run photos", "snapshot real", "snapshot other"}
    parents = {run.data.tags.get(PARENT) for run in runs.values()}
    assert parents == {None, runs["gda run photos"].info.run_id}


def test_an_injected_run_is_the_parent(place, small_images, monkeypatch):
    """Whoever runs a stage inside a run of their own finds it there."""
    client = connect()
    theirs = client.create_run(ensure_experiment(client), run_name="theirs")
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs.info.run_id)
    assert main(["snapshot", str(small_images), "--out", "real", "--quiet"]) == 0
    assert logged()["snapshot real"].data.tags[PARENT] == theirs.info.run_id


@pytest.mark.parametrize("value", [None, "", "no json", "[1]", '{"other": 1}'])
def test_a_process_alone_belongs_to_no_job(place, monkeypatch, value):
    """A variable that is damaged costs the tree, and no stage."""
    if value is not None:
        monkeypatch.setenv("GDA_JOB", value)
    assert current_job() is None


def test_points_of_a_curve_have_the_times_of_their_steps(place, small_images, monkeypatch):
    """The axis of relative time shows when each step was taken, before and after a run is kept as a file."""
    times = StepTimes()
    clock = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr("gda.tracking.job.time.time", lambda: next(clock))
    for step in (1, 11, 31):
        times.take({"count": 1, "loss": 0.5, "series": "base", "step": step})
    times.take({"count": 1})
    curves = {"base_loss": [(1, 0.9), (6, 0.8), (31, 0.1)], "other": [(1, 0.5)]}
    outcome = Outcome(output=place, digest="d", summary="", curves=curves, series={"base_loss": "base"})
    run = record("finetune", "finetune g", outcome, params={}, datasets={}, ended=140.0, began=120.0, times=times)
    run = read_kept(keep(run, place / "kept"))
    assert run.began == 100.0, "training began before its own command: another one's command trained it"
    assert _times(run, "base_loss") == [100_000, 105_000, 130_000]
    assert _times(run, "other") == [140_000]


def test_times_are_thinned(monkeypatch):
    """A million steps would be a file of many megabytes: one time each half second, and the last."""
    times = StepTimes()
    now = [0.0]
    monkeypatch.setattr("gda.tracking.job.time.time", lambda: now[0])
    for step in range(1, 10_001):
        now[0] += 0.01
        times.take({"count": 1, "series": "base", "step": step})
    (points,) = times.series.values()
    assert len(points) < 250
    assert points[0][0] == 1
    assert points[-1] == (10_000, pytest.approx(100.0))


def test_steps_of_this_process_are_timed():
    """What the bars see is what is timed."""
    from gda.runtime.progress import Bar, tick

    with step_times() as times, Bar(3, "work", shown=False) as bar:
        for step in (1, 2, 3):
            tick(loss=0.5, series="seed 4", step=step)
        deadline = time.monotonic() + 5
        while bar.done < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert times.series["seed 4"][0][0] == 1


def test_the_variable_carries_the_whole_job():
    """What the parent process began is what its stages belong to."""
    job = TrackedJob.begin("gda run photos")
    (value,) = job.environment().values()
    assert TrackedJob(**json.loads(value)) == job
    assert job.key != TrackedJob.begin("gda run photos").key

"""Uploading, running and scheduling through the SDK's real client, against a server on loopback that keeps what it is sent."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_kfp import FakeKfp

from gda.errors import UsageError
from pipelines.cli import main
from pipelines.compiling import COMPILED
from pipelines.documents import read_compiled
from pipelines.parameters import read_parameters

AUGMENT = COMPILED / "augment.yaml"


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKfp]:
    monkeypatch.delenv("KF_PIPELINES_SA_TOKEN_PATH", raising=False)
    with FakeKfp() as server:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
        yield server


@pytest.fixture
def uploaded(kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> FakeKfp:
    assert main(["upload", "augment", "--version", "v1"]) == 0
    capsys.readouterr()
    return kfp


def test_upload_makes_a_pipeline_and_a_version(kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    """One pipeline of the name, one version of it, and in that the compiled file with its Kubernetes part."""
    assert main(["upload", "augment", "--version", "v1"]) == 0
    assert "augment version v1: uploaded" in capsys.readouterr().out
    (pipeline,) = kfp.pipelines.values()
    (version,) = kfp.versions.values()
    assert pipeline["display_name"] == "augment"
    assert pipeline["description"].startswith("Fine-tune a diffusion model")
    assert (version["display_name"], version["pipeline_id"]) == ("v1", pipeline["pipeline_id"])
    assert (version["pipeline_spec"]["pipeline_spec"], version["pipeline_spec"]["platform_spec"]) == read_compiled(AUGMENT)


def test_the_same_upload_twice_is_once(uploaded: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipeline that runs in CI uploads the same version again and again."""
    assert main(["upload", "augment", "--version", "v1"]) == 0
    assert "is there already" in capsys.readouterr().out
    assert main(["upload", "augment", "--version", "v2"]) == 0
    assert main(["upload", "augment", "--version", "v1"]) == 0
    assert len(uploaded.pipelines) == 1
    assert [version["display_name"] for version in uploaded.versions.values()] == ["v1", "v2"]


def test_a_version_is_never_written_over(uploaded: FakeKfp, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other content under a name that is taken is refused."""
    other = tmp_path / "other.yaml"
    other.write_text(AUGMENT.read_text().replace("demo://mnist", "demo://digits"))
    assert main(["upload", "augment", "--version", "v1", "--file", str(other)]) == 2
    assert "augment version v1: is there with other content; give another --version" in capsys.readouterr().err
    assert len(uploaded.versions) == 1


def test_a_run_names_both_ids_and_typed_parameters(uploaded: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    """What the server gets: pipeline and version, parameters in their types, the account, the experiment."""
    words = ["--param", "images_per_class=50", "--param", "guidance_scale=1.5", "--param", "data=/data/birds"]
    assert main(["run", "augment", *words, "--service-account", "gda-run", "--experiment", "birds", "--title", "first"]) == 0
    (run,) = uploaded.runs.values()
    (version,) = uploaded.versions.values()
    assert run["pipeline_version_reference"] == {
        "pipeline_id": version["pipeline_id"],
        "pipeline_version_id": version["pipeline_version_id"],
    }
    assert run["runtime_config"]["parameters"] == {"images_per_class": 50, "guidance_scale": 1.5, "data": "/data/birds"}
    assert (run["service_account"], run["display_name"]) == ("gda-run", "first")
    assert uploaded.experiments[run["experiment_id"]]["display_name"] == "birds"
    message = capsys.readouterr().out
    assert f"run {run['run_id']} started" in message
    assert f"python -m pipelines run promote --param run={run['run_id']}" in message, "how a person goes on from this run"


def test_the_newest_version_runs_unless_one_is_named(uploaded: FakeKfp) -> None:
    """Pages of versions are turned to find a named one."""
    for name in ("v2", "v3"):
        assert main(["upload", "augment", "--version", name]) == 0
    assert main(["run", "augment"]) == 0
    assert main(["run", "augment", "--version", "v1"]) == 0
    named = [uploaded.versions[run["pipeline_version_reference"]["pipeline_version_id"]]["display_name"] for run in uploaded.runs.values()]
    assert named == ["v3", "v1"]


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1)])
def test_waiting_shows_how_a_run_ended(uploaded: FakeKfp, state: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 for success alone."""
    uploaded.end_state = state
    assert main(["run", "augment", "--wait", "--timeout", "5"]) == code
    assert state in capsys.readouterr().out


def test_a_run_that_takes_too_long_is_left(uploaded: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    """Waiting ends after its time; the run goes on."""
    uploaded.end_state = "RUNNING"
    assert main(["run", "augment", "--wait", "--timeout", "0"]) == 75
    assert "still running after 0 s" in capsys.readouterr().err


def test_a_schedule(uploaded: FakeKfp) -> None:
    """Cron with seconds, or an interval; a version is pinned, missed runs are not made up for unless requested."""
    assert main(["schedule", "augment", "--cron", "0 0 3 * * 1", "--param", "num_seeds=6"]) == 0
    assert main(["schedule", "augment", "--interval", "3600", "--catchup", "--max-concurrency", "2"]) == 0
    weekly, hourly = uploaded.schedules.values()
    assert weekly["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 1"
    assert (weekly["no_catchup"], str(weekly["max_concurrency"]), weekly["mode"]) == (True, "1", "ENABLE")
    assert weekly["runtime_config"]["parameters"] == {"num_seeds": 6}
    assert str(hourly["trigger"]["periodic_schedule"]["interval_second"]) == "3600"
    assert (hourly["no_catchup"], str(hourly["max_concurrency"])) == (False, "2")
    (version,) = uploaded.versions
    assert {s["pipeline_version_reference"]["pipeline_version_id"] for s in (weekly, hourly)} == {version}


def test_a_token_is_read_again(kfp: FakeKfp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of service accounts expire: the file is read for each request, and the server refuses an old one."""
    token = tmp_path / "token"
    token.write_text("first")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(token))
    kfp.token = "first"
    assert main(["upload", "augment", "--version", "v1"]) == 0
    token.write_text("second")
    kfp.token = "second"
    assert main(["run", "augment"]) == 0
    assert {"first", "second"} == set(kfp.tokens)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, 5, "this account may not list pipelines: the server answered 401"),
        (403, 5, "this account may not list pipelines"),
        (404, 5, "is this a Kubeflow Pipelines server of version 2?"),
        (503, 75, "list pipelines: the server answered 503"),
        (400, 2, "list pipelines: the server answered 400"),
    ],
)
def test_what_the_server_refuses_is_one_line(
    kfp: FakeKfp, status: int, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code and line tell what lacks: a right, a server of this kind, or only patience."""
    kfp.fail = [status]
    assert main(["upload", "augment", "--version", "v1"]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not kfp.versions


def test_a_server_that_is_away(kfp: FakeKfp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody listens there: try again."""
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:9")
    assert main(["upload", "augment", "--version", "v1"]) == 75
    assert "the server is away" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "augment", "--param", "images=5"], 2, "parameter images: there is none; accepted: alpha, base_model"),
        (["run", "augment", "--param", "num_seeds=6.5"], 2, "parameter num_seeds: 6.5; accepted: a whole number"),
        (["run", "augment", "--param", "num_seeds=six"], 2, "parameter num_seeds: 'six' is not JSON"),
        (["run", "augment", "--param", "guidance_scale=NaN"], 2, "parameter guidance_scale: 'NaN' is not JSON"),
        (["run", "augment", "--param", "guidance_scale=1e999"], 2, "parameter guidance_scale: inf; accepted: finite numbers"),
        (["run", "augment", "--param", "seed=9007199254740993"], 2, "parameter seed: 9007199254740993; accepted: whole numbers from -2^53"),
        (["run", "augment", "--param", 'tolerations=[{"a": 9007199254740993}]'], 2, "parameter tolerations: 9007199254740993; accepted"),
        (["run", "augment", "--param", "num_seeds"], 2, "--param num_seeds: accepted: NAME=VALUE"),
        (["run", "augment", "--param", "settings=" + "x" * 11_000], 2, "bytes as JSON; accepted: up to 10000"),
        (["run", "augment", "--version", "v9"], 2, "augment version v9: is not on the server"),
        (["run", "sweeps"], 2, "sweeps: is not on the server; python -m pipelines upload sweeps puts it there"),
        (["schedule", "augment", "--cron", "0 3 * * 1"], 2, "accepted: six fields"),
        (["schedule", "augment", "--interval", "5"], 2, "--interval 5: accepted: 60 seconds and more"),
        (["run", "augment", "--token-file", "/nowhere/token"], 5, "/nowhere/token: no such token file"),
    ],
)
def test_what_cannot_be_run_is_one_line(
    uploaded: FakeKfp, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is started; the line names the parameter or version, and what is accepted."""
    assert main(words) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not uploaded.runs
    assert not uploaded.schedules


def test_parameters_of_a_file(tmp_path: Path) -> None:
    """A JSON object, over which the command line's values go; a missing parameter without default is named."""
    spec = {
        "root": {
            "inputDefinitions": {
                "parameters": {"a": {"parameterType": "NUMBER_INTEGER"}, "b": {"parameterType": "STRING", "defaultValue": ""}}
            }
        }
    }
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"a": 1, "b": "x"}))
    assert read_parameters(["b=y"], file, spec) == {"a": 1, "b": "y"}
    with pytest.raises(UsageError, match="parameter a: must be given; it is a whole number"):
        read_parameters([], None, spec)
    file.write_text("[1]")
    with pytest.raises(UsageError, match="no JSON object of parameters"):
        read_parameters([], file, spec)
    file.write_text('{"a": Infinity}')
    with pytest.raises(UsageError, match="Infinity is no JSON"):
        read_parameters([], file, spec)
    assert read_parameters([f"a={2**53}"], None, spec) == {"a": 2**53}
    assert len(read_parameters(["a=1", "b=" + "é" * 4_900], None, spec)["b"]) == 4_900
    with pytest.raises(UsageError, match="parameter a: True; accepted: a whole number"):
        read_parameters(["a=true"], None, spec)

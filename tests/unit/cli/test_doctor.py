"""gda doctor: what this machine has, without a secret."""

import pytest

from gda.cli import doctor
from gda.cli.main import main
from gda.project.summaries import MachineSummary


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What is printed, by name."""
    return {line[:20].strip(): line[20:] for line in capsys.readouterr().out.splitlines()}


def test_it_names_what_a_job_needs(tmp_path, monkeypatch, capsys):
    """Packages, CPUs, memory, disk, GPU, caches and the tracking store; a database is not made by looking."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["doctor"]) == 0
    lines = found(capsys)
    names = {
        "python",
        "gda",
        "torch",
        "mlflow",
        "cpus",
        "memory",
        "free disk",
        "gpu",
        "cuda",
        "hub cache",
        "demo base",
        "inception",
        "tracking",
    }
    assert names <= lines.keys()
    assert lines["demo base"] == "present"
    assert lines["tracking"].endswith("no database yet, the first run makes it")
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_away_is_said_without_its_password(tmp_path, monkeypatch, capsys):
    """A job can run without it; the address is shown, the secret is not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["doctor"]) == 0
    text = found(capsys)["tracking"]
    assert "could not be reached at http://127.0.0.1:9" in text
    assert "s3cret" not in text


def test_a_gpu_is_named_and_little_disk_too(monkeypatch):
    """What decides about batch sizes and precision, and what ends a job after hours."""
    machine = MachineSummary(cpus=8, memory=64, disk=0.5, gpu="NVIDIA A100", gpu_memory=80, bf16=True)
    monkeypatch.setattr("gda.project.machine.look_at_machine", lambda: machine)
    lines = {fact.name: fact.value for fact in doctor.machine_facts()}
    assert lines["gpu"] == "NVIDIA A100, 80 GiB, with bf16"
    assert lines["free disk"] == "0.5 GiB (little: 2 GiB are wanted)"


def test_a_package_that_is_missing_is_named(monkeypatch, capsys):
    """Exit code 5, as for everything that the environment lacks; dvc is not needed by every job."""
    monkeypatch.setattr(doctor, "_PACKAGES", ("gda", "no-such-package"))
    assert main(["doctor"]) == 5
    assert found(capsys)["no-such-package"] == "MISSING"

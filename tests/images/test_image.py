"""The built image, run: as any user, on a root that cannot be written, without a network (`make image-test`, where an engine is)."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from image_files import FOLDER, why_not

IMAGE = os.environ.get("GDA_TEST_IMAGE", "gda:local")
ENGINE = next((name for name in ("docker", "podman") if shutil.which(name)), None)


_NOT = why_not(IMAGE, engines=("docker", "podman"))
pytestmark = [pytest.mark.docker, pytest.mark.skipif(bool(_NOT), reason=_NOT)]


def _run(*command: str, user: str = "54321:0", options: tuple[str, ...] = (), code: int = 0) -> str:
    locked = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none"]
    words = [str(ENGINE), "run", "--rm", "--user", user, *locked, *options, IMAGE, *command]
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == code, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def test_it_runs_as_any_user_on_a_read_only_root() -> None:
    """The command line and what steps import, as a user that has no name there."""
    assert "snapshot" in _run("gda", "--help")
    assert "54321" in _run("id", "-u")
    _run("python3", "-c", "import kfp, torch, torchvision, diffusers, timm, mlflow, great_expectations, gda.steps.step")


def test_a_stage_runs_on_a_mounted_volume(tmp_path: Path) -> None:
    """A step as a pipeline's pod runs it: its command in the image, its output on the volume, which belongs to group 0."""
    os.chown(tmp_path, -1, 0)
    tmp_path.chmod(0o770)
    program = (
        "from gda.steps.step import run_step\n"
        "from gda.steps.form import step_settings\n"
        "from gda.config.load import Config\n"
        "step = run_step('snapshot', inputs={}, settings=step_settings(Config())['snapshot'], data_root='/data', code='1')\n"
        "print(step.reference())\n"
    )
    printed = _run("python3", "-c", program, options=("--volume", f"{tmp_path}:/data"))
    reference = json.loads(printed.splitlines()[-1])
    folder = tmp_path / Path(reference["uri"]).relative_to("/data")
    assert json.loads((folder / "snapshot.json").read_text())["digest"] == reference["digest"]


def test_it_has_no_tools_that_a_step_does_not_need() -> None:
    """No compiler, no package manager of Python, and no root by default."""
    for tool in ("gcc", "cc", "g++", "make", "pip"):
        _run("sh", "-c", f"command -v {tool} || exit 127", code=127)
    words = [str(ENGINE), "image", "inspect", IMAGE]
    config = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)[0]["Config"]
    assert config["User"] == "10001:0"
    named = {f"org.opencontainers.image.{name}" for name in ("title", "revision", "version", "licenses")}
    assert named <= config["Labels"].keys()


def test_it_holds_what_its_bill_says() -> None:
    """Every installed distribution is in the bill of materials, at that version, and every line of the bill is installed."""
    listed = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    installed = {_normal(name): version for name, version in json.loads(_run("python3", "-c", listed)).items()}
    bill = json.loads(_run("cat", "/usr/share/sbom/gda.cdx.json"))
    named = {_normal(component["name"]): component["version"] for component in bill["components"]}
    assert installed.pop("gda")
    assert installed == named
    assert len(named) == sum("==" in line for line in (FOLDER / "requirements.lock").read_text().splitlines())


def test_nobody_else_can_write_what_steps_run() -> None:
    """No file of the program is writable by its group or by others."""
    assert _run("sh", "-c", "find /opt/gda /usr/share/sbom -perm /022 ! -type l | head -5") == ""


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")

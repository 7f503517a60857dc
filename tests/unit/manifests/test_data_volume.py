"""The volume is made writable without a hand: one Job with the group of the steps, and a sentence where the storage does not follow."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from manifests.render import RENDERED, ROOT

CONTAINERFILE = ROOT.parent / "components" / "images" / "Containerfile"


def _pod(name: str) -> dict[str, Any]:
    objects = list(yaml.safe_load_all((RENDERED / f"{name}.yaml").read_text("utf-8")))
    (job,) = [data for data in objects if data["kind"] == "Job"]
    spec: dict[str, Any] = job["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("name", ["base", "local", "standalone"])
def test_the_job_has_the_group_of_the_steps(name: str) -> None:
    """Kubernetes gives the volume's root to the group of this pod, which is that of the image's user and so of every step."""
    users = set(re.findall(r"^USER (\d+):(\d+)$", CONTAINERFILE.read_text("utf-8"), re.MULTILINE))
    context = _pod(name)["securityContext"]
    assert users == {(str(context["runAsUser"]), str(context["fsGroup"]))}
    assert context["runAsGroup"] == context["fsGroup"]
    assert context["runAsNonRoot"] is True


@pytest.mark.parametrize("name", ["base", "local", "standalone"])
def test_the_job_mounts_the_volume_of_the_steps_under_their_guard(name: str) -> None:
    """The claim is the pipelines', and the account is the one that pods of Jobs may have."""
    pod = _pod(name)
    assert [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]] == ["gda-data"]
    assert pod["serviceAccountName"] == "gda-worker"


def _run(data: Path) -> subprocess.CompletedProcess[str]:
    (container,) = _pod("base")["containers"]
    script = container["args"][0].replace("/data", str(data))
    return subprocess.run([*container["command"], script], capture_output=True, text=True, check=False, env=dict(os.environ))


def test_a_volume_that_can_be_written_to(tmp_path: Path) -> None:
    """The Job ends well, twice too, and leaves nothing but its mark."""
    assert [_run(tmp_path).returncode for _ in range(2)] == [0, 0]
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [".gda", ".gda/writable"]


def test_a_volume_that_cannot_is_reported(tmp_path: Path) -> None:
    """Before the first run fails: who may not write, whose the root is, and what the storage class needs."""
    (tmp_path / ".gda").write_text("in the way")
    done = _run(tmp_path)
    assert done.returncode == 1
    assert re.search(r"user \d+, group \d+ may not write .* is \d+:\d+, mode \d+: .* user 10001 and group 0", done.stderr)

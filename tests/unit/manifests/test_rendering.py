"""The rendered manifests are those of their sources, with kustomize and without it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from manifests.check import check
from manifests.documents import from_objects
from manifests.render import ROOT, TARGETS, _digest, kustomize, main, render_manifests, rendering_differences


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources and their rendering, to be edited."""
    shutil.copytree(ROOT, tmp_path / "manifests", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "manifests"


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_checked_in_is_rendered_from_its_sources(name: str) -> None:
    """What is read, checked and reviewed is what would be applied; by kustomize where it is there, by digest everywhere."""
    assert rendering_differences(name) == []


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("source", ["base/roles.yaml", "overlays/local/network.yaml"])
def test_a_changed_source_is_seen_without_kustomize(name: str, source: str, copy: Path) -> None:
    """A source edited and not rendered fails where there is only Python."""
    path = copy / source
    path.write_text(path.read_text().replace("get", "list") + "#\n")
    assert rendering_differences(name, copy, command=[]) == [
        f"{name}.yaml: its sources have changed since it was rendered; run make manifests"
    ]


@pytest.mark.parametrize("name", TARGETS)
def test_an_edited_rendering_is_seen_without_kustomize(name: str, copy: Path) -> None:
    """The rendering is not edited by hand past its sources."""
    path = copy / "rendered" / f"{name}.yaml"
    path.write_text(path.read_text().replace("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"))
    assert rendering_differences(name, copy, command=[]) == [f"{name}.yaml: was edited by hand; edit its sources and run make manifests"]


def test_a_missing_rendering_is_seen(copy: Path) -> None:
    """A deleted file is a difference, not nothing to compare."""
    (copy / "rendered" / "local.yaml").unlink()
    assert rendering_differences("local", copy, command=[])


@pytest.mark.skipif(not kustomize(), reason="no kustomize on this machine")
def test_a_forged_rendering_is_seen_with_kustomize(copy: Path) -> None:
    """Both digests made to fit an edited text do not deceive kustomize."""
    forged = render_manifests("local", copy).replace("replicas: 1", "replicas: 3")
    path = copy / "rendered" / "local.yaml"
    honest = path.read_text()
    path.write_text(forged)
    assert rendering_differences("local", copy, command=[]) == ["local.yaml: was edited by hand; edit its sources and run make manifests"]

    old, body = honest.partition("---\n")[2], forged.partition("---\n")[2]
    path.write_text(forged.replace(_digest(old.encode()), _digest(body.encode())))
    assert rendering_differences("local", copy) == ["local.yaml: is not what kustomize renders; run make manifests"]


def test_rendering_without_kustomize_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 5, and what would help, where kustomize is missing."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("GDA_KUSTOMIZE", raising=False)
    assert main([]) == 5
    assert capsys.readouterr().err == "manifests: no kustomize; accepted: kustomize (5.x) or kubectl on the path, or GDA_KUSTOMIZE\n"


@pytest.mark.skipif(not kustomize(), reason="no kustomize on this machine")
def test_the_overlay_of_the_readme_builds_and_is_sound(copy: Path) -> None:
    """Who copies the README's example gets every placeholder replaced, and nothing that the check refuses."""
    settings, stores = re.findall(r"^```yaml\n(.*?)^```", (copy / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    ours = copy / "overlays" / "ours"
    ours.mkdir()
    (ours / "kustomization.yaml").write_text(settings)
    (ours / "stores.yaml").write_text(stores)
    built = subprocess.run([*kustomize(), str(ours)], capture_output=True, text=True, check=True).stdout
    for placeholder in ("gda.invalid/mlflow", "storageClassName: shared", "192.0.2.1"):
        assert placeholder not in built
    documents = from_objects("ours.yaml", list(yaml.safe_load_all(built)))
    assert "mlflow-calls-its-stores" in {document.name for document in documents}
    assert check(documents) == []

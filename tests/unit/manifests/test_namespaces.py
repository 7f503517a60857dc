"""Everything follows the namespace that an overlay names: accounts in bindings, the guard of admission, the network, the volume's Job."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from manifests.check import check
from manifests.documents import from_objects
from manifests.render import ROOT, kustomize

NAMES = ["gda", "team-a", "profile-of-somebody"]
BY_NAME = "kubernetes.io/metadata.name"
Objects = list[dict[str, Any]]
pytestmark = pytest.mark.skipif(not kustomize(), reason="no kustomize on this machine")
_WITHOUT_NAMESPACE = """
patches:
  - patch: |-
      $patch: delete
      apiVersion: v1
      kind: Namespace
      metadata: {name: gda}
"""


@pytest.fixture
def built(tmp_path: Path) -> Callable[..., Objects]:
    """Builds an overlay of one's own in a namespace; `change` edits the sources before."""

    def build(name: str, base: str = "../../base", *, more: str = "", change: tuple[str, str, str] | None = None) -> Objects:
        shutil.copytree(ROOT, tmp_path / "manifests", ignore=shutil.ignore_patterns("__pycache__", "rendered"), dirs_exist_ok=True)
        if change is not None:
            source, old, new = change
            path = tmp_path / "manifests" / source
            assert old in path.read_text("utf-8")
            path.write_text(path.read_text("utf-8").replace(old, new))
        ours = tmp_path / "manifests" / "overlays" / "ours"
        ours.mkdir()
        head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        (ours / "kustomization.yaml").write_text(f"{head}namespace: {name}\nresources:\n  - {base}\n{more}")
        done = subprocess.run([*kustomize(), str(ours)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    return build


def _subjects(objects: Objects) -> list[tuple[str, str]]:
    return [(subject["name"], subject.get("namespace", "")) for data in objects for subject in data.get("subjects") or []]


def _guarded(objects: Objects) -> list[str]:
    bindings = [data for data in objects if data["kind"] == "ValidatingAdmissionPolicyBinding"]
    return [binding["spec"]["matchResources"]["namespaceSelector"]["matchLabels"][BY_NAME] for binding in bindings]


def _findings(objects: Objects) -> list[str]:
    return [str(finding) for finding in check(from_objects("whole.yaml", objects))]


@pytest.mark.parametrize("base", ["../../base", "../local"], ids=["base", "local"])
@pytest.mark.parametrize("name", NAMES)
def test_all_follows_the_namespace(name: str, base: str, built: Callable[..., Objects]) -> None:
    """In any namespace accounts have their roles, the guard is on, and no object is left in another."""
    objects = built(name, base)
    assert {space for _, space in _subjects(objects)} == {name}
    assert len(_subjects(objects)) == 5
    assert _guarded(objects) == [name]
    assert {data["metadata"]["namespace"] for data in objects if "namespace" in data["metadata"]} == {name}
    assert [data["metadata"]["name"] for data in objects if data["kind"] == "Namespace"] == [name]
    assert _findings(objects) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_guard_is_on_where_the_namespace_is_somebody_elses(name: str, built: Callable[..., Objects]) -> None:
    """Who leaves the Namespace out, as for a profile that has one, leaves nothing else behind."""
    objects = built(name, more=_WITHOUT_NAMESPACE)
    assert "Namespace" not in {data["kind"] for data in objects}
    assert _guarded(objects) == [name]
    assert {space for _, space in _subjects(objects)} == {name}


def test_a_guard_of_another_namespace_is_found(built: Callable[..., Objects]) -> None:
    """The check is a gate for it, for anyone who changes how the name is written: without the rule of kustomize, or with a fixed name."""
    objects = built("team-a", change=("base/kustomization.yaml", "configurations:\n  - namespace-fields.yaml\n", ""))
    assert _guarded(objects) == ["gda"]
    assert [line for line in _findings(objects) if "is of gda, which holds none of the accounts; accepted: team-a" in line]


def test_subjects_of_another_namespace_are_found(built: Callable[..., Objects]) -> None:
    """A role that is bound to an account elsewhere gives nobody here anything."""
    old = "  - kind: ServiceAccount\n    name: gda-run\n"
    objects = built("team-a", change=("base/roles.yaml", old, f"{old}    namespace: gda\n"))
    assert [line for line in _findings(objects) if "names ServiceAccount gda-run, which is not there" in line]


def test_two_namespaces_of_one_cluster(built: Callable[..., Objects]) -> None:
    """What docs/kubeflow.md says of a second namespace builds: no object of the first, which a cluster has once, is taken from it."""
    text = (ROOT.parent / "docs" / "kubeflow.md").read_text("utf-8")
    (patches,) = re.findall(r"^```yaml\n(patches:\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    objects = built("team-b", more=patches)
    whole = {"ClusterRoleBinding", "ValidatingAdmissionPolicyBinding"}
    assert {data["metadata"]["name"] for data in objects if data["kind"] in whole} == {
        "gda-read-training-runtimes-team-b",
        "gda-accounts-of-pods-team-b",
    }
    assert (_guarded(objects), _findings(objects)) == (["team-b"], [])


@pytest.mark.parametrize("base", ["../../base", "../local"], ids=["base", "local"])
def test_stand_alone_leaves_kubeflow_as_it_is(base: str, built: Callable[..., Objects]) -> None:
    """Its runs have their accounts, in Kubeflow's namespace; nothing there is of pods, accounts or Jobs that are not ours."""
    objects = built("kubeflow", base, more="components: [../../components/standalone]\n")
    kinds = {data["kind"] for data in objects}
    assert not kinds & {"Namespace", "LimitRange", "ResourceQuota", "ClusterRole", "ClusterRoleBinding"}
    assert {data["metadata"]["name"] for data in objects if data["kind"] == "NetworkPolicy"} == {"mlflow-is-called"}
    accounts = {data["metadata"]["name"] for data in objects if data["kind"] == "ServiceAccount"}
    assert accounts == {"gda-run", "gda-promote", "gda-worker", "gda-mlflow"}
    assert set(_subjects(objects)) == {("gda-run", "kubeflow"), ("gda-promote", "kubeflow")}
    (policy,) = [data for data in objects if data["kind"] == "ValidatingAdmissionPolicy"]
    assert len(policy["spec"]["validations"]) == 2
    assert all("gda-promote" in rule["expression"] for rule in policy["spec"]["validations"])
    granted = {resource for data in objects if data["kind"] == "Role" for rule in data["rules"] for resource in rule["resources"]}
    assert not granted & {"jobs", "trainjobs"}
    assert (_guarded(objects), _findings(objects)) == (["kubeflow"], [])

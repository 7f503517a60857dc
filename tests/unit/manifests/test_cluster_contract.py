"""The manifests and what runs on them agree: names, rights, flags of the server, and the README that reports them."""

import re
from fnmatch import fnmatch
from typing import Any
from urllib.parse import urlsplit

import pytest
from object_edits import PIPELINE, RENDERED, ROOT, load

from manifests.references import BROUGHT
from pipelines.compiling import NAMESPACE
from pipelines.steps import _TRACKING

README = (ROOT / "manifests" / "README.md").read_text("utf-8")
BOTH = pytest.mark.parametrize("name", ["base", "local"])


def _rendered(name: str) -> dict[str, dict[str, Any]]:
    return {f"{data['kind']}/{data['metadata']['name']}": data for data in load(RENDERED / f"{name}.yaml")}


def _rights(objects: dict[str, dict[str, Any]], account: str) -> set[str]:
    """`verb group/resource[:name]` of everything that an account may do."""
    found = set()
    for data in objects.values():
        if data["kind"] in ("RoleBinding", "ClusterRoleBinding") and account in {subject["name"] for subject in data["subjects"]}:
            for rule in objects[f"{data['roleRef']['kind']}/{data['roleRef']['name']}"]["rules"]:
                for name in rule.get("resourceNames", [""]):
                    found |= {f"{verb} {resource}:{name}".rstrip(":") for verb in rule["verbs"] for resource in rule["resources"]}
    return found


@BOTH
def test_only_runs_spread_work_and_only_promotion_reads_its_credential(name: str) -> None:
    """The rights of each account are these and no other: a role that grows is a decision, made here too."""
    objects = _rendered(name)
    steps = {
        "create workflowtaskresults",
        "patch workflowtaskresults",
        "get configmaps:kfp-launcher",
        "get secrets:mlpipeline-minio-artifact",
        "get pods",
    }
    spread = {f"{verb} trainjobs" for verb in ("create", "get", "list", "watch", "patch", "delete")}
    spread |= {f"{verb} jobs" for verb in ("create", "get", "list", "watch", "delete")}
    spread |= {f"{verb} {what}" for verb in ("get", "list", "watch") for what in ("pods", "events", "clustertrainingruntimes")}
    assert _rights(objects, "gda-run") == steps | spread | {"get pods/log"}
    assert _rights(objects, "gda-promote") == steps | {"get secrets:gda-mlflow-promote"}
    assert _rights(objects, "gda-worker") == _rights(objects, "gda-mlflow") == _rights(objects, "default") == set()


@BOTH
def test_tokens_only_for_accounts_of_runs(name: str) -> None:
    """Workers and servers get no token, even where a pod forgets to refuse one."""
    objects = _rendered(name)
    mounted = {d["metadata"]["name"] for d in objects.values() if d["kind"] == "ServiceAccount" and d["automountServiceAccountToken"]}
    assert mounted == {"gda-run", "gda-promote"}


@BOTH
def test_pipelines_find_what_they_name(name: str) -> None:
    """Namespace, volume and settings of the compiled pipelines are those of the manifests."""
    objects = _rendered(name)
    assert f"Namespace/{NAMESPACE}" in objects
    assert set(objects["ConfigMap/gda-tracking"]["data"]) == set(_TRACKING)
    pipeline = load(PIPELINE)[0]
    claim = pipeline["root"]["inputDefinitions"]["parameters"]["data_claim"]["defaultValue"]
    assert f"PersistentVolumeClaim/{claim}" in objects


@BOTH
def test_tracking_address_is_the_servers(name: str) -> None:
    """Steps call a Service that there is, at its port, by a name that the server answers to."""
    objects = _rendered(name)
    address = urlsplit(objects["ConfigMap/gda-tracking"]["data"]["MLFLOW_TRACKING_URI"])
    service = objects[f"Service/{address.hostname}"]["spec"]
    container = objects["Deployment/mlflow"]["spec"]["template"]["spec"]["containers"][0]
    assert [port["port"] for port in service["ports"]] == [address.port]
    assert {port["targetPort"] for port in service["ports"]} == {port["name"] for port in container["ports"]}
    [hosts] = [word.partition("=")[2].split(",") for word in container["args"] if word.startswith("--allowed-hosts=")]
    for host in (address.netloc, f"mlflow.{NAMESPACE}.svc.cluster.local:5000"):
        assert any(fnmatch(host, pattern) for pattern in hosts), host


@BOTH
def test_mlflow_takes_its_flags(name: str) -> None:
    """The server's own command line parses every argument of the container, to the values meant."""
    from mlflow.cli import cli

    container = _rendered(name)["Deployment/mlflow"]["spec"]["template"]["spec"]["containers"][0]
    program, command = container["command"]
    server = cli.commands[command].make_context(program, list(container["args"]))
    assert program == "mlflow"
    assert (server.params["host"], server.params["port"], server.params["workers"]) == ("0.0.0.0", 5000, "2")
    assert "mlflow.*" in server.params["allowed_hosts"]


def test_readme_lists_what_is_brought_and_every_account() -> None:
    """An operator who follows the README misses no Secret; no account is left unexplained."""
    rows = {tuple(match) for match in re.findall(r"^\| (Secret|ConfigMap) `([^`]+)` \|", README, re.MULTILINE)}
    assert rows == set(BROUGHT)
    accounts = {data["metadata"]["name"] for data in load(RENDERED / "base.yaml") if data["kind"] == "ServiceAccount"}
    assert accounts == set(re.findall(r"^\| `([a-z-]+)` \| ", README.partition("## Accounts")[2].partition("## Network")[0], re.MULTILINE))


def test_readme_lists_what_to_replace() -> None:
    """Each placeholder of the base is in the table of what to replace."""
    base = (RENDERED / "base.yaml").read_text("utf-8")
    for placeholder in ("gda.invalid/mlflow", "storageClassName: shared", "192.0.2.1/32"):
        assert placeholder in base
        assert f"`{placeholder}`" in README
    assert set(re.findall(r"gda\.invalid/\w+", base)) == {"gda.invalid/mlflow"}

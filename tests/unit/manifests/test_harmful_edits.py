"""The check finds each of many harms done to sound manifests, names it, and says nothing of what is sound."""

from pathlib import Path

import pytest
import yaml
from object_edits import PIPELINE, RENDERED, Edit, add, add_object, drop, load, put

from manifests.check import check, main
from manifests.documents import from_objects

SOUND = Path(__file__).with_name("sound_objects.yaml")
MLFLOW, CONTAINER = "Deployment/mlflow", "spec.template.spec.containers[mlflow]"
JOB, POD = "Job/sample", "spec.template.spec"
CRON = "spec.jobTemplate.spec.template.spec"
RUNTIME = "spec.template.spec.replicatedJobs[node].template.spec.template.spec"
EXECUTOR = "deploymentSpec.executors.exec-finetune"
ON_CLUSTER = "platforms.kubernetes.deploymentSpec.executors.exec-finetune"
HARMS: dict[str, tuple[Edit, str]] = {
    "runs as root": (drop(MLFLOW, "spec.template.spec.securityContext.runAsNonRoot"), "runAsNonRoot: is missing; accepted: true"),
    "user 0": (put(MLFLOW, "spec.template.spec.securityContext.runAsUser", 0), "runAsUser: is 0"),
    "no security context": (drop(MLFLOW, f"{CONTAINER}.securityContext"), "capabilities.drop: is missing; accepted: [ALL]"),
    "escalation": (put(MLFLOW, f"{CONTAINER}.securityContext.allowPrivilegeEscalation", True), "allowPrivilegeEscalation: is true"),
    "writable root": (put(MLFLOW, f"{CONTAINER}.securityContext.readOnlyRootFilesystem", False), "readOnlyRootFilesystem: is false"),
    "privileged": (put(MLFLOW, f"{CONTAINER}.securityContext.privileged", True), "privileged: is true; accepted: absent"),
    "capability": (put(MLFLOW, f"{CONTAINER}.securityContext.capabilities.add", ["SYS_ADMIN"]), "capabilities.add: is [SYS_ADMIN]"),
    "no seccomp": (put(MLFLOW, "spec.template.spec.securityContext.seccompProfile.type", "Unconfined"), "type: is Unconfined"),
    "container undoes the pod's": (put(MLFLOW, f"{CONTAINER}.securityContext.runAsNonRoot", False), "runAsNonRoot: is false"),
    "no memory limit": (drop(MLFLOW, f"{CONTAINER}.resources.limits"), "resources.limits.memory: is missing"),
    "no requests": (drop(MLFLOW, f"{CONTAINER}.resources.requests"), "resources.requests.cpu: is missing"),
    "latest": (put(MLFLOW, f"{CONTAINER}.image", "team/mlflow:latest"), "image: is team/mlflow:latest; accepted: NAME@sha256:DIGEST"),
    "no image": (drop(MLFLOW, f"{CONTAINER}.image"), f"{CONTAINER}.image: is missing; accepted: NAME@sha256:DIGEST"),
    "kernel's files": (
        put(MLFLOW, f"{CONTAINER}.securityContext.procMount", "Unmasked"),
        "procMount: is Unmasked; accepted: absent, or Default",
    ),
    "tag": (put(MLFLOW, f"{CONTAINER}.image", "gda.invalid/mlflow:3.17"), "image: is gda.invalid/mlflow:3.17"),
    "token": (put(MLFLOW, "spec.template.spec.automountServiceAccountToken", True), "automountServiceAccountToken: is true for gda-mlflow"),
    "token by the account": (
        lambda objects: [
            drop(MLFLOW, "spec.template.spec.automountServiceAccountToken")(objects),
            drop("ServiceAccount/gda-mlflow", "automountServiceAccountToken")(objects),
        ].clear(),
        "automountServiceAccountToken: is true for gda-mlflow",
    ),
    "default account": (put(MLFLOW, "spec.template.spec.serviceAccountName", "default"), "serviceAccountName: is default"),
    "no account": (drop(MLFLOW, "spec.template.spec.serviceAccountName"), "serviceAccountName: is missing"),
    "host's files": (
        add(MLFLOW, "spec.template.spec.volumes", {"name": "host", "hostPath": {"path": "/"}}),
        "volumes[host]: is of hostPath",
    ),
    "host's network": (put(MLFLOW, "spec.template.spec.hostNetwork", True), "spec.template.spec.hostNetwork: is true"),
    "host's processes": (put(MLFLOW, "spec.template.spec.hostPID", True), "spec.template.spec.hostPID: is true"),
    "host's port": (put(MLFLOW, f"{CONTAINER}.ports[http].hostPort", 80), "ports: hostPort is 80"),
    "password in environment": (
        add(MLFLOW, f"{CONTAINER}.env", {"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        "env[AWS_SECRET_ACCESS_KEY]: holds a secret value, by its name",
    ),
    "password in an address": (
        add(MLFLOW, f"{CONTAINER}.args", "--backend-store-uri=postgresql://gda:open@db/mlflow"),
        "args: holds a password in an address; accepted: an environment variable from a Secret",
    ),
    "password among settings": (put("ConfigMap/gda-mlflow", "data.DB_PASSWORD", "x"), "data.DB_PASSWORD: holds a secret value"),
    "address among settings": (
        put("ConfigMap/gda-tracking", "data.MLFLOW_TRACKING_URI", "http://a:b@mlflow:5000"),
        "password in an address",
    ),
    "Secret in the file": (
        add_object(apiVersion="v1", kind="Secret", metadata={"name": "s", "namespace": "gda"}, stringData={"password": "x"}),
        "Secret/s: stringData: holds values of password",
    ),
    "wildcard verb": (put("Role/gda-distribute", "rules[0].verbs", ["*"]), "rules[0].verbs: holds a wildcard"),
    "wildcard resource": (put("Role/gda-steps", "rules[0].resources", ["*"]), "rules[0].resources: holds a wildcard"),
    "wildcard group": (put("ClusterRole/gda-read-training-runtimes", "rules[0].apiGroups", ["*"]), "apiGroups: holds a wildcard"),
    "all of a subresource": (put("Role/gda-distribute", "rules[3].resources", ["pods/*"]), "resources: holds a wildcard"),
    "secrets listed": (put("Role/gda-promote-credential", "rules[0].verbs", ["get", "list"]), "list of secrets; accepted: get"),
    "every Secret": (drop("Role/gda-promote-credential", "rules[0].resourceNames"), "resourceNames: is missing for secrets"),
    "into pods": (add("Role/gda-distribute", "rules[3].resources", "pods/exec"), "holds pods/exec"),
    "any pod": (add("Role/gda-distribute", "rules[2].verbs", "create"), "create of pods"),
    "own roles": (
        add("Role/gda-steps", "rules", {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["patch"]}),
        "changes roles or bindings",
    ),
    "impersonates": (add("Role/gda-steps", "rules[3].verbs", "impersonate"), "holds impersonate"),
    "cluster-admin": (put("ClusterRoleBinding/gda-read-training-runtimes", "roleRef.name", "cluster-admin"), "is cluster-admin"),
    "anybody": (
        add("RoleBinding/gda-steps", "subjects", {"kind": "Group", "name": "system:authenticated"}),
        "subjects[2].name: is system:authenticated",
    ),
    "default bound": (put("RoleBinding/gda-steps", "subjects[0].name", "default"), "subjects[0].name: is default"),
    "network open": (drop("NetworkPolicy/default-deny"), "none denies all ingress"),
    "egress open": (put("NetworkPolicy/default-deny", "spec.policyTypes", ["Ingress"]), "none denies all egress"),
    "deny elsewhere": (put("NetworkPolicy/default-deny", "metadata.namespace", "other"), "none denies all ingress"),
    "egress to everywhere": (drop("NetworkPolicy/steps-call", "spec.egress[0].to"), "egress[0].to: is missing, which is everywhere"),
    "whole internet": (put("NetworkPolicy/steps-call-the-api-server", "spec.egress[0].to[0].ipBlock.cidr", "0.0.0.0/0"), "is 0.0.0.0/0"),
    "every namespace": (put("NetworkPolicy/mlflow-is-called", "spec.ingress[0].from[3].namespaceSelector", {}), "is every namespace"),
    "way in from outside": (put("Service/mlflow", "spec.type", "NodePort"), "spec.type: is NodePort"),
    "baseline": (put("Namespace/gda", "metadata.labels[pod-security.kubernetes.io/enforce]", "baseline"), "enforce: is baseline"),
    "version not pinned": (put("Namespace/gda", "metadata.labels[pod-security.kubernetes.io/warn-version]", "latest"), "is latest"),
    "policy only warns": (put("ValidatingAdmissionPolicyBinding/gda-accounts-of-pods", "spec.validationActions", ["Warn"]), "is ['Warn']"),
    "policy fails open": (put("ValidatingAdmissionPolicy/gda-accounts-of-pods", "spec.failurePolicy", "Ignore"), "is Ignore"),
    "policy gone": (drop("ValidatingAdmissionPolicy/gda-accounts-of-pods"), "names ValidatingAdmissionPolicy gda-accounts-of-pods"),
    "account gone": (drop("ServiceAccount/gda-mlflow"), "names ServiceAccount gda-mlflow, which is not there"),
    "account of a binding gone": (drop("ServiceAccount/gda-promote"), "subjects[0]: names ServiceAccount gda-promote, which is not there"),
    "role gone": (drop("Role/gda-steps"), "roleRef: names Role gda-steps, which is not there"),
    "settings gone": (drop("ConfigMap/gda-mlflow"), "names ConfigMap gda-mlflow, which is not there"),
    "volume gone": (drop("PersistentVolumeClaim/gda-data"), "names PersistentVolumeClaim gda-data, which is not there"),
    "Secret misspelt": (put(MLFLOW, f"{CONTAINER}.envFrom[1].secretRef.name", "gda-mlfow"), "names Secret gda-mlfow"),
    "Secret of a role misspelt": (put("Role/gda-promote-credential", "rules[0].resourceNames", ["promote"]), "names Secret promote"),
    "other namespace": (put(MLFLOW, "metadata.namespace", "gdb"), "names Namespace gdb, which is not there"),
    "service of nothing": (put("Service/mlflow", "spec.selector", {"app": "mlflow"}), "selects no pod"),
    "budget of nothing": (put("PodDisruptionBudget/mlflow", "spec.selector.matchLabels", {"app": "x"}), "selects no pod"),
    "job's init container": (drop(JOB, f"{POD}.initContainers[prepare].securityContext"), f"{POD}.initContainers[prepare].securityContext"),
    "job's projected Secret": (
        put(JOB, f"{POD}.volumes[settings].projected.sources[1].secret.name", "x"),
        f"{POD}.volumes[settings]: names Secret x",
    ),
    "job's projected settings": (
        put(JOB, f"{POD}.volumes[settings].projected.sources[0].configMap.name", "x"),
        f"{POD}.volumes[settings]: names ConfigMap x",
    ),
    "job's claim": (
        put(JOB, f"{POD}.volumes[data].persistentVolumeClaim.claimName", "x"),
        f"{POD}.volumes[data]: names PersistentVolumeClaim x",
    ),
    "job's environment": (
        put(JOB, f"{POD}.containers[main].env[HF_TOKEN].valueFrom.secretKeyRef.name", "x"),
        f"{POD}.containers[main].env[HF_TOKEN]: names Secret x",
    ),
    "job as a run": (
        lambda objects: [
            put(JOB, f"{POD}.serviceAccountName", "gda-mlflow")(objects),
            put(JOB, f"{POD}.automountServiceAccountToken", True)(objects),
        ].clear(),
        "is true for gda-mlflow",
    ),
    "cron job": (put("CronJob/nightly", f"{CRON}.containers[main].image", "busybox"), f"{CRON}.containers[main].image: is busybox"),
    "plain pod": (put("Pod/shell", "spec.hostIPC", True), "Pod/shell: spec.hostIPC: is true"),
    "stateful set": (drop("StatefulSet/cache", "spec.template.spec.containers[main].resources"), "resources.limits.memory: is missing"),
    "runtime": (put("ClusterTrainingRuntime/gda-torch", f"{RUNTIME}.hostNetwork", True), f"{RUNTIME}.hostNetwork: is true"),
    "train job's image": (put("TrainJob/finetune", "spec.trainer.image", "gda:latest"), "spec.trainer.image: is gda:latest"),
    "train job's secret": (
        put("TrainJob/finetune", "spec.trainer.env", [{"name": "HF_TOKEN", "value": "x"}]),
        "spec.trainer.env[HF_TOKEN]: holds a secret value",
    ),
    "train job's host": (
        add("TrainJob/finetune", "spec.podTemplateOverrides[0].spec.volumes", {"name": "h", "hostPath": {"path": "/"}}),
        "spec.podTemplateOverrides[0].spec.volumes[h]: is of hostPath",
    ),
    "train job's patch": (
        put("TrainJob/finetune", "spec.runtimePatches", [{"pod": {"spec": {"hostNetwork": True}}}]),
        "spec.runtimePatches[0].pod.spec.hostNetwork: is true",
    ),
    "workflow's account": (put("Workflow/augment-", "spec.serviceAccountName", "admin"), "names ServiceAccount admin"),
    "workflow's container": (
        drop("Workflow/augment-", "spec.templates[step].container.securityContext"),
        "spec.templates[step].container.",
    ),
    "workflow's script": (
        put("Workflow/augment-", "spec.templates[words].script.image", "x:1"),
        "spec.templates[words].script.image: is x:1",
    ),
    "workflow's sidecar": (
        put("Workflow/augment-", "spec.templates[step].sidecars[helper].securityContext.privileged", True),
        "spec.templates[step].sidecars[helper].securityContext.privileged",
    ),
    "workflow's set": (
        drop("Workflow/augment-", "spec.templates[several].containerSet.containers[one].resources"),
        "containerSet.containers[one].resources",
    ),
    "workflow's volumes": (
        put("Workflow/augment-", "spec.volumes", [{"name": "h", "hostPath": {"path": "/"}}]),
        "spec.templates[step].volumes[h]: is of hostPath",
    ),
    "step's image": (put("KfpPipeline/augment", f"{EXECUTOR}.container.image", "gda:latest"), f"{EXECUTOR}.container.image: is gda:latest"),
    "step's memory": (
        drop("KfpPipeline/augment", f"{EXECUTOR}.container.resources.resourceMemoryLimit"),
        "resourceMemoryLimit: is missing",
    ),
    "step's secret": (
        put("KfpPipeline/augment", f"{EXECUTOR}.container.env", [{"name": "HF_TOKEN", "value": "x"}]),
        f"{EXECUTOR}.container.env[HF_TOKEN]: holds a secret value",
    ),
    "step as root": (drop("platform", f"{ON_CLUSTER}.securityContext"), f"{ON_CLUSTER}.securityContext.runAsNonRoot: is missing"),
    "step as user 0": (put("platform", f"{ON_CLUSTER}.securityContext.runAsUser", "0"), "securityContext.runAsUser: is 0"),
    "step's Secret": (
        put("platform", f"{ON_CLUSTER}.secretAsEnv[0]", {"secretName": "other"}),
        f"{ON_CLUSTER}.secretAsEnv: names Secret other",
    ),
    "step's claim": (
        put("KfpPipeline/augment", "root.inputDefinitions.parameters.data_claim.defaultValue", "lost"),
        f"{ON_CLUSTER}.pvcMount: names PersistentVolumeClaim lost",
    ),
}


@pytest.mark.parametrize("name", ["base", "local"])
def test_sound_objects_have_no_findings(name: str) -> None:
    """What is shipped, and every kind of object done well, passes: the check can be a gate."""
    found = check(from_objects("whole.yaml", load(RENDERED / f"{name}.yaml", PIPELINE, SOUND)))
    assert [str(finding) for finding in found] == []


@pytest.mark.parametrize("harm", HARMS)
def test_a_harm_is_found(harm: str) -> None:
    """Each edit that would weaken the cluster is named with its object and place, on one line."""
    edit, expected = HARMS[harm]
    objects = load(RENDERED / "base.yaml", PIPELINE, SOUND)
    edit(objects)
    lines = [str(finding) for finding in check(from_objects("whole.yaml", objects))]
    assert any(expected in line for line in lines), lines
    assert all(line.startswith("whole.yaml: ") and "; accepted: " in line and "\n" not in line for line in lines)


def test_findings_do_not_repeat_a_secret() -> None:
    """What the check prints is kept in logs: it says where a secret is, never which."""
    objects = load(RENDERED / "base.yaml")
    add(MLFLOW, f"{CONTAINER}.env", {"name": "DB_PASSWORD", "value": "open-sesame"})(objects)
    add(MLFLOW, f"{CONTAINER}.args", "--uri=postgresql://gda:open-sesame@db/x")(objects)
    text = "\n".join(str(finding) for finding in check(from_objects("whole.yaml", objects)))
    assert "DB_PASSWORD" in text
    assert "open-sesame" not in text


def test_objects_in_a_list_are_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """kubectl's lists are taken apart, and the command exits with 1 and a line a finding."""
    objects = load(RENDERED / "base.yaml")
    put(MLFLOW, "spec.template.spec.hostNetwork", True)(objects)
    path = tmp_path / "list.yaml"
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": objects}))
    assert main([str(path)]) == 1
    assert capsys.readouterr().out == f"{path}: Deployment/mlflow: spec.template.spec.hostNetwork: is true; accepted: absent\n"


@pytest.mark.parametrize(("text", "message"), [("a: [", "no YAML"), ("- 1\n- 2\n", "a document is a list"), ("a: 1\n", "has no kind")])
def test_a_file_that_holds_no_objects_is_refused(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong file is one line and exit code 3, never "nothing found"."""
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert main([str(path)]) == 3
    error = capsys.readouterr().err
    assert f"{path}: " in error
    assert message in error
    assert error.count("\n") == 1


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    """A rendering that came out empty does not pass for a sound one."""
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert main([str(path)]) == 3

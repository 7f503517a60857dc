"""A server that speaks as much of Kubernetes' API as jobs need, over HTTP on loopback: the real client talks to it.

It checks jobs by the rules of the real server that a wrong body would meet, and lets a job progress by a script of statuses.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml

JOBS, TRAIN_JOBS = "/apis/batch/v1/namespaces/gda/jobs", "/apis/trainer.kubeflow.org/v1alpha1/namespaces/gda/trainjobs"
PODS = "/api/v1/namespaces/gda/pods"


class FakeKubernetes:
    """The server. `script` holds the statuses that a job shows, one a look, the last for ever; `fail` answers of the next requests."""

    def __init__(self, *, trainer: bool = True) -> None:
        self.trainer = trainer
        self.jobs: dict[str, dict[str, Any]] = {}
        self.script: list[dict[str, Any]] = []
        self.fail: list[int] = []
        self.pods: list[dict[str, Any]] = []
        self.logs: dict[str, str] = {}
        self.deleted: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.on_look: Callable[[int], None] | None = None
        self._looks = 0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake._answer(self, "GET")

            def do_POST(self) -> None:
                fake._answer(self, "POST")

            def do_DELETE(self) -> None:
                fake._answer(self, "DELETE")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeKubernetes":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, path: Path) -> Path:
        """Write a configuration that names this server."""
        named = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {"token": "t"}}],
        }
        path.write_text(yaml.safe_dump(named))
        return path

    def _answer(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        url = urlparse(handler.path)
        self.asked.append(f"{method} {url.path}")
        status, content = (
            (self.fail.pop(0), {"reason": "as told"}) if self.fail else self._routed(method, url.path, parse_qs(url.query), body)
        )
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _routed(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        if path.startswith(PODS):
            return self._of_pods(path, query)
        kind = next((kind for kind in (JOBS, TRAIN_JOBS) if path.startswith(kind)), None)
        if kind is None or (kind == TRAIN_JOBS and not self.trainer):
            return 404, {"reason": "NotFound"}
        if method == "POST":
            return self._created(kind, json.loads(body))
        name = path.removeprefix(f"{kind}/")
        if method == "GET":
            return self._looked_at(name)
        if name not in self.jobs:
            return 404, {"reason": "NotFound"}
        if method == "DELETE":
            del self.jobs[name]
            self.deleted.append((name, (query.get("propagationPolicy") or ["none"])[0]))
            return 200, {"kind": "Status", "status": "Success"}
        return 405, {"reason": "MethodNotAllowed"}

    def _created(self, kind: str, job: dict[str, Any]) -> tuple[int, Any]:
        name = job["metadata"]["name"]
        if name in self.jobs:
            return 409, {"reason": "AlreadyExists"}
        if kind == JOBS and (wrong := wrong_job(job)):
            return 422, {"reason": "Invalid", "message": wrong}
        self.jobs[name] = job
        return 201, job

    def _looked_at(self, name: str) -> tuple[int, Any]:
        self._looks += 1
        if self.on_look is not None:
            self.on_look(self._looks)
        if name not in self.jobs:
            return 404, {"reason": "NotFound"}
        status = self.script.pop(0) if len(self.script) > 1 else (self.script[0] if self.script else {})
        return 200, self.jobs[name] | {"status": status}

    def _of_pods(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        if path.endswith("/log"):
            return 200, self.logs[path.split("/")[-2]]
        key, _, value = query["labelSelector"][0].partition("=")
        found = [pod for pod in self.pods if pod["metadata"]["labels"].get(key) == value]
        return 200, {"kind": "PodList", "items": found}


def wrong_job(job: dict[str, Any]) -> str | None:
    """What the real API server would refuse a Job for."""
    spec = job["spec"]
    pod = spec["template"]["spec"]
    if pod["restartPolicy"] != "Never" and "podFailurePolicy" in spec:
        return "podFailurePolicy needs restartPolicy Never"
    if "backoffLimitPerIndex" in spec and spec.get("completionMode") != "Indexed":
        return "backoffLimitPerIndex needs completionMode Indexed"
    if "maxFailedIndexes" in spec and ("backoffLimitPerIndex" not in spec or spec["maxFailedIndexes"] > spec["completions"]):
        return "maxFailedIndexes needs backoffLimitPerIndex and at most completions"
    for rule in spec.get("podFailurePolicy", {}).get("rules", ()):
        if rule["action"] == "FailIndex" and "backoffLimitPerIndex" not in spec:
            return "FailIndex needs backoffLimitPerIndex"
        if ("onExitCodes" in rule) == ("onPodConditions" in rule):
            return "a rule has exit codes or conditions, not both"
        codes = rule.get("onExitCodes", {})
        if codes and (0 in codes["values"] and codes["operator"] == "In"):
            return "0 is no failure"
        if codes and codes.get("containerName") not in [container["name"] for container in pod["containers"]]:
            return "no container of that name"
    if spec.get("podReplacementPolicy") not in (None, "Failed") and "podFailurePolicy" in spec:
        return "with a podFailurePolicy, pods are replaced when Failed"
    if spec["parallelism"] > spec["completions"]:
        return "more pods at once than workers"
    return None

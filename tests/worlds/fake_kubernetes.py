"""A server with the part of Kubernetes' API that jobs need, over HTTP on loopback, for the real client.

It checks jobs by the rules of the real server that a wrong body would meet, keeps versions, and streams watches. A job progresses by a
script of statuses.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml
from kubernetes_rules import wrong_job, wrong_train_job

JOBS, TRAIN_JOBS = "/apis/batch/v1/namespaces/gda/jobs", "/apis/trainer.kubeflow.org/v1alpha1/namespaces/gda/trainjobs"
PODS = "/api/v1/namespaces/gda/pods"
RULES = {JOBS: wrong_job, TRAIN_JOBS: wrong_train_job}
Answer = tuple[int, Any]


class FakeKubernetes:
    """The server.

    `script` holds the statuses that a job shows, one a look or event, the last for ever. `fail` are answers of the next requests: a
    status, or one with a message. `watches` are fates of the next watches: "expired" (410 as an answer), "forgotten" (410 as an event),
    "cut" (the connection breaks within a line), or a status. A job whose pods go first is there for `lingering` more looks.
    """

    def __init__(self, *, trainer: bool = True) -> None:
        self.trainer = trainer
        self.jobs: dict[str, dict[str, Any]] = {}
        self.script: list[dict[str, Any]] = []
        self.fail: list[int | tuple[int, str]] = []
        self.watches: list[int | str] = []
        self.pods: list[dict[str, Any]] = []
        self.logs: dict[str, str | int] = {}
        self.deleted: list[tuple[str, str]] = []
        self.requests: list[str] = []
        self.on_look: Callable[[int], None] | None = None
        self.lingering = 0
        self.patience = 0.05  # seconds for which a watch stays open when nothing happens
        self._looks = self._version = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeKubernetes":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
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

    def put(self, job: dict[str, Any], **status: Any) -> None:
        """Store a job as the server does: with an identity, a version and defaults of its own."""
        self._version += 1
        own = {"uid": f"uid-{self._version}", "resourceVersion": str(self._version)}
        spec = {"backoffLimit": 2147483647} | job["spec"]
        self.jobs[job["metadata"]["name"]] = job | {"metadata": job["metadata"] | own, "spec": spec, "status": status}

    def verbs(self, verb: str) -> int:
        """How many requests of a verb - GET, WATCH, POST, DELETE - for jobs there were."""
        return sum(requests.startswith(f"{verb} /apis/") for requests in self.requests)

    def answer(self, method: str, target: str, body: bytes) -> Answer:
        """An answer, or the events of a watch as an iterator of them."""
        url = urlparse(target)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        method = "WATCH" if query.get("watch") else method
        self.requests.append(f"{method} {url.path}")
        if self.fail:
            answer = self.fail.pop(0)
            return (answer, {"reason": "as configured"}) if isinstance(answer, int) else _status(*answer)
        if url.path.startswith(PODS):
            return self._of_pods(url.path, query)
        kind = next((kind for kind in RULES if url.path.startswith(kind)), None)
        if kind is None or (kind == TRAIN_JOBS and not self.trainer):
            return 404, "404 page not found\n"
        if method == "POST":
            return self._created(kind, json.loads(body))
        if method == "WATCH":
            return self._watched(query)
        name = url.path.removeprefix(f"{kind}/")
        return self._looked_at(name) if method == "GET" else self._deleted(name, query, json.loads(body or b"{}"))

    def _created(self, kind: str, job: dict[str, Any]) -> Answer:
        name = job["metadata"]["name"]
        if name in self.jobs:
            return _status(409, f"{name} already exists")
        if wrong := RULES[kind](job):
            return _status(422, wrong)
        self.put(job)
        return 201, self.jobs[name]

    def _look(self, name: str) -> dict[str, Any] | None:
        """The job with its next status, or None when it is gone."""
        self._looks += 1
        if self.on_look is not None:
            self.on_look(self._looks)
        job = self.jobs.get(name)
        if job is not None and "deletionTimestamp" in job["metadata"]:
            self.lingering -= 1
            if self.lingering < 0:
                del self.jobs[name]
            return self.jobs.get(name)
        if job is not None and self.script:
            self._version += 1
            job["status"] = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            job["metadata"] = job["metadata"] | {"resourceVersion": str(self._version)}
        return job

    def _looked_at(self, name: str) -> Answer:
        job = self._look(name)
        return (200, job) if job is not None else _status(404, f"{name} not found")

    def _watched(self, query: dict[str, str]) -> Answer:
        fate = self.watches.pop(0) if self.watches else ""
        if isinstance(fate, int) or fate == "expired":
            return _status(410 if fate == "expired" else fate, "too old resource version")
        name = query["fieldSelector"].removeprefix("metadata.name=")
        if name in self.jobs and query["resourceVersion"] != self.jobs[name]["metadata"]["resourceVersion"]:
            return _status(400, f"a watch from {query['resourceVersion']} would repeat old events")
        return 200, self._events(name, fate)

    def _events(self, name: str, fate: str):
        if fate == "forgotten":
            yield {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}
        elif fate == "cut":
            yield None
        else:
            while self._has_news(name) and (job := self._look(name)) is not None:
                yield {"type": "MODIFIED", "object": job}
            threading.Event().wait(self.patience)
            if name not in self.jobs:
                yield {"type": "DELETED", "object": {}}

    def _has_news(self, name: str) -> bool:
        return len(self.script) > 1 or bool(self.script and self.jobs.get(name, {}).get("status") != self.script[0])

    def _deleted(self, name: str, query: dict[str, str], options: dict[str, Any]) -> Answer:
        """As the real server: only options in the body count, and the query if there is no body."""
        if name not in self.jobs:
            return _status(404, f"{name} not found")
        uid = options.get("preconditions", {}).get("uid")
        if uid not in (None, self.jobs[name]["metadata"]["uid"]):
            return _status(409, "the UID in the precondition does not match")
        policy = (options or query).get("propagationPolicy", "none")
        self.deleted.append((name, policy))
        if policy == "Foreground" and self.lingering:
            self.jobs[name]["metadata"] = self.jobs[name]["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}
        else:
            del self.jobs[name]
        return 200, {"kind": "Status", "status": "Success"}

    def _of_pods(self, path: str, query: dict[str, str]) -> Answer:
        if path.endswith("/log"):
            log = self.logs[f"{path.split('/')[-2]}/{query['container']}"]
            return _status(log, "no log") if isinstance(log, int) else (200, log)
        key, _, value = query["labelSelector"].partition("=")
        found = [pod for pod in self.pods if pod["metadata"]["labels"].get(key) == value]
        return 200, {"kind": "PodList", "items": found}


def _status(code: int, message: str) -> Answer:
    return code, {"kind": "Status", "status": "Failure", "code": code, "message": message}


def _handler(fake: FakeKubernetes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = fake.answer(self.command, self.path, body)
            self.send_response(status)
            if isinstance(content, (str, dict)):
                self._whole(content)
            else:
                self._streamed(content)

        do_GET = do_POST = do_DELETE = _any  # noqa: N815

        def _whole(self, content: Any) -> None:
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _streamed(self, events: Any) -> None:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in events:
                data = b'{"type": "MODI' if event is None else json.dumps(event).encode() + b"\n"
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                if event is None:
                    self.close_connection = True
                    return
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: Any) -> None:
            pass

    return Handler

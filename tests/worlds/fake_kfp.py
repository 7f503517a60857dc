"""A server with the part of Kubeflow Pipelines' API (v2beta1) that the SDK's client uses here, over HTTP on loopback.

It stores what it receives and refuses what the real server refuses: unknown ids, a run without a version, a schedule without a trigger,
a second version of one name, parameters that the pipeline does not declare; with several users, experiments without a namespace.
"""

import json
import threading
import uuid
from email import policy
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml

PREFIX = "/apis/v2beta1"


class FakeKfp:
    """The server; `url` is its address. `fail` makes the next requests answer with that status; `tokens` are those it has seen.

    `blind` holds whose next list is empty, "pipelines" or "versions", as to a client that another one overtakes. `page`, if set, answers
    everything.
    """

    def __init__(self, *, token: str | None = None, multi_user: bool = False) -> None:
        self.multi_user = multi_user
        self.blind: set[str] = set()
        self.page: bytes | None = None
        self.token = token
        self.tokens: list[str] = []
        self.fail: list[int] = []
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.schedules: dict[str, dict[str, Any]] = {}
        self.end_state = "SUCCEEDED"
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake._answer(self, "GET")

            def do_POST(self) -> None:
                fake._answer(self, "POST")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "FakeKfp":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        status, content = self._checked(handler, method, body)
        data = self.page or json.dumps(content).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "text/html" if self.page else "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _checked(self, handler: BaseHTTPRequestHandler, method: str, body: bytes) -> tuple[int, Any]:
        sent = (handler.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.tokens.append(sent)
        if self.fail and not handler.path.endswith("/healthz"):
            return self.fail.pop(0), {"error": "as configured"}
        if self.token is not None and sent != self.token:
            return 401, {"error": "token"}
        url = urlparse(handler.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        parts = [part for part in url.path.removeprefix(PREFIX).split("/") if part]
        try:
            return 200, self._routed(method, parts, query, body, handler.headers.get("Content-Type") or "")
        except RefusedError as error:
            return error.status, {"error": str(error)}

    def _routed(self, method: str, parts: list[str], query: dict[str, str], body: bytes, kind: str) -> Any:
        match method, parts:
            case "GET", ["healthz"]:
                return {"multi_user": self.multi_user}
            case "GET", ["pipelines"]:
                found = [] if self._blind("pipelines") else self._found(self.pipelines, query)
                return {"pipelines": found, "total_size": len(found)}
            case "POST", ["pipelines"]:
                return self._created(json.loads(body))
            case "POST", ["pipelines", "upload_version"]:
                return self._uploaded(query, _file_of(body, kind))
            case "GET", ["pipelines", pipeline, "versions"]:
                hidden = self._blind("versions")
                of_it = [v for v in self.versions.values() if v["pipeline_id"] == pipeline and not hidden]
                newest = list(reversed(of_it)) if query.get("sort_by") == "created_at desc" else of_it
                start = int(query.get("page_token") or 0)
                end = start + 1  # one version per page: a client must request further pages
                return {"pipeline_versions": newest[start:end], "next_page_token": str(end) if end < len(newest) else ""}
            case "GET", ["experiments"]:
                self._require_namespace(query)
                return {"experiments": self._found(self.experiments, query)}
            case "POST", ["experiments"]:
                self._require_namespace(json.loads(body))
                return self._kept(self.experiments, "experiment_id", json.loads(body), needs=("display_name",))
            case "POST", ["runs"]:
                return self._started(json.loads(body))
            case "GET", ["runs", run]:
                return self.runs[run] | {"state": self.end_state}
            case "POST", ["recurringruns"]:
                return self._scheduled(json.loads(body))
        raise RefusedError(404, f"{method} {'/'.join(parts)}")

    def _blind(self, kind: str) -> bool:
        """Whether this list must be empty; the next one is not."""
        hidden = kind in self.blind
        self.blind.discard(kind)
        return hidden

    def _found(self, where: dict[str, dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
        """Items of the requested namespace, where an empty one means all, and of the name if there is one."""
        (wanted,) = json.loads(query["filter"])["predicates"] if "filter" in query else (None,)
        there = [one for one in where.values() if (one.get("namespace") or "") == query.get("namespace", "")]
        return [one for one in there if wanted is None or one[wanted["key"]] == wanted["stringValue"]]

    def _require_namespace(self, content: dict[str, Any]) -> None:
        if bool(content.get("namespace")) != self.multi_user:
            raise RefusedError(400, "a namespace is needed" if self.multi_user else "this server has no namespaces")

    def _created(self, content: dict[str, Any]) -> dict[str, Any]:
        same = ("display_name", "namespace")
        if any(all(other.get(key) == content.get(key) for key in same) for other in self.pipelines.values()):
            raise RefusedError(409, "that name is taken")
        return self._kept(self.pipelines, "pipeline_id", content, needs=("display_name",))

    def _kept(self, where: dict[str, dict[str, Any]], name: str, content: dict[str, Any], *, needs: tuple[str, ...]) -> dict[str, Any]:
        if missing := [field for field in needs if not content.get(field)]:
            raise RefusedError(400, f"{missing[0]} is needed")
        identity = str(uuid.uuid4())
        where[identity] = content | {name: identity}
        return where[identity]

    def _uploaded(self, query: dict[str, str], file: bytes) -> dict[str, Any]:
        if query.get("pipelineid") not in self.pipelines:
            raise RefusedError(404, "no such pipeline")
        documents = list(yaml.load_all(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        same = [v for v in self.versions.values() if (v["pipeline_id"], v["display_name"]) == (query["pipelineid"], query["name"])]
        if same:
            raise RefusedError(409, "that version is there")
        spec = {"pipeline_spec": documents[0]} | ({"platform_spec": documents[1]} if len(documents) > 1 else {})
        content = {"pipeline_id": query["pipelineid"], "display_name": query["name"], "pipeline_spec": spec}
        identity = str(uuid.uuid4())
        self.versions[identity] = content | {"pipeline_version_id": identity}
        return self.versions[identity]

    def _started(self, content: dict[str, Any]) -> dict[str, Any]:
        self._require_runnable(content)
        return self._kept(self.runs, "run_id", content, needs=("display_name",))

    def _scheduled(self, content: dict[str, Any]) -> dict[str, Any]:
        self._require_runnable(content)
        trigger = content.get("trigger") or {}
        if len(trigger.get("cron_schedule", {}).get("cron", "").split()) != 6 and not trigger.get("periodic_schedule", {}).get(
            "interval_second"
        ):
            raise RefusedError(400, "a schedule needs a cron expression of six fields, or an interval")
        if not 1 <= int(content.get("max_concurrency") or 0) <= 10:
            raise RefusedError(400, "max_concurrency must be 1 to 10")
        if content.get("mode") not in ("ENABLE", "DISABLE"):
            raise RefusedError(400, "mode")
        return self._kept(self.schedules, "recurring_run_id", content, needs=("display_name",))

    def _require_runnable(self, content: dict[str, Any]) -> None:
        if content.get("experiment_id") not in self.experiments:
            raise RefusedError(400, "no such experiment")
        reference = content.get("pipeline_version_reference") or {}
        carried = content.get("pipeline_spec")
        if bool(reference) == bool(carried):
            raise RefusedError(400, "either a version or a pipeline")
        version = self.versions.get(reference.get("pipeline_version_id", ""))
        if reference and (version is None or version["pipeline_id"] != reference.get("pipeline_id")):
            raise RefusedError(400, "both ids of a version are needed")
        spec = version["pipeline_spec"]["pipeline_spec"] if version else carried.get("pipeline_spec", carried)
        wanted = spec["root"].get("inputDefinitions", {}).get("parameters", {})
        for name in content.get("runtime_config", {}).get("parameters", {}):
            if name not in wanted:
                raise RefusedError(400, f"no parameter {name}")


class RefusedError(Exception):
    """An answer of the server with another status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def _file_of(body: bytes, kind: str) -> bytes:
    """The one file of a multipart form."""
    message = BytesParser(policy=policy.default).parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    (part,) = [part for part in message.iter_parts() if part.get_param("name", header="content-disposition") == "uploadfile"]
    return bytes(part.get_payload(decode=True))

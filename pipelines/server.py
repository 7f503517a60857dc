"""A Kubeflow Pipelines server: versions of pipelines, runs and schedules, through the SDK's own client."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gda.errors import MissingError, TryAgainError, UsageError
from pipelines.documents import node_groups, read_compiled, tasks_of

_ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_BETWEEN_LOOKS = 5.0
HOST, TOKEN_FILE = "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH"
_IS_IT = "is this a Kubeflow Pipelines server of version 2?"
# What Kubernetes sets in a pod of the server's namespace.
_IN_CLUSTER = ("ML_PIPELINE_SERVICE_HOST", "ML_PIPELINE_SERVICE_PORT")


@dataclass(frozen=True, kw_only=True)
class Version:
    """An uploaded version of a pipeline, by the server's ids, its specification and the Kubernetes part of that."""

    name: str
    pipeline_id: str
    version_id: str
    spec: Mapping[str, Any]
    platform: Mapping[str, Any] = field(default_factory=dict)
    already: bool = False


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a run, or each run of a schedule, is started; `root` is where the server keeps outputs, if not where it always does."""

    experiment: str
    title: str = ""
    account: str | None = None
    root: str | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a pipeline runs again: a cron expression of six fields, or every so many seconds."""

    cron: str | None = None
    interval: int | None = None
    max_concurrency: int = 1
    catchup: bool = False


class Server:
    """The server at `host` (default: `KF_PIPELINES_ENDPOINT`, else the one of this cluster or kubeconfig).

    `namespace` is that of the user's pipelines and experiments, on a server with several users. A token comes from `token_file` (default:
    `KF_PIPELINES_SA_TOKEN_PATH`) and is read again for each request, as those of service accounts expire. Every method raises
    `MissingError` where the account may not, and `TryAgainError` where the server is away.
    """

    def __init__(
        self, host: str | None = None, *, namespace: str = "", token_file: Path | None = None, ca_cert: Path | None = None
    ) -> None:
        import kfp
        from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

        token = token_file or (Path(os.environ[TOKEN_FILE]) if os.environ.get(TOKEN_FILE) else None)
        if token is not None and not token.is_file():
            raise MissingError(f"{token}: no such token file; accepted: --token-file FILE or {TOKEN_FILE}")
        if ca_cert is not None and not ca_cert.is_file():
            raise MissingError(f"{ca_cert}: no such file of certificates; accepted: --ca-cert FILE")
        self.namespace = namespace or None
        address = host or _address()
        with _one_line("connect"):
            # The SDK takes its own `namespace` for the server's, which that of a user is not.
            self._client = kfp.Client(
                host=address,
                credentials=ServiceAccountTokenVolumeCredentials(path=str(token)) if token is not None else None,
                ssl_ca_cert=str(ca_cert) if ca_cert is not None else None,
            )

    def upload(self, name: str, file: Path, *, version: str) -> Version:
        """Make `file` the version `version` of the pipeline `name`, creating that; content that is there already is content.

        Raises `UsageError` where the version holds something else: a run that names it would not be what its reader thinks.
        """
        spec, platform = read_compiled(file)
        pipeline_id = self._pipeline_id(name) or self._create(name, spec)
        there = self._named(name, pipeline_id, version)
        if there is None:
            try:
                with _one_line("upload a version of a pipeline"):
                    made = self._client.upload_pipeline_version(str(file), pipeline_version_name=version, pipeline_id=pipeline_id)
                return Version(name=version, pipeline_id=pipeline_id, version_id=made.pipeline_version_id, spec=spec, platform=platform)
            except UsageError:
                # Another upload may have come between.
                if (there := self._named(name, pipeline_id, version)) is None:
                    raise
        if (there.spec, there.platform) != (spec, platform):
            raise UsageError(f"{name} version {version}: is there with other content; give another --version")
        return replace(there, already=True)

    def version(self, name: str, version: str | None = None) -> Version:
        """The version of that name, or the newest. Raises `UsageError` where there is none."""
        pipeline_id = self._pipeline_id(name)
        if pipeline_id is None:
            raise UsageError(f"{name}: is not on the server; python -m pipelines upload {name} puts it there")
        found = self._named(name, pipeline_id, version)
        if found is None:
            raise UsageError(f"{name} version {version or '(newest)'}: is not on the server")
        return found

    def run(self, version: Version, parameters: Mapping[str, Any], how: Launch, *, cached: bool = True) -> str:
        """Start a run; returns its id.

        Without the cache, the run carries the pipeline itself with the cache of every step off, and names no version: servers have no
        such switch for versions, and the SDK's own reaches the outermost steps only.
        """
        with _one_line("start a run"), TemporaryDirectory() as folder:
            content: dict[str, Any] = {"pipeline_id": version.pipeline_id, "version_id": version.version_id}
            if not cached:
                content = {"pipeline_package_path": _written(Path(folder), without_cache(version.spec), version.platform)}
            made = self._client.run_pipeline(
                experiment_id=self._experiment(how.experiment),
                job_name=how.title,
                params=dict(parameters),
                pipeline_root=how.root,
                service_account=how.account,
                **content,
            )
        return str(made.run_id)

    def wait(self, run: str, *, timeout: int) -> str:
        """The state in which the run ended. Raises `TryAgainError` when it has not within `timeout` seconds.

        Not the SDK's own wait, for which a cancelled run never ends.
        """
        until = time.monotonic() + timeout
        while True:
            with _one_line("read a run"):
                state = str(self._client.get_run(run).state)
            if state in _ENDED:
                return state
            if time.monotonic() >= until:
                raise TryAgainError(f"run {run}: still {state.lower()} after {timeout} s")
            time.sleep(min(_BETWEEN_LOOKS, max(0.0, until - time.monotonic())))

    def schedule(self, version: Version, parameters: Mapping[str, Any], when: Schedule, how: Launch) -> str:
        """Start runs of this version again and again; returns the schedule's id."""
        with _one_line("schedule runs"):
            made = self._client.create_recurring_run(
                experiment_id=self._experiment(how.experiment),
                job_name=how.title,
                cron_expression=when.cron,
                interval_second=when.interval,
                max_concurrency=when.max_concurrency,
                no_catchup=not when.catchup,
                params=dict(parameters),
                pipeline_id=version.pipeline_id,
                version_id=version.version_id,
                pipeline_root=how.root,
                service_account=how.account,
            )
        return str(made.recurring_run_id)

    def _pipeline_id(self, name: str) -> str | None:
        # The SDK's own look-up by name sees pipelines that all users share, and none of a namespace; and to it a page is an empty list.
        wanted = json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
        with _one_line("list pipelines"):
            answer, _, headers = self._client._pipelines_api.pipeline_service_list_pipelines_with_http_info(
                filter=wanted, namespace=self.namespace
            )
        if "json" not in headers.get("Content-Type", "json"):
            raise MissingError(f"list pipelines: the server answered with {headers['Content-Type']}, as a sign-in page; {_IS_IT}")
        found = answer.pipelines or []
        if len(found) > 1:
            raise UsageError(f"{name}: the server has {len(found)} pipelines of that name; give --namespace")
        return str(found[0].pipeline_id) if found else None

    def _create(self, name: str, spec: Mapping[str, Any]) -> str:
        # The SDK's own upload makes a first version named as the pipeline; this makes the pipeline alone.
        from kfp_server_api import V2beta1Pipeline

        description = spec["pipelineInfo"].get("description", "")
        body = V2beta1Pipeline(name=name, display_name=name, description=description, namespace=self.namespace)
        try:
            with _one_line("create a pipeline"):
                return str(self._client._pipelines_api.pipeline_service_create_pipeline(pipeline=body).pipeline_id)
        except UsageError:
            # Another upload may have come between.
            if (there := self._pipeline_id(name)) is None:
                raise
            return there

    def _named(self, name: str, pipeline_id: str, version: str | None) -> Version | None:
        """The version of that name, or the newest."""
        token = ""
        while True:
            with _one_line("list versions of a pipeline"):
                page = self._client.list_pipeline_versions(pipeline_id, page_token=token, page_size=50, sort_by="created_at desc")
            for found in page.pipeline_versions or ():
                if version in (None, found.display_name):
                    content = found.pipeline_spec
                    return Version(
                        name=found.display_name,
                        pipeline_id=pipeline_id,
                        version_id=found.pipeline_version_id,
                        spec=content.get("pipeline_spec", content),
                        platform=content.get("platform_spec") or {},
                    )
            token = page.next_page_token
            if not token:
                return None

    def _experiment(self, name: str) -> str:
        return str(self._client.create_experiment(name, namespace=self.namespace).experiment_id)


def without_cache(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the pipeline in which no step, at any depth, is taken from the cache."""
    content: dict[str, Any] = json.loads(json.dumps(spec))
    for _, group in node_groups(content):
        for task in tasks_of(group).values():
            if "cachingOptions" in task:
                task["cachingOptions"].clear()
    return content


def _written(folder: Path, spec: Mapping[str, Any], platform: Mapping[str, Any]) -> str:
    """A file as the compiler writes it."""
    path = folder / "pipeline.yaml"
    # JSON is YAML.
    path.write_text("\n---\n".join(json.dumps(part) for part in (spec, platform) if part), "utf-8")
    return str(path)


def _address() -> str | None:
    """Where the environment says that a server is; none where the SDK is to find that of the cluster or kubeconfig.

    Raises `MissingError` where there is neither: the SDK would try this machine.
    """
    if address := os.environ.get(HOST):
        return address
    if all(os.environ.get(name) for name in _IN_CLUSTER):
        return "http://{}:{}".format(*(os.environ[name] for name in _IN_CLUSTER))
    files = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    if not os.environ.get("KUBERNETES_SERVICE_HOST") and not any(Path(file).is_file() for file in files.split(os.pathsep) if file):
        raise MissingError(f"no server is named; accepted: --host ADDRESS, {HOST}, a pod of its cluster, or a kubeconfig")
    return None


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn what the client raises into one line and its exit code."""
    import warnings

    import urllib3
    from kfp_server_api import ApiException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ApiException as error:
        answer = f"the server answered {error.status} {error.reason or ''}".rstrip()
        if error.status in (401, 403):
            raise MissingError(f"this account may not {what}: {answer}; give --token-file, or have the right granted") from None
        if error.status == 404:
            raise MissingError(f"{what}: {answer}; {_IS_IT}") from None
        if error.status == 429 or error.status >= 500 or error.status == 0:
            raise TryAgainError(f"{what}: {answer}") from None
        raise UsageError(f"{what}: {answer}: {' '.join(str(error.body).split())[:300]}") from None
    except urllib3.exceptions.MaxRetryError as error:
        if isinstance(error.reason, urllib3.exceptions.SSLError):
            raise MissingError(f"{what}: the server's certificate is not trusted; give --ca-cert FILE") from None
        raise TryAgainError(f"{what}: the server is away ({type(error.reason).__name__})") from None
    except (urllib3.exceptions.LocationValueError, ValueError) as error:
        raise UsageError(f"{what}: {' '.join(str(error).split())}") from None
    except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
        raise TryAgainError(f"{what}: the server is away ({type(error).__name__})") from None

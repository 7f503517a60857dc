"""A Kubeflow Pipelines server: versions of pipelines, runs and schedules, through the SDK's own client."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.documents import read_compiled
from pipelines.errors import MissingError, TryAgainError, UsageError

_ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_BETWEEN_LOOKS = 5.0
HOST, TOKEN_FILE = "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH"


@dataclass(frozen=True, kw_only=True)
class Version:
    """An uploaded version of a pipeline, by the server's ids, and its specification."""

    name: str
    pipeline_id: str
    version_id: str
    spec: Mapping[str, Any]
    already: bool = False


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a pipeline runs again: a cron expression of six fields, or every so many seconds."""

    cron: str | None = None
    interval: int | None = None
    max_concurrency: int = 1
    catchup: bool = False


class Server:
    """The server at `host` (default: `KF_PIPELINES_ENDPOINT`, else the one of this cluster or kubeconfig).

    A token comes from `token_file` (default: `KF_PIPELINES_SA_TOKEN_PATH`) and is read anew for each request, as those of service
    accounts expire. Every method raises `MissingError` where the account may not, and `TryAgainError` where the server is away.
    """

    def __init__(
        self, host: str | None = None, *, namespace: str = "", token_file: Path | None = None, ca_cert: Path | None = None
    ) -> None:
        import kfp
        from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

        token = token_file or (Path(os.environ[TOKEN_FILE]) if os.environ.get(TOKEN_FILE) else None)
        if token is not None and not token.is_file():
            raise MissingError(f"{token}: no such token file; accepted: --token-file FILE or {TOKEN_FILE}")
        self.namespace = namespace or None
        with _said_in_a_line("connect"):
            self._client = kfp.Client(
                host=host or os.environ.get(HOST),
                namespace=namespace or "kubeflow",
                credentials=ServiceAccountTokenVolumeCredentials(path=str(token)) if token is not None else None,
                ssl_ca_cert=str(ca_cert) if ca_cert is not None else None,
            )

    def upload(self, name: str, file: Path, *, version: str) -> Version:
        """Make `file` the version `version` of the pipeline `name`, creating that; content that is there already is content.

        Raises `UsageError` where the version holds something else: a run that names it would not be what its reader thinks.
        """
        spec, _ = read_compiled(file)
        pipeline_id = self._pipeline_id(name) or self._create(name, spec)
        if (there := self._named(name, pipeline_id, version)) is not None:
            if there.spec != spec:
                raise UsageError(f"{name} version {version}: is there with other content; give another --version")
            return Version(name=version, pipeline_id=pipeline_id, version_id=there.version_id, spec=spec, already=True)
        with _said_in_a_line("upload a version of a pipeline"):
            made = self._client.upload_pipeline_version(str(file), pipeline_version_name=version, pipeline_id=pipeline_id)
        return Version(name=version, pipeline_id=pipeline_id, version_id=made.pipeline_version_id, spec=spec)

    def version(self, name: str, version: str | None = None) -> Version:
        """The version of that name, or the newest. Raises `UsageError` where there is none."""
        pipeline_id = self._pipeline_id(name)
        if pipeline_id is None:
            raise UsageError(f"{name}: is not on the server; python -m pipelines upload {name} puts it there")
        found = self._named(name, pipeline_id, version)
        if found is None:
            raise UsageError(f"{name} version {version or '(newest)'}: is not on the server")
        return found

    def run(self, name: str, version: Version, parameters: Mapping[str, Any], *, experiment: str, account: str | None, title: str) -> str:
        """Start a run; returns its id."""
        with _said_in_a_line("start a run"):
            made = self._client.run_pipeline(
                experiment_id=self._experiment(experiment),
                job_name=title or f"{name} {version.name}",
                params=dict(parameters),
                pipeline_id=version.pipeline_id,
                version_id=version.version_id,
                service_account=account,
            )
        return str(made.run_id)

    def wait(self, run: str, *, timeout: int) -> str:
        """The state in which the run ended. Raises `TryAgainError` when it has not within `timeout` seconds.

        Not the SDK's own wait, for which a cancelled run never ends.
        """
        until = time.monotonic() + timeout
        while True:
            with _said_in_a_line("read a run"):
                state = str(self._client.get_run(run).state)
            if state in _ENDED:
                return state
            if time.monotonic() >= until:
                raise TryAgainError(f"run {run}: still {state.lower()} after {timeout} s")
            time.sleep(min(_BETWEEN_LOOKS, max(0.0, until - time.monotonic())))

    def schedule(
        self,
        name: str,
        version: Version,
        parameters: Mapping[str, Any],
        when: Schedule,
        *,
        experiment: str,
        account: str | None,
        title: str,
    ) -> str:
        """Start runs of this version again and again; returns the schedule's id."""
        with _said_in_a_line("schedule runs"):
            made = self._client.create_recurring_run(
                experiment_id=self._experiment(experiment),
                job_name=title or f"{name} {version.name}",
                cron_expression=when.cron,
                interval_second=when.interval,
                max_concurrency=when.max_concurrency,
                no_catchup=not when.catchup,
                params=dict(parameters),
                pipeline_id=version.pipeline_id,
                version_id=version.version_id,
                service_account=account,
            )
        return str(made.recurring_run_id)

    def _pipeline_id(self, name: str) -> str | None:
        with _said_in_a_line("list pipelines"):
            found: str | None = self._client.get_pipeline_id(name)
            return found

    def _create(self, name: str, spec: Mapping[str, Any]) -> str:
        # The SDK's own upload makes a first version named as the pipeline; this makes the pipeline alone.
        from kfp_server_api import V2beta1Pipeline

        description = spec["pipelineInfo"].get("description", "")
        with _said_in_a_line("create a pipeline"):
            body = V2beta1Pipeline(name=name, display_name=name, description=description, namespace=self.namespace)
            return str(self._client._pipelines_api.pipeline_service_create_pipeline(pipeline=body).pipeline_id)

    def _named(self, name: str, pipeline_id: str, version: str | None) -> Version | None:
        """The version of that name, or the newest."""
        token = ""
        while True:
            with _said_in_a_line("list versions of a pipeline"):
                page = self._client.list_pipeline_versions(pipeline_id, page_token=token, page_size=50, sort_by="created_at desc")
            for found in page.pipeline_versions or ():
                if version in (None, found.display_name):
                    spec = found.pipeline_spec.get("pipeline_spec", found.pipeline_spec)
                    return Version(name=found.display_name, pipeline_id=pipeline_id, version_id=found.pipeline_version_id, spec=spec)
            token = page.next_page_token
            if not token:
                return None

    def _experiment(self, name: str) -> str:
        return str(self._client.create_experiment(name, namespace=self.namespace).experiment_id)


@contextmanager
def _said_in_a_line(what: str) -> Iterator[None]:
    """Turn what the client raises into one line and its exit code."""
    import warnings

    import urllib3
    from kfp_server_api import ApiException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ApiException as error:
        said = f"the server answered {error.status} {error.reason or ''}".rstrip()
        if error.status in (401, 403):
            raise MissingError(f"this account may not {what}: {said}; give --token-file, or ask for the right") from None
        if error.status == 404:
            raise MissingError(f"{what}: {said}; is this a Kubeflow Pipelines server of version 2?") from None
        if error.status == 429 or error.status >= 500 or error.status == 0:
            raise TryAgainError(f"{what}: {said}") from None
        raise UsageError(f"{what}: {said}: {str(error.body)[:300]}") from None
    except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
        raise TryAgainError(f"{what}: the server is away ({type(error).__name__})") from None

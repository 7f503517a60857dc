"""Generators as versions of a registered model in MLflow: plain files among their run's artifacts, with their card's digests as tags.

MLflow's own diffusers flavour stores adapters and the name of a base. Here the whole directory is registered; it is downloaded with
`mlflow.artifacts.download_artifacts("models:/NAME/VERSION")` and loads with diffusers alone.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.contents import require_whole
from gda.artifacts.document import read_document
from gda.artifacts.outcome import RegisteredModel
from gda.errors import DataError

_FOLDER = "generator"  # among the run's artifacts
_DIGEST = "gda.digest"
UPLOADED = "gda.uploaded"  # on the run: digest of the generator that is whole among its artifacts
VERSION = "gda.model"  # on the run: the version that holds its generator
_UPLOAD_TIMEOUT = 1800  # seconds


def generator_model(name: str | None, folder: Path, card: GeneratorCard, *, description: str = "") -> RegisteredModel | None:
    """The generator in `folder` as a version of the registered model `name`, with its card's fields as tags; None without a name."""
    if name is None:
        return None
    tags = {
        _DIGEST: card.digest,
        "gda.family": card.family,
        "gda.licence": card.licence,
        "gda.snapshot": card.snapshot_digest,
        "gda.base_digest": card.base_digest,
    }
    return RegisteredModel(name=name, path=folder, tags={k: v for k, v in tags.items() if v is not None}, description=description)


def ensure_version(client: Any, logged: Any, model: RegisteredModel) -> list[str]:
    """Make sure that `model` is a version of its registered model, once by its digest; returns why not when its folder is gone.

    The order lets each attempt resume where the last one ended: a name that MLflow refuses costs no upload, a tag marks a complete
    upload, and the version is found by its digest.
    """
    run_id, digest = logged.info.run_id, model.tags[_DIGEST]
    found = client.search_model_versions(f"name = '{model.name}' and tags.`{_DIGEST}` = '{digest}'")
    if found:
        version = min(found, key=lambda v: int(v.version))
    else:
        uploaded = logged.data.tags.get(UPLOADED) == digest
        if not uploaded and (reason := _lost(model)):
            return [f"{model.name}: not registered, {reason}"]
        _ensure_registered_model(client, model.name)
        if not uploaded:
            _upload(client, run_id, model)
        version = _create_version(client, logged, model)
        version = only_version(client, model.name, digest) or version
    client.set_tag(run_id, VERSION, f"models:/{model.name}/{version.version}")
    return []


def only_version(client: Any, name: str, digest: str) -> Any | None:
    """The oldest version of this content; newer ones without an alias go: a lost reply makes MLflow's client request one twice."""
    from mlflow.exceptions import MlflowException

    found = sorted(client.search_model_versions(f"name = '{name}' and tags.`{_DIGEST}` = '{digest}'"), key=lambda v: int(v.version))
    for other in found[1:]:
        with suppress(MlflowException):  # an account that may not delete leaves a spare version of the same digest
            if not client.get_model_version(name, other.version).aliases:
                client.delete_model_version(name, other.version)
    return found[0] if found else None


def _lost(model: RegisteredModel) -> str | None:
    """Why the folder is no longer the generator that was to be registered."""
    if not model.path.is_dir():
        return f"{model.path} is gone"
    try:
        require_whole(model.path)
        card = read_document(model.path / "generator.json", GeneratorCard)
    except DataError as error:
        return str(error)
    return None if card.digest == model.tags[_DIGEST] else f"{model.path} holds another generator by now"


def _ensure_registered_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _upload(client: Any, run_id: str, model: RegisteredModel) -> None:
    with _patience():
        client.log_artifacts(run_id, str(model.path), _FOLDER)
    client.set_tag(run_id, UPLOADED, model.tags[_DIGEST])


def _create_version(client: Any, logged: Any, model: RegisteredModel) -> Any:
    from mlflow.utils.uri import append_to_uri_path

    source = append_to_uri_path(logged.info.artifact_uri, _FOLDER)
    return client.create_model_version(
        model.name, source, run_id=logged.info.run_id, tags=dict(model.tags), description=model.description or None
    )


@contextmanager
def _patience() -> Iterator[None]:
    """Wait long for answers to large uploads: a server that proxies them replies once its own store has the file."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ[name]
    os.environ[name] = str(max(int(before), _UPLOAD_TIMEOUT))
    try:
        yield
    finally:
        os.environ[name] = before

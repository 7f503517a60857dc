"""Registered classifiers in MLflow: one version per candidate, full digests in its tags, and two aliases, `challenger` and `champion`."""

import importlib.metadata
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.types import Schema, TensorSpec

from gda import tracking
from gda.artifacts.cards import ClassifierCard
from gda.data.store.predictions import Predictions, read_predictions, write_predictions
from gda.errors import DataError, GdaError, TryAgainError
from gda.registry.runs import registering
from gda.runtime.rng import numpy_stream
from gda.tracking.generator_versions import only_version
from gda.training.loop.classifier import load_classifier, predict_logits

CHAMPION, CHALLENGER = "champion", "challenger"
DIGEST, TEST_DIGEST, BEAT, DECISION = "gda.digest", "gda.test_digest", "gda.beat_version", "gda.decision"
PREDICTIONS_FILE = "predictions.safetensors"
_SERVED = Path(__file__).with_name("served.py")
_PARITY = 1e-4  # largest accepted difference of a probability after logging and loading


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version in the registry with the values of its tags; digests are empty where another program registered it."""

    name: str
    version: str
    digest: str
    test_digest: str
    beat_version: str  # the champion it replaced, empty for the first
    decision: str = ""  # digest of the last decision about it that was carried out to its end

    def predictions(self) -> Predictions:
        """Its predictions on the test split it was evaluated on. Raises `DataError` when the version holds none."""
        with tracking.mlflow_errors(), tracking.default_server():
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{self.name}/{self.version}"))
        return read_predictions(folder / "artifacts" / PREDICTIONS_FILE)


class Registry:
    """Versions of one registered model at `tracking_uri()`.

    Every method raises `TryAgainError` when MLflow is unreachable, `MissingError` and `ConfigError` for what MLflow rejects. The message
    states what has been changed until then.
    """

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        self._changed = "nothing was promoted"
        with self._stating_changes():
            self._client = tracking.connect()

    @contextmanager
    def _stating_changes(self) -> Iterator[None]:
        """Name the cause of an MLflow error, and state what has been changed in the registry."""
        try:
            with tracking.mlflow_errors():
                yield
        except GdaError as error:
            again = "run the same command again" if isinstance(error, TryAgainError) else "correct that and run the same command again"
            raise type(error)(f"{error}; {self._changed}, {again}") from None

    def champion(self) -> Registered | None:
        """The version behind `champion`, or None while there is none."""
        with self._stating_changes():
            try:
                return _registered(self._client.get_model_version_by_alias(self.model_name, CHAMPION))
            except MlflowException as error:
                if error.error_code in _NO_SUCH:
                    return None
                raise

    def version(self, number: str) -> Registered:
        """A version by its number."""
        with self._stating_changes():
            return _registered(self._client.get_model_version(self.model_name, number))

    def find(self, digest: str) -> Registered | None:
        """The oldest version of the classifier with this content digest."""
        matching = [version for version in self._versions() if version.digest == digest]
        return min(matching, key=lambda version: int(version.version)) if matching else None

    def tested_on(self, test_digest: str) -> frozenset[str]:
        """Content digests of the classifiers that were evaluated on this test split and registered, from any machine."""
        return frozenset(version.digest for version in self._versions() if version.test_digest == test_digest)

    def _versions(self) -> list[Registered]:
        with self._stating_changes():
            return [_registered(version) for version in self._client.search_model_versions(f"name = '{self.model_name}'")]

    def carried_out(self, digest: str, decision: str, *, champion: bool) -> Registered | None:
        """The version of this content where the decision of this digest was carried out to its end, and still holds."""
        version = self.find(digest)
        if version is None or version.decision != decision:
            return None
        return version if not champion or CHAMPION in self.aliases(version) else None

    def aliases(self, version: Registered) -> tuple[str, ...]:
        """The aliases that point at `version`, sorted."""
        with self._stating_changes():
            return tuple(sorted(self._client.get_model_version(self.model_name, version.version).aliases))

    def register(self, folder: Path, card: ClassifierCard, predictions: Predictions, tags: Mapping[str, str]) -> Registered:
        """Make sure that the classifier in `folder` is a version, and let `challenger` point at it; a second call changes nothing.

        Raises `DataError` when what MLflow loads back does not predict as the classifier does.
        """
        version = self.find(card.digest)
        if version is None:
            version = self._log(folder, card, predictions, dict(tags) | {DIGEST: card.digest, TEST_DIGEST: predictions.test_digest})
        self._changed = f"version {version.version} is registered and champion is as it was"
        with self._stating_changes():
            _check_parity(folder, card, version)
            self._client.set_registered_model_alias(self.model_name, CHALLENGER, version.version)
        return version

    def describe(self, version: Registered, text: str) -> None:
        """Set the description of `version` in the registry."""
        with self._stating_changes():
            self._client.update_model_version(self.model_name, version.version, description=text)

    def settle(self, version: Registered, decision: str) -> None:
        """Record on `version` that the decision of this digest has been carried out, as the last of its changes."""
        with self._stating_changes():
            self._client.set_model_version_tag(self.model_name, version.version, DECISION, decision)

    def promote(self, version: Registered, *, over: Registered | None) -> None:
        """Let `champion` point at `version`, provided that it still points at `over`, which the gate compared it with.

        Raises `TryAgainError` when another promotion came in between: MLflow has no compare-and-swap, so this checks just before it sets.
        """
        current = self.champion()
        if current is not None and current.version == version.version:
            self._changed = f"version {version.version} is champion"
            return
        if (current and current.version) != (over and over.version):
            raise TryAgainError(f"{self.model_name}: champion changed while this ran; run the same command to compare with the new one")
        with self._stating_changes():
            self._client.set_model_version_tag(self.model_name, version.version, BEAT, over.version if over else "")
            self._changed = f"whether version {version.version} became champion is not known"
            self._client.set_registered_model_alias(self.model_name, CHAMPION, version.version)
            self._changed = f"version {version.version} is champion"

    def _log(self, folder: Path, card: ClassifierCard, predictions: Predictions, tags: dict[str, str]) -> Registered:
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(), self._stating_changes():
            warnings.simplefilter("ignore")  # about the missing input example: the signature is given in full
            record = Path(scratch, PREDICTIONS_FILE)
            write_predictions(record, predictions)
            with registering(self._client, {"model": self.model_name, "digest": card.digest}, f"register {card.arm}-{card.seed}"):
                info = mlflow.pyfunc.log_model(
                    name="classifier",
                    python_model=str(_SERVED),
                    artifacts={"classifier": str(folder), "predictions": str(record)},
                    signature=_signature(len(card.classes)),
                    pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in ("mlflow", "numpy", "timm", "torch")],
                    registered_model_name=self.model_name,
                    tags=tags,
                )
            kept = only_version(self._client, self.model_name, card.digest)
        return self.version(str(kept.version if kept is not None else info.registered_model_version))


_NO_SUCH = (ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), "INVALID_PARAMETER_VALUE")  # MLflow answers the second for a missing alias


def _registered(version: ModelVersion) -> Registered:
    tags = version.tags
    return Registered(
        name=version.name,
        version=str(version.version),
        digest=tags.get(DIGEST, ""),
        test_digest=tags.get(TEST_DIGEST, ""),
        beat_version=tags.get(BEAT, ""),
        decision=tags.get(DECISION, ""),
    )


def _signature(num_classes: int) -> ModelSignature:
    images = TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3), name=None)
    return ModelSignature(Schema([images]), Schema([TensorSpec(np.dtype("float32"), (-1, num_classes), name=None)]))


def _check_parity(folder: Path, card: ClassifierCard, version: Registered) -> None:
    """The version, loaded back as a service would, must predict as the classifier it was made from."""
    images = numpy_stream("parity").integers(0, 256, (4, card.image_size, card.image_size, 3), dtype=np.uint8)
    with tracking.default_server():
        served = mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}").predict(images)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    expected = predict_logits(load_classifier(folder), tensor, image_size=card.image_size).softmax(dim=1).numpy()
    difference = float(np.abs(np.asarray(served) - expected).max())
    if not difference <= _PARITY:
        raise DataError(f"{version.name} version {version.version}: what MLflow loads differs from {folder} by {difference:.2g}")

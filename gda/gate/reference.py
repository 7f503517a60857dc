"""The reference of a real set: classifiers that label images they have not seen, features of train and val, and the FID floor.

Real images are processed once: features, statistics (`statistics.npz`, which other tools read) and the classifiers' probabilities are
kept, under the digest of the snapshot and of the extractor's weights.

Cross-fitting: train alone is split into folds, class by class, and each fold's classifier is trained on the others. A training image is
labelled by the one classifier that has not seen it, which gives the agreement that sound images reach (the floor); val images, which
none has seen, by one each in turn; a synthetic image by the mean of all. Images and classes are picked by these labels
(`replace_rejected`, the arm `targeted`), so val plays no part in them, nor in their floors and limits: otherwise classifiers trained on
the picked images would use information about val that those trained on real images alone do not have (docs/adr/0020). The test split
plays no part.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.numpy import save_file

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.contents import require_whole
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.fingerprint import digest_of
from gda.artifacts.reference import REFERENCE_FILE, REFERENCE_PROBABILITIES, ReferenceIndex
from gda.config.arm import Arm
from gda.config.load import Config
from gda.data.store.in_memory import ImageSet, load_images
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError
from gda.fidelity.compare import fid_floor
from gda.fidelity.extractors import Extractor, comparison_size, configured_extractor
from gda.fidelity.frechet import statistics
from gda.fidelity.statistics_file import statistics_bytes
from gda.gate.checks.labels import LabelCheckResult, agreement, class_thresholds
from gda.io.atomic import write_bytes
from gda.io.tensors import directory_digest, read_tensors, tensors_digest
from gda.runtime.parallel import run_parallel
from gda.runtime.progress import Bar, tick
from gda.runtime.rng import shuffled, stream_seed
from gda.training.loop.classifier import TrainingSource, TrainRecipe, export_classifier, load_classifier, predict_logits, train_classifier
from gda.training.networks.pretrained import find_weights

FEATURES_FILE = "features.safetensors"
REFERENCE_STATISTICS = "statistics.npz"
_log = logging.getLogger(__name__)
_Split = Literal["train", "val"]
_SPLITS: tuple[_Split, ...] = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class LabelReference:
    """An opened reference; by split, in manifest order, `features` float32 [n, d] and `probabilities` float64 [n, classes].

    The probabilities are those of one classifier that has not seen the image.
    """

    path: Path
    index: ReferenceIndex
    features: dict[str, np.ndarray]
    probabilities: dict[str, np.ndarray]

    @classmethod
    def open(cls, path: Path) -> "LabelReference":
        """Raises `DataError` when a file is missing, damaged or exchanged: classifiers and features must be those of the index."""
        require_whole(path, advice=f"remove {path} and compute it again")
        index = read_document(path / REFERENCE_FILE, ReferenceIndex)
        features = _of_every_image(path / FEATURES_FILE, index)
        if problems := reference_problems(path, index, features):
            raise DataError(f"{problems[0]}; remove {path} and compute it again")
        return cls(path=path, index=index, features=features, probabilities=_of_every_image(path / REFERENCE_PROBABILITIES, index))

    @property
    def pooled(self) -> np.ndarray:
        """Features of train, then val: what synthetic sets are compared with."""
        return np.concatenate([self.features[split] for split in _SPLITS])

    @property
    def classifiers(self) -> str:
        """The name to state with every number that is measured by the classifiers' probabilities."""
        return f"cross-fitted classifiers@{digest_of(list(self.index.folds))[:8]}"

    def predict(self, images: torch.Tensor) -> np.ndarray:
        """Class probabilities float64 [n, classes] of uint8 NCHW images that no fold was trained on: the mean over all folds."""
        return np.mean([_probabilities(self.path / f"fold-{k}", images) for k in range(len(self.index.folds))], axis=0)

    def predict_alone(self, images: torch.Tensor) -> np.ndarray:
        """The same by one classifier per image, in turn, as for real images: a mean of all is less sure than any of them."""
        folds = len(self.index.folds)
        found = np.zeros((len(images), len(self.index.agreement_by_class)))
        for k in range(min(folds, len(images))):
            found[k::folds] = _probabilities(self.path / f"fold-{k}", images[k::folds])
        return found

    def require(self, snapshot: Snapshot, extractor: Extractor, *, size: int) -> None:
        """Raises `DataError` unless this is the reference of that snapshot, measured with that extractor at that size."""
        if self.index.snapshot_digest != snapshot.digest:
            raise DataError(f"{self.path}: is the reference of snapshot {self.index.snapshot_digest[:12]}, not of {snapshot.digest[:12]}")
        self.index.require_without_val(self.path)
        if self.index.extractor_digest != extractor.digest:
            raise DataError(
                f"{self.path}: was measured with another extractor, or other weights, than {extractor.identity}; compute it again"
            )
        if self.index.image_size != size:
            raise DataError(f"{self.path}: was measured at {self.index.image_size} pixels, not at {size}; compute it again")


def reference_problems(path: Path, index: ReferenceIndex, features: dict[str, np.ndarray]) -> list[str]:
    """One line for each folder or file of the reference at `path` that differs from its index."""
    problems = [
        f"{path / f'fold-{k}'}: its classifier is not the one that {REFERENCE_FILE} names"
        for k, digest in enumerate(index.folds)
        if directory_digest(path / f"fold-{k}") != digest
    ]
    if not problems and index.digest != _digest(index.snapshot_digest, index.extractor_digest, features, index.folds):
        problems.append(f"{path / FEATURES_FILE}: these features and classifiers are not those of the digest in {REFERENCE_FILE}")
    return problems


def _digest(snapshot: str, extractor: str, features: dict[str, np.ndarray], folds: Sequence[str]) -> str:
    return digest_of([snapshot, extractor, tensors_digest(features), list(folds)])


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """One classifier to train; small, because it is sent to another process."""

    number: int
    snapshot: Path
    folder: Path
    config: Config


def build_reference(config: Config, snapshot: Snapshot, folder: Path, *, work: Path, progress: bool = False) -> ReferenceIndex:
    """Train the folds, extract features, measure the floors, and write all of it into `folder`; the index last.

    `work` holds resumable training state. A second call does only what is missing. Raises `DataError` when train or val is empty.
    """
    extractor = configured_extractor(config)
    folds = [_Fold(number=k, snapshot=snapshot.path, folder=folder / f"fold-{k}", config=config) for k in range(config.reference.folds)]
    with Bar(len(folds) * config.reference.num_train_steps, "reference", unit="step", shown=progress, about="cpu, float32"):
        digests = run_parallel(partial(_train_fold, work=work), folds)
    size = comparison_size(config, extractor)
    sets: dict[str, ImageSet] = {split: load_images(snapshot, split, size=size) for split in _SPLITS}
    features: dict[str, np.ndarray] = {split: extractor.features(images.images) for split, images in sets.items()}
    save_file(features, folder / FEATURES_FILE)
    pooled = np.concatenate(list(features.values()))
    write_bytes(folder / REFERENCE_STATISTICS, statistics_bytes(statistics(pooled)))
    floor, n = fid_floor(pooled, seed=config.seed)
    probabilities = _held_out(folder, sets, config)
    save_file(probabilities, folder / REFERENCE_PROBABILITIES)
    labels, unseen = sets["train"].labels.numpy(), probabilities["train"]
    confirmed = agreement(unseen, LabelCheckResult.hard(labels), class_thresholds(unseen, labels))
    index = ReferenceIndex(
        digest=_digest(snapshot.digest, extractor.digest, features, digests),
        snapshot_digest=snapshot.digest,
        extractor=extractor.name,
        extractor_digest=extractor.digest,
        image_size=size,
        folds=tuple(digests),
        cross_fitted="train",
        counts={split: len(images.keys) for split, images in sets.items()},
        agreement=confirmed.overall.value,
        agreement_by_class=tuple(None if e is None else e.value for e in confirmed.by_class),
        fid_floor=floor.value,
        fid_floor_low=floor.low,
        fid_floor_high=floor.high,
        fid_floor_n=n,
    )
    write_bytes(folder / REFERENCE_FILE, dump_document(index))
    return index


def assign_folds(keys: tuple[str, ...], labels: np.ndarray, folds: int, *, seed: int) -> np.ndarray:
    """Fold of every image, int64 [n]: each class is spread evenly, in an order that depends on the keys and the seed alone."""
    order = sorted(shuffled(range(len(keys)), "fold", seed, key=lambda i: keys[i]), key=lambda i: int(labels[i]))
    assigned = np.empty(len(keys), np.int64)
    # Counting goes on across classes, so that small classes do not all land in the first folds.
    assigned[order] = np.arange(len(keys)) % folds
    return assigned


def _train_fold(fold: _Fold, *, work: Path) -> str:
    """Train on all other folds, export into the fold's folder unless it is there; returns its content digest."""
    if not _is_trained(fold.folder):
        shutil.rmtree(fold.folder, ignore_errors=True)
        snapshot = Snapshot.open(fold.snapshot)
        config, size = fold.config, fold.config.classify.image_size
        train = load_images(snapshot, "train", size=size)
        recipe = TrainRecipe.from_config(config.classify, num_train_steps=config.reference.num_train_steps)
        seen = torch.from_numpy(_folds_of(train, config) != fold.number)
        model, _ = train_classifier(
            [TrainingSource(images=train.images[seen], labels=train.labels[seen])],
            recipe,
            num_classes=len(snapshot.classes),
            seed=stream_seed("reference", config.seed, fold.number),
            checkpoint=work / f"fold-{fold.number}",
            progress=lambda step, loss: tick(loss=loss, series=f"fold {fold.number}", step=step),
        )
        export_classifier(model, fold.folder, _card(fold, snapshot))
    return directory_digest(fold.folder)


def _is_trained(folder: Path) -> bool:
    """Whether an earlier command left the fold's classifier there, whole; a damaged one is reported and trained again."""
    if not (folder / "classifier.json").is_file():
        return False
    try:
        load_classifier(folder)
    except DataError as error:
        _log.warning("%s; this fold is trained again", error)
        return False
    return True


def _card(fold: _Fold, snapshot: Snapshot) -> ClassifierCard:
    weights = find_weights(fold.config.classify)
    return ClassifierCard(
        arm=Arm.REAL,
        seed=fold.number,
        model=fold.config.classify.model,
        image_size=fold.config.classify.image_size,
        classes=tuple(info.name for info in snapshot.classes),
        num_train_steps=fold.config.reference.num_train_steps,
        snapshot_digest=snapshot.digest,
        pretrained=None if weights is None else weights.digest,
    )


def _folds_of(train: ImageSet, config: Config) -> np.ndarray:
    return assign_folds(tuple(train.keys), train.labels.numpy(), config.reference.folds, seed=config.seed)


def _held_out(folder: Path, sets: dict[str, ImageSet], config: Config) -> dict[str, np.ndarray]:
    """Class probabilities of every real image, by split, of one classifier that has not seen it; of val images, of each in turn."""
    dealt = {"train": _folds_of(sets["train"], config), "val": np.arange(len(sets["val"].labels)) % config.reference.folds}
    found = {split: np.zeros((len(folds), len(sets["train"].classes))) for split, folds in dealt.items()}
    for split, folds in dealt.items():
        for k in range(config.reference.folds):
            rows = np.flatnonzero(folds == k)
            found[split][rows] = _probabilities(folder / f"fold-{k}", sets[split].images[rows])
    return found


def _of_every_image(path: Path, index: ReferenceIndex) -> dict[str, np.ndarray]:
    found = read_tensors(path)
    if set(found) != set(_SPLITS) or any(len(found[split]) != index.counts[split] for split in _SPLITS):
        raise DataError(f"{path}: does not hold one row for each image that {REFERENCE_FILE} counts")
    return found


@torch.inference_mode()
def _probabilities(folder: Path, images: torch.Tensor) -> np.ndarray:
    card = read_document(folder / "classifier.json", ClassifierCard)
    return predict_logits(load_classifier(folder), images, image_size=card.image_size).double().softmax(1).numpy()

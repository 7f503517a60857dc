"""Suspicious images: labels that the other images contradict, and dark, bright, blurred, empty, odd or repeated pictures."""

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from gda.data.checks.perceptual import NearMatches

if TYPE_CHECKING:
    from gda.project.images import Looked

_FOLDS, _COMPONENTS = 5, 64
_CELLS, _DIRECTIONS, _TONES = 4, 8, 4
# What cleanvision calls each issue, and what it is called here.
_ISSUES = {
    "dark": "very dark",
    "light": "very bright",
    "blurry": "blurred",
    "low_information": "nearly empty",
    "odd_aspect_ratio": "of an odd shape",
    "odd_size": "of an odd size",
}
_RARE = 0.1
_SMALL = 40  # pixels: sharpness and exposure of smaller pictures say nothing


@dataclass(frozen=True, kw_only=True)
class SuspectImage:
    """A suspicious image: its file, class and the reason; `score` in [0, 1] is lower for what is more suspicious."""

    name: str
    class_name: str
    reason: str
    score: float


def find_suspects(images: "Sequence[Looked]", repeated: NearMatches) -> tuple[SuspectImage, ...]:
    """Suspicious images, label errors first, each reason from the most suspicious on."""
    return (*_labels(images), *_repeats(images, repeated), *_pictures(images))


def _labels(images: "Sequence[Looked]") -> list[SuspectImage]:
    """Images whose label cross-validated probabilities contradict (confident learning, Northcutt et al. 2021), by cleanlab."""
    names = [image.record.class_name for image in images]
    counts = Counter(names)
    kept = [place for place, name in enumerate(names) if counts[name] >= 2]
    classes = sorted({names[place] for place in kept})
    if len(classes) < 2:
        return []
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    labels = np.array([classes.index(names[place]) for place in kept])
    probabilities = label_probabilities(np.stack([images[place].thumbnail for place in kept]), labels)
    scores = get_label_quality_scores(labels, probabilities)
    issues = find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
    found = []
    for row in sorted(np.flatnonzero(issues).tolist(), key=lambda row: scores[row]):
        record, guess = images[kept[row]].record, classes[int(probabilities[row].argmax())]
        reason = f"label in doubt: looks like {guess}" if guess != record.class_name else "label in doubt"
        found.append(SuspectImage(name=record.name, class_name=record.class_name, reason=reason, score=float(scores[row])))
    return found


def label_probabilities(thumbnails: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-validated class probabilities [n, classes] of thumbnails uint8 [n, 32, 32, 3] by simple features and logistic regression."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = simple_features(thumbnails)
    folds = int(min(_FOLDS, np.bincount(labels).min()))
    components = min(_COMPONENTS, features.shape[1], len(labels) - -(-len(labels) // folds) - 1)
    model = make_pipeline(StandardScaler(), PCA(max(1, components), random_state=0), LogisticRegression(C=0.1, max_iter=300))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=0)
    probabilities: np.ndarray = cross_val_predict(model, features, labels, cv=splitter, method="predict_proba")
    return probabilities


def simple_features(thumbnails: np.ndarray) -> np.ndarray:
    """Histograms of gradients in 4 x 4 cells, of colours, and small pixels, float64 [n, d], of uint8 [n, 32, 32, 3]."""
    pixels = thumbnails.astype(np.float64) / 255
    grey = pixels.mean(axis=3)
    down, across = np.gradient(grey, axis=(1, 2))
    strength = np.hypot(down, across)
    direction = np.floor((np.arctan2(down, across) % np.pi) / np.pi * _DIRECTIONS).clip(0, _DIRECTIONS - 1)
    n, cell = len(pixels), pixels.shape[1] // _CELLS
    parts = [strength * (direction == one) for one in range(_DIRECTIONS)]
    gradients = np.stack([part.reshape(n, _CELLS, cell, _CELLS, cell).sum(axis=(2, 4)) for part in parts], axis=1).reshape(n, -1)
    gradients /= np.linalg.norm(gradients, axis=1, keepdims=True) + 1e-6
    tones = (pixels * _TONES).astype(int).clip(0, _TONES - 1) @ np.array([_TONES**2, _TONES, 1])
    colours = np.stack([np.bincount(one.ravel(), minlength=_TONES**3) for one in tones]) / tones[0].size
    small = pixels.reshape(n, 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(n, -1)
    return np.concatenate([4 * gradients, 2 * np.sqrt(colours), small], axis=1)


def _repeats(images: "Sequence[Looked]", repeated: NearMatches) -> list[SuspectImage]:
    found = []
    seen: set[int] = set()
    for row in repeated.queries.tolist():
        reference = int(repeated.reference[row])
        seen.add(row)
        if reference in seen and int(repeated.reference[reference]) == row:
            continue  # the pair is listed already
        own, other = images[row].record, images[reference].record
        also = "" if own.class_name == other.class_name else f", which is in class {other.class_name}"
        reason = f"nearly the same as {other.name}{also}"
        found.append(SuspectImage(name=own.name, class_name=own.class_name, reason=reason, score=float(min(1.0, repeated.distance[row]))))
    return sorted(found, key=lambda suspect: (", which is in" not in suspect.reason, suspect.score))


class _Pictures:
    """The images as cleanvision reads a data set: decoded one by one."""

    def __init__(self, images: "Sequence[Looked]") -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, place: int) -> tuple[Image.Image, int]:
        from gda.data.images.codecs import decode
        from gda.data.sources.source import Slice

        record = self._images[place].record
        if isinstance(record.payload, Slice):
            return decode(record.payload.read(), name=record.name), 0
        return Image.fromarray(record.payload), 0


def _pictures(images: "Sequence[Looked]") -> list[SuspectImage]:
    """Dark, bright, blurred, empty and odd pictures, by cleanvision."""
    if np.median([image.side for image in images]) < _SMALL:
        return []
    from cleanvision import Imagelab

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        lab = Imagelab(torchvision_dataset=_Pictures(images), verbose=False)
        lab.find_issues({name: {} for name in _ISSUES}, n_jobs=1, verbose=False)
    sizes, found = Counter(image.record.class_name for image in images), []
    for issue, reason in _ISSUES.items():
        rows = lab.issues[lab.issues[f"is_{issue}_issue"]].sort_values(f"{issue}_score")
        affected = Counter(images[place].record.class_name for place in rows.index.tolist())
        for place, score in zip(rows.index.tolist(), rows[f"{issue}_score"].tolist()):
            record = images[place].record
            # Where much of a class is so, that is how the class looks.
            if affected[record.class_name] <= max(1, _RARE * sizes[record.class_name]):
                found.append(SuspectImage(name=record.name, class_name=record.class_name, reason=reason, score=float(score)))
    return found

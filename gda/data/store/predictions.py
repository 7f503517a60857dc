"""The file of predictions on the test split: evaluate writes it, the report plots it, and later candidates are compared with it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from gda.config.arm import Arm, place
from gda.errors import DataError
from gda.io.checked import checksum_of, write_checked
from gda.runtime.reading import parser, read_bytes

LABELS, _GROUPS, PROBABILITIES = "labels", "groups", "probabilities/"
TOP_K = 5
LARGEST_FILE = 1 << 32


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Classes predicted for every test image, best first: `top` maps (arm, seed) to int32 [images, k]; `labels` is int32 [images].

    `probabilities` maps the same to float32 [images, 2], of the best class and of the label; files of earlier versions have none.
    `groups` is int32 [images], equal for images of one patient or video; None where groups are unknown.
    """

    labels: NDArray[np.int32]
    top: Mapping[tuple[Arm, int], NDArray[np.int32]]
    test_digest: str
    probabilities: Mapping[tuple[Arm, int], NDArray[np.float32]] = field(default_factory=dict)
    groups: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        # One order, that of arms and seeds, for new predictions and for those read from a file: tables are written in it.
        for name in ("top", "probabilities"):
            held = getattr(self, name)
            object.__setattr__(self, name, {key: held[key] for key in sorted(held, key=_place)})

    def correct(self, arm: Arm, seeds: Sequence[int], *, within: int = 1) -> NDArray[np.bool_]:
        """Whether the label is among the first `within` predictions, [seeds, images]."""
        return np.stack([(self.top[arm, seed][:, :within] == self.labels[:, None]).any(axis=1) for seed in seeds])

    def seeds(self, arm: Arm) -> tuple[int, ...]:
        """Seeds for which `arm` has predictions, ascending."""
        return tuple(sorted(seed for name, seed in self.top if name == arm))

    def only(self, arm: Arm, seed: int) -> "Predictions":
        """The predictions of one classifier alone."""
        kept = {(arm, seed)}
        return replace(
            self,
            top={key: self.top[key] for key in kept},
            probabilities={key: self.probabilities[key] for key in kept & self.probabilities.keys()},
        )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write as safetensors; equal predictions give equal bytes."""
    tensors: dict[str, NDArray[np.generic]] = {LABELS: predictions.labels}
    tensors |= {} if predictions.groups is None else {_GROUPS: predictions.groups}
    tensors |= {f"{arm}/{seed}": np.ascontiguousarray(top) for (arm, seed), top in predictions.top.items()}
    tensors |= {f"{PROBABILITIES}{arm}/{seed}": np.ascontiguousarray(both) for (arm, seed), both in predictions.probabilities.items()}
    write_checked(path, save(tensors, metadata={"test_digest": predictions.test_digest}))


def read_predictions(path: Path) -> Predictions:
    """Read what `write_predictions` wrote. Raises `DataError` naming the file when it is missing, cut short, changed or something else."""
    what = "a whole file of test predictions"
    if checksum_of(read_bytes(path, limit=LARGEST_FILE)) == "":
        raise DataError(f"{path}: not {what} (its checksum differs)")
    with parser(path, what), safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = file.metadata() or {}
    if LABELS not in tensors or not metadata.get("test_digest"):
        raise DataError(f"{path}: not {what} (it lacks {LABELS if LABELS not in tensors else 'test_digest'})")
    labels, groups = tensors.pop(LABELS), tensors.pop(_GROUPS, None)
    top: dict[tuple[Arm, int], NDArray[np.int32]] = {}
    probabilities: dict[tuple[Arm, int], NDArray[np.float32]] = {}
    for name, tensor in tensors.items():
        of_probabilities = name.startswith(PROBABILITIES)
        (probabilities if of_probabilities else top)[_parse_name(name.removeprefix(PROBABILITIES), path)] = tensor
    _require_shapes(labels, groups, top, probabilities, path)
    return Predictions(labels=labels, top=top, test_digest=metadata["test_digest"], probabilities=probabilities, groups=groups)


def _place(key: tuple[Arm, int]) -> tuple[tuple[int, int, str], int]:
    return place(key[0]), key[1]


def _require_shapes(
    labels: np.ndarray, groups: np.ndarray | None, top: Mapping[Any, np.ndarray], probabilities: Mapping[Any, np.ndarray], path: Path
) -> None:
    n = len(labels) if labels.ndim == 1 else -1
    right = [labels.ndim == 1 and labels.dtype == np.int32, not probabilities.keys() - top.keys()]
    right += [] if groups is None else [groups.dtype == np.int32 and groups.shape == (n,)]
    right += [rows.dtype == np.int32 and rows.ndim == 2 and rows.shape[0] == n and rows.shape[1] > 0 for rows in top.values()]
    right += [pairs.dtype == np.float32 and pairs.shape == (n, 2) for pairs in probabilities.values()]
    if not all(right):
        raise DataError(f"{path}: not a whole file of test predictions (its arrays do not fit together)")


def _parse_name(name: str, path: Path) -> tuple[Arm, int]:
    arm, _, seed = name.rpartition("/")
    try:
        if re.fullmatch(r"[0-9]{1,18}", seed):
            return Arm(arm), int(seed)
    except ValueError:
        pass
    raise DataError(f"{path}: not a whole file of test predictions ({name[:80]!r} is no arm and seed)")

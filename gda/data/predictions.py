"""Predictions on the test split as a file: what evaluate writes, the report draws and a later candidate is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gda.errors import DataError
from gda.io.checked import checksum_of, write_checked
from gda.sections import Arm

LABELS, PROBABILITIES = "labels", "probabilities/"
TOP_K = 5


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Classes predicted for every test image, best first: `top` maps (arm, seed) to int32 [images, k]; `labels` is int32 [images].

    `probabilities` maps the same to float32 [images, 2], of the best class and of the label; files of before this was kept have none.
    """

    labels: NDArray[np.int32]
    top: Mapping[tuple[Arm, int], NDArray[np.int32]]
    test_digest: str
    probabilities: Mapping[tuple[Arm, int], NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # One order, that of arms and seeds, whether predicted just now or read again after a kill: tables are written in it.
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
        return Predictions(
            labels=self.labels,
            top={key: self.top[key] for key in kept},
            test_digest=self.test_digest,
            probabilities={key: self.probabilities[key] for key in kept & self.probabilities.keys()},
        )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write as safetensors; equal predictions give equal bytes."""
    tensors: dict[str, NDArray[np.generic]] = {LABELS: predictions.labels}
    tensors |= {f"{arm}/{seed}": np.ascontiguousarray(top) for (arm, seed), top in predictions.top.items()}
    tensors |= {f"{PROBABILITIES}{arm}/{seed}": np.ascontiguousarray(both) for (arm, seed), both in predictions.probabilities.items()}
    write_checked(path, save(tensors, metadata={"test_digest": predictions.test_digest}))


def read_predictions(path: Path) -> Predictions:
    """Read what `write_predictions` wrote. Raises `DataError` naming the file when it is missing, cut short, changed or something else."""
    try:
        if checksum_of(path.read_bytes()) == "":
            raise ValueError("its checksum differs")
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            digest = (file.metadata() or {})["test_digest"]
        labels = tensors.pop(LABELS)
        probabilities = {
            _parse_name(name.removeprefix(PROBABILITIES)): tensors.pop(name) for name in list(tensors) if PROBABILITIES in name
        }
        top = {_parse_name(name): tensor for name, tensor in tensors.items()}
        return Predictions(labels=labels, top=top, test_digest=digest, probabilities=probabilities)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a whole file of test predictions ({type(error).__name__}: {error})") from None


def _place(key: tuple[Arm, int]) -> tuple[int, int]:
    return list(Arm).index(key[0]), key[1]


def _parse_name(name: str) -> tuple[Arm, int]:
    arm, _, seed = name.rpartition("/")
    return Arm(arm), int(seed)

"""The digits of other writers that scikit-learn holds, as a demo set."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import datasets

from gda.config.sections import SnapshotConfig
from gda.data.sources import demo
from gda.data.sources.demo import read_demo
from gda.data.sources.source import Columns
from gda.data.store.snapshot import Snapshot
from gda.errors import MissingError, UsageError


def test_they_are_scikit_learns_digits() -> None:
    """Guards labels, orientation, polarity and that no ink is lost: each image is the 8x8 one, enlarged."""
    images, labels = demo.load_optical_digits()
    reference = datasets.load_digits()
    assert images.shape == (1797, 28, 28, 3)
    assert images.dtype == np.uint8
    assert (labels == reference.target).all()
    assert (images == images[..., :1]).all()
    assert images.max() == 255
    for image, small in zip(images[..., 0], reference.images, strict=True):
        assert image.sum() == pytest.approx(small.sum() * (255 / 16) * 2.5**2, rel=0.05)
        enlarged = np.kron(small, np.ones((5, 5)))[::2, ::2].ravel()
        windows = np.lib.stride_tricks.sliding_window_view(image, (20, 20)).reshape(81, 400)
        assert np.corrcoef(enlarged, windows)[0, 1:].max() > 0.85


def test_they_lie_as_the_other_demo_sets_digits_do() -> None:
    """Guards the pool's use: the centre of mass is where MNIST's is, within half a pixel, so that classifiers see digits in one place."""
    places = np.arange(28)
    for images, _ in (demo.load_digits(), demo.load_optical_digits()):
        grey = images[..., 0].astype(float)
        for axis in (1, 2):
            centres = (grey.sum(axis) * places).sum(1) / grey.sum((1, 2))
            assert np.abs(centres - 14).max() <= 0.5


def test_they_look_like_the_other_demo_set() -> None:
    """Guards orientation and polarity: of nearest neighbours in the other set most are of the same class; turned or negative, few are."""

    def rows(images: np.ndarray) -> np.ndarray:
        flat = images[..., 0].reshape(len(images), -1).astype(np.float32)
        centred = flat - flat.mean(1, keepdims=True)
        return centred / np.linalg.norm(centred, axis=1, keepdims=True)

    (ours, labels), (reference, reference_labels) = demo.load_optical_digits(), demo.load_digits()
    nearest = reference_labels[(rows(ours) @ rows(reference).T).argmax(1)]
    assert (nearest == labels).mean() > 0.7


def test_as_a_snapshot(take: Any) -> None:
    """Guards the set's content digest, its licence and that it is divided as any source without splits is."""
    snapshot = Snapshot.open(take("demo://digits").output)
    assert snapshot.index.licence == "CC-BY-4.0"
    assert snapshot.splits == ("train", "val", "test")
    assert len(snapshot.manifest()) == 1797
    assert snapshot.manifest()["pixel_sha256"].is_unique
    assert snapshot.digest == "29b192a74aa01de6b63d10cd2c55a01465dcdc34b96b5dd19730133685878f56"


def test_names_and_columns() -> None:
    """Guards against a misspelt name, and a column requested of arrays."""
    with pytest.raises(UsageError, match="accepted: demo://mnist, demo://digits"):
        read_demo("demo://digit", SnapshotConfig(), Columns())
    with pytest.raises(UsageError, match="demo://digits has no columns"):
        read_demo("demo://digits", SnapshotConfig(), Columns(split="split"))


def test_without_scikit_learns_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards an installation that lacks the file, or the package: one line that says what to install."""
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").touch()
    code = (
        "from gda.data.sources.demo import load_optical_digits\nfrom gda.errors import MissingError\n"
        "try:\n    load_optical_digits()\nexcept MissingError as error:\n    print(error)\n"
    )
    empty = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"], capture_output=True, text=True
    )
    assert empty.stdout == "demo://digits: scikit-learn does not hold its digits; install scikit-learn 1.5 or later\n"
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="install scikit-learn"):
        demo.load_optical_digits()


def test_reading_them_does_not_import_scikit_learn() -> None:
    """Guards the seconds that importing it takes."""
    code = "import sys; from gda.data.sources.demo import load_optical_digits; load_optical_digits(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

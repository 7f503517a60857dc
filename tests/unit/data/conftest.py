"""Tiny real sources: colour images that can be identified by their pixels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gda.artifacts.outcome import Outcome
from gda.config.load import Config
from gda.config.sections import SnapshotConfig
from gda.stages.snapshot import run

Picture = Callable[..., np.ndarray]


@pytest.fixture(autouse=True)
def _work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))


@pytest.fixture
def picture() -> Picture:
    """picture(number) -> uint8 [height, width, 3], different for every number."""

    def make(number: int, height: int = 10, width: int = 12) -> np.ndarray:
        return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture
def image_folder(tmp_path: Path, picture: Picture) -> Callable[..., Path]:
    """image_folder({"cat": 8, "hot_dog": 8}) -> a folder with class folders of so many PNGs; keys may be paths."""

    def make(counts: dict[str, int], name: str = "source", start: int = 0) -> Path:
        root = tmp_path / name
        number = start
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                Image.fromarray(picture(number)).save(root / folder / f"{index}.png")
                number += 1
        return root

    return make


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., Outcome]:
    """take(source, "out", val_fraction=...) -> the outcome of the snapshot stage."""

    def make(
        source: Path | str,
        out: str = "out",
        *,
        as_synthetic: bool = False,
        pool_of: Path | None = None,
        columns: tuple[str | None, str | None] = (None, None),
        **section: object,
    ) -> Outcome:
        config = Config(snapshot=SnapshotConfig.model_validate({"source": str(source), "max_bad_fraction": 0.0, **section}))
        split, group = columns
        kind = {"as_synthetic": as_synthetic, "pool_of": pool_of}
        return run(config, source=str(source), out=tmp_path / out, split_column=split, group_column=group, **kind)

    return make

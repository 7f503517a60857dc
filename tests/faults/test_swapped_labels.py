"""Labels swapped in a sound set of real digits: which part of them the validation page lists, at 1, 3 and 10%."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from validation_sets import SETTINGS, Item, changed, tiny_config, write_set

from gda.config.load import Config
from gda.stages import reference, validate

pytestmark = pytest.mark.learning
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = {"train": 60, "val": 40, "test": 8}
PER_CLASS = 60  # of the set whose labels are swapped
MOST_FALSE = 0.04  # of its images, listed though nobody touched them


def config() -> Config:
    """Two folds of a network that was trained long enough to know digits."""
    given = tiny_config()
    return given.model_copy(update={"reference": given.reference.model_copy(update={"num_train_steps": 250})})


def digits() -> dict[str, list[Item]]:
    """8 px digits doubled to 16, disjoint parts by name; in each, classes take turns."""
    found = load_digits()
    images = np.repeat(np.repeat(found.images * (255 / 16), 2, axis=1), 2, axis=2).astype(np.uint8)
    by_class = [np.repeat(images[found.target == label][..., None], 3, axis=3) for label in range(10)]
    parts, start = {}, 0
    for name, count in (SPLITS | {"synthetic": PER_CLASS}).items():
        meta = SETTINGS | {"generator_digest": "ab" * 32}
        parts[name] = [
            Item(rgb=by_class[label][start + i], label=NAMES[label], meta=meta | {"seed": 10 * i + label})
            for i in range(count)
            for label in range(10)
        ]
        start += count
    return parts


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Item]]]:
    """`real` and its `reference`, and a set of images that none of its classifiers has seen."""
    root, parts = tmp_path_factory.mktemp("digits"), digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(root / "work"))
        write_set(root / "real", {split: parts[split] for split in SPLITS}, kind="real", classes=NAMES)
        reference.run(config(), snapshot=root / "real", out=root / "reference")
        yield root, parts["synthetic"]


@pytest.mark.parametrize("share", [0.01, 0.03, 0.1])
def test_swapped_labels_are_listed(
    world: tuple[Path, list[Item]], share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nine in ten planted ones or more are in suspects.csv, with few others; those disputed with confidence are hardly ever others."""
    root, content = world
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    rng = np.random.default_rng(round(share * 1000))
    planted = sorted(rng.choice(len(content), round(share * len(content)), replace=False).tolist())
    others = [NAMES[(NAMES.index(content[i].label) + int(rng.integers(1, 10))) % 10] for i in planted]
    swapped = changed(content, planted, lambda item, place: Item(rgb=item.rgb, label=others[place], meta=item.meta))
    write_set(tmp_path / "set", {"train": swapped}, classes=NAMES)
    out = validate.run(
        config(), synthetic=tmp_path / "set", snapshot=root / "real", reference=root / "reference", out=tmp_path / "out"
    ).output
    suspects = pd.read_csv(out / "suspects.csv")
    wrong = {f"train-{i:04d}" for i in planted}
    disputed, sure = set(suspects["key"]), set(suspects.loc[suspects["confident"] == 1, "key"])
    rates = [f"recall {len(found & wrong) / len(wrong):.0%}, precision {len(found & wrong) / len(found):.0%}" for found in (disputed, sure)]
    with capsys.disabled():
        print(f"\nswapped labels, {share:.0%} of {len(content)}: disputed {rates[0]}; with confidence {rates[1]}")
    assert len(disputed & wrong) >= 0.9 * len(wrong)
    assert len(disputed - wrong) <= MOST_FALSE * len(content)
    assert len(sure & wrong) >= 0.5 * len(wrong)
    assert len(sure - wrong) <= 0.1 * len(sure)
    # The most confident come first: what is planted is at the top of the page.
    assert len(wrong & set(suspects["key"].head(len(wrong)))) >= 0.8 * len(wrong)

"""What gda init finds in images: sizes, colours, columns, repeated pictures, and labels that are wrong."""

import csv
import random
from pathlib import Path

import numpy as np
import pytest
from photographs import REGIONS, write_photographs
from PIL import Image

from gda.data.images.looks import Looks, looks_of
from gda.errors import DataError
from gda.project.columns import recognised_columns
from gda.project.images import Look, look_at_images
from gda.project.start import describe_start, start_project
from gda.project.suspects import label_probabilities
from gda.project.write import suspects_text


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """Photographs, and the names of 3% of them whose files were moved to another class."""
    folder, rng = tmp_path_factory.mktemp("photos"), random.Random(1)
    written = write_photographs(folder, per_class=45)
    swapped = set()
    for name in rng.sample(sorted(written), round(0.03 * len(written))):
        other = rng.choice([each for each in REGIONS if each != written[name]])
        moved = f"{other}/moved-{written[name]}-{Path(name).name}"
        (folder / name).rename(folder / moved)
        swapped.add(moved)
    Image.fromarray(np.full((64, 64, 3), 3, np.uint8)).save(folder / "sky" / "black.png")
    (folder / "sky" / "broken.png").write_bytes(b"no image")
    (folder / "petals" / "again.jpg").write_bytes((folder / "petals" / "005.jpg").read_bytes())
    return folder, swapped


@pytest.fixture(scope="module")
def look(photos: tuple[Path, set[str]]) -> Look:
    """What is found there."""
    return look_at_images(str(photos[0]))


def test_the_summary_counts_and_measures(look: Look) -> None:
    """Everything that decisions are made from."""
    found = look.summary
    assert list(found.classes) == sorted(REGIONS)
    assert 360 <= found.total <= 363
    assert found.side == (64, 64, 64)
    assert found.coloured
    assert found.photographs
    assert found.num_unreadable == 1
    assert found.num_near_duplicates >= 1
    assert not found.splits
    assert not found.columns


def test_nine_of_ten_swapped_labels_are_listed(photos: tuple[Path, set[str]], look: Look) -> None:
    """Before a GPU hour is spent on them; and the list is short enough for a person to read."""
    doubted = {suspect.name for suspect in look.suspects if suspect.reason.startswith("label in doubt")}
    swapped = photos[1]
    assert len(swapped) >= 10
    assert len(swapped & doubted) >= 0.9 * len(swapped)
    assert len(doubted) <= 0.08 * look.summary.total


def test_odd_pictures_are_listed_with_the_reason(look: Look) -> None:
    """A black picture among the sky, and a picture that comes twice."""
    reasons = {(suspect.name, suspect.reason.split(":")[0].split(" as ")[0]) for suspect in look.suspects}
    assert ("sky/black.png", "very dark") in reasons
    assert any(name in ("petals/again.jpg", "petals/005.jpg") and reason == "nearly the same" for name, reason in reasons)
    assert sum(reason == "very dark" for name, reason in reasons if name.startswith("uniform/")) <= 5, "a dark class is not suspect"


def test_the_list_is_a_table(look: Look) -> None:
    """`suspects.csv` is read by any spreadsheet."""
    rows = list(csv.DictReader(suspects_text(look.suspects).splitlines()))
    assert len(rows) == len(look.suspects)
    assert all(row["file"] and row["class"] and row["reason"] and 0 <= float(row["score"]) <= 1 for row in rows)


def test_clean_labels_raise_few_doubts() -> None:
    """Clear classes with true labels: no one is sent after images that are right."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(4), 40)
    tones = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [200, 200, 40]])
    images = (tones[labels][:, None, None] + rng.normal(0, 20, (160, 32, 32, 3))).clip(0, 255).astype(np.uint8)
    probabilities = label_probabilities(images, labels)
    assert probabilities.shape == (160, 4)
    assert (probabilities.argmax(1) == labels).all()


@pytest.mark.parametrize(
    ("side", "coloured", "photographs"), [(28, False, False), (28, True, False), (32, True, True), (40, False, False), (48, False, True)]
)
def test_what_counts_as_photographs(side: int, coloured: bool, photographs: bool) -> None:
    """The rule by which the demo's base and extractor are refused."""
    tone = (200, 60, 60) if coloured else (90, 90, 90)
    found = looks_of([np.full((side, side + 9, 3), tone, np.uint8)] * 3)
    assert found == Looks(side=side, coloured=coloured)
    assert found.photographs == photographs


def test_columns_are_recognised_by_name(tmp_path: Path) -> None:
    """A patient's column that is overlooked would leak; a label called label needs no setting."""
    (tmp_path / "metadata.csv").write_text("file_name,diagnosis,Patient_ID,split\na.png,x,1,train\n")
    assert recognised_columns(str(tmp_path)).by_use == {"label": "diagnosis", "group": "Patient_ID", "split": "split"}
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "label": "x", "video": "v"}\n')
    assert recognised_columns(str(tmp_path)).by_use == {"group": "video"}
    assert recognised_columns("demo://mnist").by_use == {}
    assert recognised_columns(str(tmp_path / "nowhere")).by_use == {}


def test_a_folder_without_readable_images_is_refused(tmp_path: Path) -> None:
    """Said at once with the number of files."""
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"text")
    with pytest.raises(DataError, match="none of 2 images can be read"):
        look_at_images(str(tmp_path))


def test_a_project_is_written_and_described(photos: tuple[Path, set[str]], tmp_path: Path) -> None:
    """The files, the account on the terminal, and what is missing for photographs on a machine without weights."""
    started = start_project(str(photos[0]), tmp_path / "project", goal="quick")
    assert {path.name for path in (tmp_path / "project").iterdir()} == {
        "params.yaml",
        "dvc.yaml",
        ".dvcignore",
        ".gitignore",
        "suspects.csv",
    }
    text = "\n".join(describe_start(started))
    for words in ("in 8 classes", "64 px, in colour", "label in doubt", "MISSING   the weights of", "next: cd "):
        assert words in text
    assert f"source: {photos[0]}" in (tmp_path / "project" / "params.yaml").read_text()


def test_images_in_the_project_are_named_relative_to_it(tmp_path: Path) -> None:
    """So that the folder can be moved or cloned as a whole."""
    write_photographs(tmp_path / "images", per_class=4, classes=("sky", "petals"))
    start_project(str(tmp_path / "images"), tmp_path)
    assert "source: images\n" in (tmp_path / "params.yaml").read_text()


def test_a_wrong_path_is_answered_by_what_the_user_did(tmp_path: Path) -> None:
    """A folder of images where a snapshot is needed, a folder that is not there, an output that was not finished."""
    from gda.data.store.snapshot import Snapshot

    write_photographs(tmp_path / "photos", per_class=1, classes=("sky",))
    with pytest.raises(DataError, match=r"is a folder of images, not a snapshot; freeze it first: gda snapshot .*photos --out data/real"):
        Snapshot.open(tmp_path / "photos")
    with pytest.raises(DataError, match="nowhere: no such folder; expected an output of gda snapshot"):
        Snapshot.open(tmp_path / "nowhere")
    (tmp_path / "half").mkdir()
    with pytest.raises(DataError, match=r"half/snapshot\.json: not found: .*half is no output of gda snapshot or gda sample, or one that"):
        Snapshot.open(tmp_path / "half")

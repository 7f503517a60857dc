"""gda show: the images of a snapshot on one page, suspects first, the test split closed."""

import base64
import io
import re
from pathlib import Path

import pytest
from photographs import write_photographs
from PIL import Image

from gda.cli.main import main
from gda.data.sources.source import path_key
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError
from gda.project.show import read_suspects, render_images

FIGURE = re.compile(
    r'<figure class="(?P<classes>[^"]*)"><img alt="(?P<key>[^,"]*), [^"]*" src="data:image/(?P<kind>\w+);base64,(?P<data>[^"]*)"'
)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of 3 classes with 20 photographs each, one of which has a name that HTML would read as another."""
    root = tmp_path_factory.mktemp("show")
    write_photographs(root / "photos", per_class=20, side=300, classes=("sky", "petals", "face"))
    (root / "photos" / "face").rename(root / "photos" / "face &amp; hat")
    assert main(["snapshot", str(root / "photos"), "--out", str(root / "real"), "--quiet"]) == 0
    return root / "real"


def figures(page: str) -> list[dict[str, str]]:
    """Every image on the page, in order."""
    return [match.groupdict() for match in FIGURE.finditer(page)]


def test_images_of_every_class_but_none_of_the_test_split(real: Path) -> None:
    """Looking at test images is an opening of the test split, which a page must not be."""
    snapshot = Snapshot.open(real)
    shown = figures(render_images(snapshot, per_class=100))
    rows = snapshot.manifest()
    assert {each["key"] for each in shown} == set(rows[rows["split"] != "test"]["key"])
    assert {each["classes"] for each in shown} == {"train", "val"}
    assert "test images are not shown" in render_images(snapshot)


def test_as_many_as_requested_and_the_same_ones_each_time(real: Path) -> None:
    """A page of a million images is none; and two pages of one set can be compared."""
    snapshot = Snapshot.open(real)
    page = render_images(snapshot, per_class=4)
    assert len(figures(page)) == 12
    assert page == render_images(snapshot, per_class=4)
    assert "not shown</small>" in page


def test_suspects_come_first_with_the_reason(real: Path, tmp_path: Path) -> None:
    """Of their class all of them, however few other images are shown; from the list of gda init by file, of gda validate by key."""
    rows = Snapshot.open(real).manifest("train")
    key = rows[rows["class"] == "petals"]["key"].iloc[3]
    by_file = tmp_path / "suspects.csv"
    number = next(number for number in range(20) if path_key(f"petals/{number:03d}.jpg") == key)
    by_file.write_text(f'file,class,reason,score\npetals/{number:03d}.jpg,petals,"label in doubt: looks like sky",0.1\n')
    by_key = tmp_path / "labels.csv"
    by_key.write_text(f"key,class,seen_as,probability\n{key},petals,sky,0.9\n")
    for table, reason in ((by_file, "label in doubt: looks like sky"), (by_key, "looks like sky")):
        page = render_images(Snapshot.open(real), per_class=1, suspects=read_suspects(table))
        suspects = [each for each in figures(page) if "suspect" in each["classes"]]
        assert [each["key"] for each in suspects] == [key]
        section = page[page.index(">petals <small>") :]
        assert figures(section)[0]["key"] == key
        assert f"<b>{reason}</b>" in page
        assert len(figures(page)) == 4


def test_the_page_is_whole_by_itself(real: Path) -> None:
    """No script, nothing from elsewhere, names as text; images are the stored ones, at most 224 pixels on the shorter side."""
    page = render_images(Snapshot.open(real), per_class=2)
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "face &amp;amp; hat" in page
    assert "face &amp; hat" not in page
    for each in figures(page):
        assert min(Image.open(io.BytesIO(base64.b64decode(each["data"]))).size) == 224


@pytest.mark.parametrize("text", ["", "name,why\na,b\n", "file,reason\na.png,\n", "key,reason\n,x\n"])
def test_another_table_is_refused(tmp_path: Path, text: str) -> None:
    """Silence would look like a clean set; an empty list is one."""
    table = tmp_path / "table.csv"
    table.write_text(text)
    if not text:
        assert read_suspects(table) == {}
        return
    with pytest.raises(DataError, match="expected columns file and reason"):
        read_suspects(table)


def test_the_command_writes_next_to_the_snapshot(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not into it: a snapshot's folder holds nothing but what its fingerprint lists."""
    assert main(["show", str(real), "--per-class", "1"]) == 0
    assert capsys.readouterr().out.strip() == f"show: wrote {real.with_name('real.html')}"
    assert main(["verify", str(real)]) == 0
    assert main(["show", str(real), "--per-class", "-1"]) == 2
    assert main(["show", str(real.parent / "photos")]) == 3
    assert "freeze it first: gda snapshot" in capsys.readouterr().err

"""A sample of `make fuzz`: mutated files end in one line for the user, never in an internal error, a hang or all memory."""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from fuzz_formats import Format, quick_formats
from fuzz_runner import LEAST_PARSED, Count, run_limited

from gda.cli.main import main

pytestmark = pytest.mark.fuzz

INPUTS = 60
NAMES = (
    "fingerprint", "classifier card", "generator card", "verdict", "metrics", "snapshot.json", "params YAML", "prompts YAML",
    "class map JSON", "class map CSV", "quota CSV", "manifest parquet",
    "predictions", "statistics npz", "own shards", "image files", "foreign tars",
    "source npz", "ImageNet val.txt", "ImageNet ground truth", "ImageNet meta.mat", "ImageNet map file", "ImageNet synsets", "timm config",
)  # fmt: skip


@cache
def by_name() -> dict[str, Format]:
    return {form.name: form for form in quick_formats()}


def test_every_quick_format_is_sampled() -> None:
    """Protects a format that is added from being left out here."""
    assert tuple(by_name()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_nothing_escapes_a_reader(name: str) -> None:
    """Protects the exit codes: a file that is not what it should be is the user's to mend, and none takes all time or memory."""
    count = run_limited(by_name()[name], INPUTS, number=1)
    assert count.inputs >= INPUTS
    assert count.escapes == {}
    assert count.fine, count.row()


def test_a_defect_behind_the_boundary_is_no_fault_of_the_file() -> None:
    """Negative control: the boundary is no blanket, so that a defect of ours in what reads a file's content is still seen."""
    form = by_name()["fingerprint"]

    def defect(folder: Path) -> object:
        form.read(folder)
        return {}["a defect"]

    count = run_limited(replace(form, read=_after_the_seeds(form, defect)), INPUTS, number=1)
    assert any(name.startswith("KeyError") for name in count.escapes)
    assert not count.fine


def test_a_defect_behind_the_boundary_exits_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The command line says so too: a valid file and a defect in what is made of it is exit 1, a file that is none exit 3."""
    (tmp_path / "fingerprint.json").write_text('{"stage": "snapshot", "config": {}}')
    assert main(["lineage", str(tmp_path)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("gda.io.up_to_date.parse_fingerprint", lambda *_: {}["a defect"])
        assert main(["lineage", str(tmp_path)]) == 1
        assert "internal error: KeyError" in capsys.readouterr().err
    (tmp_path / "fingerprint.json").write_text('{"stage": 1, "config": {}}')
    assert main(["lineage", str(tmp_path)]) == 3


def test_a_reader_that_hangs_or_dies_is_counted() -> None:
    """Negative control: the counting sees a reader that takes too long, and one that takes the process with it."""
    form = by_name()["class map CSV"]
    slow = run_limited(replace(form, read=_after_the_seeds(form, _for_ever)), 1)
    assert slow.hangs == 1
    dying = run_limited(replace(form, read=_after_the_seeds(form, lambda _: os._exit(7))), 1)
    assert dying.escapes == {"process ended with 7": 1}
    assert not Count(name="none", inputs=100, parsed=int(100 * LEAST_PARSED) - 1).fine


def _for_ever(_: Path) -> None:
    while True:
        pass


def _after_the_seeds(form: Format, read: object) -> object:
    """`read`, once every seed was read as it should be."""
    left = [len(form.seeds)]

    def one(folder: Path) -> object:
        left[0] -= 1
        return form.read(folder) if left[0] >= 0 else read(folder)  # type: ignore[operator]

    return one

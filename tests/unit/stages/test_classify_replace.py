"""`gda classify --replace`: an arm's folder becomes what is requested, trained no more than that takes; what is not ours stays."""

import json
from pathlib import Path

import pytest
from classify_world import verdict_on, write_set
from trees import tree

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.document import read_document
from gda.cli import main as cli
from gda.io.atomic import work_root

SETTINGS = {
    "model": "resnetv2_18",
    "model_args_json": '{"layers": [1], "channels": [16], "stem_chs": 8}',
    "image_size": 16,
    "num_train_steps": 4,
    "mixed_num_train_steps": 5,
    "batch_size": 12,
    "warmup_steps": 1,
    "arms": ["real", "real+synthetic"],
}
REAL = Path("c/real")


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real and synthetic images and a verdict, in the folder that commands run in, with three classifiers of the arm real."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gda.bookkeeping.log_kept", lambda: None)  # seconds a test, and no part of this
    real = write_set(tmp_path / "real", "real", {"train": 4, "val": 4})
    verdict_on(real, write_set(tmp_path / "synthetic", "synthetic", {"train": 4}, seed=1), tmp_path / "verdict.json")
    (tmp_path / "params.yaml").write_text(json.dumps({"classify": SETTINGS}))
    assert classify("real", [0, 1, 2]) == [0, 1, 2]
    return tmp_path


def command(arm: str, seeds: list[int], *words: str, out: Path | None = None) -> int:
    sets = ["--snapshot", "real", "--synthetic", "synthetic", "--verdict", "verdict.json"]
    settings = ["--set", f"classify.seeds={seeds}", "--set", "promote.min_seeds=2"]
    return cli.main(["classify", *sets, "--arm", arm, "--out", str(out or f"c/{arm}"), "--quiet", *settings, *words])


def classify(arm: str, seeds: list[int], *words: str) -> list[int]:
    """Make the arm's folder what is requested; the seeds that were trained, by the weights that were written again."""
    before = written(Path("c") / arm)
    assert command(arm, seeds, "--replace", *words) == 0
    after = written(Path("c") / arm)
    assert sorted(after) == sorted(seeds)
    return sorted(seed for seed, times in after.items() if before.get(seed) != times)


def written(folder: Path) -> dict[int, tuple[int, int]]:
    """Inode and time of each seed's weights: neither renaming nor reading changes them, and training gives both again."""
    found = {int(path.parent.name): path.stat() for path in folder.glob("[0-9]*/classifier.json")}
    return {seed: (stat.st_ino, stat.st_mtime_ns) for seed, stat in found.items()}


def test_one_more_seed_trains_that_seed() -> None:
    """Protects the hours of the others; requested again, nothing is trained."""
    assert classify("real", [0, 1, 2, 3]) == [3]
    assert classify("real", [0, 1, 2, 3]) == []


def test_another_setting_trains_all() -> None:
    """The negative control: a kept classifier is one that was made as it would be now, and no other."""
    assert classify("real", [0, 1, 2], "--set", "classify.num_train_steps=5") == [0, 1, 2]
    assert {read_document(path, ClassifierCard).num_train_steps for path in REAL.glob("*/classifier.json")} == {5}


def test_a_setting_of_other_arms_trains_none() -> None:
    """Protects an arm from settings that it does not have."""
    assert classify("real", [0, 1, 2], "--set", "classify.ratio=2.0") == []


def test_a_seed_that_is_not_requested_goes(capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder is gone, which is reported; without the flag it stays."""
    assert command("real", [0, 2]) == 0
    assert sorted(written(REAL)) == [0, 1, 2]
    assert classify("real", [0, 2], "--json") == []
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["summary"] == "removed from c/real what this command does not make: seed 1"


def test_what_gave_way_is_not_trained_again() -> None:
    """Protects the way back, to earlier settings and to an earlier seed: by digest the same, and nothing is left in the work folder."""
    first, other = tree(REAL), ["--set", "classify.num_train_steps=5"]
    for there in (lambda: command("real", [0, 1, 2], "--replace", *other), lambda: command("real", [0, 2], "--replace")):
        before = written(REAL)
        assert there() == 0
        assert tree(REAL) != first
        assert command("real", [0, 1, 2], "--replace") == 0
        assert (tree(REAL), written(REAL)) == (first, before)
    assert list((work_root() / "work").iterdir()) == []


def test_a_refused_set_replaces_classifiers_by_its_reasons_and_back(world: Path) -> None:
    """Protects the way from an accepted set to a refused one, and back without training."""
    assert classify("real+synthetic", [0, 1]) == [0, 1]
    before = written(Path("c/real+synthetic"))
    verdict_on(world / "real", world / "synthetic", world / "verdict.json", reasons=("FID is 9",))
    assert classify("real+synthetic", [0, 1]) == [0, 1]
    assert not list(Path("c/real+synthetic").glob("*/model.safetensors"))
    verdict_on(world / "real", world / "synthetic", world / "verdict.json")
    assert command("real+synthetic", [0, 1], "--replace") == 0
    assert written(Path("c/real+synthetic")) == before


@pytest.mark.parametrize("name", ["notes.txt", "0/notes.txt", "1/.notes", "7/notes.txt", "other/classifier.json", "00/classifier.json"])
def test_files_of_others_stay(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects what a user keeps in or next to classifiers: refused before anything is trained, in words, wherever it lies."""
    (REAL / name).parent.mkdir(exist_ok=True)
    (REAL / name).write_text("years of work")
    before = tree(REAL)
    assert command("real", [0, 3], "--replace", "--set", "classify.num_train_steps=5") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"c/real/{name.split('/')[0]}" in message
    assert "move it away, or choose another --out" in message
    assert tree(REAL) == before


def test_hidden_files_next_to_seeds_are_left(world: Path) -> None:
    """Protects what other tools keep there, which is neither in the way nor removed."""
    (REAL / ".DS_Store").write_text("x")
    assert classify("real", [1, 2]) == []
    assert {path.name for path in REAL.iterdir()} == {"1", "2", ".DS_Store"}


def test_a_damaged_card_stays(capsys: pytest.CaptureFixture[str]) -> None:
    """Protects from removing what nobody can tell any more."""
    (REAL / "1/classifier.json").write_text("{}")
    before = tree(REAL)
    assert command("real", [0, 2], "--replace") == 3
    assert "c/real/1/classifier.json: damaged or exchanged" in capsys.readouterr().err
    assert tree(REAL) == before


def test_another_arms_folder_stays(capsys: pytest.CaptureFixture[str]) -> None:
    """Protects from a slip in --out: the classifiers of one arm never give way to those of another."""
    before = tree(REAL)
    assert command("real+synthetic", [0, 1], "--replace", out=REAL) == 2
    assert "c/real/0: exists and is of arm real, not real+synthetic" in capsys.readouterr().err
    assert command("real", [0, 1], "--replace", "--seed", "1", out=REAL / "0") == 2
    assert "is of seed 0, not 1" in capsys.readouterr().err
    assert tree(REAL) == before


def test_one_seed_alone_is_replaced() -> None:
    """With --seed, --out is that classifier's own folder, and the others stay."""
    before = written(REAL)
    assert command("real", [0, 1], "--replace", "--seed", "0", "--set", "classify.num_train_steps=5", out=REAL / "0") == 0
    after = written(REAL)
    assert (before.pop(0) != after.pop(0), before) == (True, after)


def test_without_the_flag_nothing_gives_way(capsys: pytest.CaptureFixture[str]) -> None:
    """Protects a user who names a folder of earlier results by hand."""
    before = tree(REAL)
    assert command("real", [0, 1], "--set", "classify.num_train_steps=5") == 2
    assert "config.num_train_steps: 4 -> 5" in capsys.readouterr().err
    assert tree(REAL) == before

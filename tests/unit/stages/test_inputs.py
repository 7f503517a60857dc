"""What fields name outside the job is compared by content, so that `dvc repro` sees a change and nothing else."""

import json
import os
import shutil
from pathlib import Path

import pytest

from gda.config.load import Config, parse_config
from gda.errors import DataError
from gda.flow import GRAPH, WATCHED
from gda.stages import inputs


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with two files in `source/cat`, long settled."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    for name in ("a.png", "b.png"):
        write(tmp_path / "source" / "cat" / name, name.encode())
    return tmp_path


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def config(**sections: dict[str, object]) -> Config:
    return parse_config({"snapshot": {"source": "source"}} | sections, where="test")


def digests(**sections: dict[str, object]) -> dict[str, dict[str, dict[str, str]]]:
    out = inputs.run(config(**sections), out=Path("inputs")).output
    return {path.stem: json.loads(path.read_text()) for path in out.iterdir()}


def source_digest() -> str:
    return digests()["source"]["snapshot.source"]["digest"]


def test_every_role_of_the_graph_has_its_file() -> None:
    """DVC's stages depend on these files, so each role that the graph names is written, and no other."""
    assert set(digests()) == set(WATCHED)
    assert {role for node in GRAPH for role in node.watched} == set(WATCHED)


@pytest.mark.parametrize("change", ["new image", "other pixels", "other pixels, same size and time", "renamed", "removed"])
def test_a_change_of_the_source_is_seen(folder: Path, change: str) -> None:
    """Protects from training on yesterday's images: each way in which a folder's content can change gives another digest."""
    path = folder / "source/cat/a.png"
    os.utime(path, ns=(1, 1))
    before = source_digest()
    match change:
        case "new image":
            write(folder / "source/cat/c.png", b"c")
        case "other pixels":
            write(path, b"longer than before")
        case "other pixels, same size and time":
            write(path, b"A.png")
            os.utime(path, ns=(1, 1))
        case "renamed":
            path.rename(path.with_name("z.png"))
        case "removed":
            path.unlink()
    assert source_digest() != before


def test_touching_and_copying_change_nothing(folder: Path) -> None:
    """Times, places and other tools' folders are no content: `dvc repro` stays up to date, and the file is not even written again."""
    before = source_digest()
    written = (folder / "inputs/source.json").stat().st_mtime_ns
    os.utime(folder / "source/cat/a.png")
    write(folder / "source/.ipynb_checkpoints/cat/a.png", b"copy")
    shutil.move(folder / "source", folder / "elsewhere")
    shutil.copytree(folder / "elsewhere", folder / "source")
    assert source_digest() == before
    assert (folder / "inputs/source.json").stat().st_mtime_ns == written


def test_settled_files_are_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million images are not read again by every `dvc repro`: known files cost a look at their times."""
    monkeypatch.setattr(inputs, "_SETTLED_NS", -10_000_000_000)
    before, read, hashed = source_digest(), [], inputs.sha256_of
    monkeypatch.setattr(inputs, "sha256_of", lambda path: read.append(path.name) or hashed(path))
    assert source_digest() == before
    assert read == []
    write(folder / "source/cat/b.png", b"other")
    assert source_digest() != before
    assert read == ["b.png"]


def test_a_look_at_some_roles_keeps_the_digests_of_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that goes on from a run looks at a part: the next run must not read a whole source again for that."""
    monkeypatch.setattr(inputs, "_SETTLED_NS", -10_000_000_000)
    before, read, hashed = source_digest(), [], inputs.sha256_of
    monkeypatch.setattr(inputs, "sha256_of", lambda path: read.append(path.name) or hashed(path))
    assert inputs.contents_of(config(), ["sets"]) == {"sets": {}}
    assert source_digest() == before
    assert read == []


def test_a_damaged_memory_of_digests_is_done_without(folder: Path) -> None:
    """The kept digests only save time: what is no JSON object, or of another form, is hashed again."""
    before = source_digest()
    for text in ("{", "[]", '{"x": 1}', json.dumps({str(folder / "source/cat/a.png"): ["x"]})):
        write(folder / "work/inputs.json", text.encode())
        assert source_digest() == before


def test_a_changed_local_base_is_seen(folder: Path) -> None:
    """Other weights in the same folder are another base: fine-tuning must not stay up to date."""
    write(folder / "base/unet/model.safetensors", b"one")
    before = digests(finetune={"base": "base"})["base"]
    write(folder / "base/unet/model.safetensors", b"two")
    assert digests(finetune={"base": "base"})["base"] != before


def test_files_that_fields_name_are_seen(folder: Path) -> None:
    """Prompt files, quotas and robustness sets are inputs as well; each field is listed by its name."""
    for name in ("prompts.yaml", "quota.csv", "sets/v2/cat/1.png", "map.csv"):
        write(folder / name, b"1")
    sections: dict[str, dict[str, object]] = {
        "finetune": {"prompt_file": "prompts.yaml"},
        "sample": {"quota": "table", "quota_file": "quota.csv"},
        "evaluate": {"sets": {"v2": "sets/v2"}, "class_map": "map.csv"},
    }
    before = digests(**sections)
    assert set(before["sets"]) == {"evaluate.sets.v2", "evaluate.class_map"}
    write(folder / "sets/v2/cat/1.png", b"2")
    after = digests(**sections)
    assert {role for role in WATCHED if before[role] != after[role]} == {"sets"}


def test_what_is_missing_is_named_before_dvc_removes_anything() -> None:
    """A path that is gone stops `dvc repro` here, with its field, and not in a stage whose outputs DVC has removed already."""
    with pytest.raises(DataError, match=r"snapshot\.source: gone: no such file, folder or pattern of files"):
        digests(snapshot={"source": "gone"})
    with pytest.raises(DataError, match=r"evaluate\.sets\.v2: nowhere"):
        digests(evaluate={"sets": {"v2": "nowhere"}})


def test_a_pattern_of_tars_is_every_tar(folder: Path) -> None:
    """Braces and stars mean files, and each of them counts."""
    for name in ("train-000.tar", "train-001.tar"):
        write(folder / "tars" / name, name.encode())
    before = [digests(snapshot={"source": source})["source"] for source in ("tars/train-{000..001}.tar", "tars/train-*.tar")]
    write(folder / "tars/train-001.tar", b"other")
    after = [digests(snapshot={"source": source})["source"] for source in ("tars/train-{000..001}.tar", "tars/train-*.tar")]
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_weights_of_a_training_of_your_own_are_watched(folder: Path) -> None:
    """Protects from classifiers of yesterday's weights: a training may start from a file that no other arm reads."""
    write(folder / "weights.safetensors", b"1")
    trainings = {"own": {"pretrained": "weights.safetensors"}, "timm": {"pretrained": "timm"}, "none": {}}
    found = digests(classify={"trainings": trainings})["pretrained"]
    assert list(found) == ["classify.trainings.own.pretrained"]
    write(folder / "weights.safetensors", b"2")
    assert digests(classify={"trainings": trainings})["pretrained"] != found

"""`gda lineage` lists what an output was made from and where each input lies; unrelated files nearby do not matter."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from gda.artifacts.fingerprint import Fingerprint
from gda.cli import main as cli


@pytest.mark.parametrize("damaged", ["{", "[]", '{"digest": 1}', ""])
def test_damaged_cards_nearby_do_not_hide_an_origin(tmp_path, capsys, damaged):
    """An unreadable card near the output is skipped; the matching one is named by its folder."""
    fingerprint = Fingerprint(stage="sample", config={}, inputs={"generator": "ab" * 32})
    for folder, text in (("models/generator", json.dumps({"digest": "ab" * 32})), ("models/broken", damaged)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "generator.json").write_text(text)
    (tmp_path / "data/synthetic").mkdir(parents=True)
    (tmp_path / "data/synthetic/fingerprint.json").write_text(json.dumps(asdict(fingerprint)))
    assert cli.main(["lineage", str(tmp_path / "data/synthetic")]) == 0
    printed = capsys.readouterr().out
    assert "made by sample" in printed
    assert "models/generator" in printed


def test_folders_that_disappear_during_the_search_do_not_matter(tmp_path, monkeypatch, capsys):
    """Other programs have temporary folders near an output: one that disappears during the search is no error."""
    _output(tmp_path / "data/real", Fingerprint(stage="snapshot", config={}, inputs={"source": "ab" * 32}))
    going, scan, gone = tmp_path / "going", os.scandir, []

    def scandir(path):
        if isinstance(path, str | Path) and Path(path).resolve() == going and going.exists():
            shutil.rmtree(going)
            gone.append(path)
        return scan(path)

    (going / "inner").mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", scandir)
    assert cli.main(["lineage", str(tmp_path / "data/real")]) == 0
    assert gone
    assert "made by snapshot" in capsys.readouterr().out


def _output(folder, fingerprint: Fingerprint, **card: object) -> None:
    folder.mkdir(parents=True)
    (folder / "fingerprint.json").write_text(json.dumps(asdict(fingerprint)))
    for name, content in card.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_the_whole_chain_is_followed_with_full_digests(tmp_path, capsys, monkeypatch):
    """From a classifier back to the images: the accepted copy of a set is never listed as an input of that set or of its verdict."""
    monkeypatch.chdir(tmp_path)
    real, made, images, base, weights = ("ab" * 32, "cd" * 32, "ef" * 32, "12" * 32, "34" * 32)
    _output(tmp_path / "data/real", Fingerprint(stage="snapshot", config={}, inputs={"source": images}), snapshot={"digest": real})
    tuned = Fingerprint(stage="finetune", config={}, inputs={"snapshot": real, "base": base})
    _output(tmp_path / "models/generator", tuned, generator={"digest": weights, "source": "demo://glyphs"})
    sampled = Fingerprint(stage="sample", config={}, inputs={"generator": weights, "snapshot": real})
    _output(tmp_path / "data/synthetic", sampled, snapshot={"digest": made})
    validation = Fingerprint(stage="validate", config={}, inputs={"synthetic": made, "snapshot": real})
    _output(tmp_path / "reports/validation", validation, verdict={"passed": True})
    accepted = Fingerprint(stage="accepted", config={}, inputs={"synthetic": made, "validation": validation.digest})
    _output(tmp_path / "data/accepted", accepted, snapshot={"digest": made})
    trained = Fingerprint(stage="classify", config={}, inputs={"snapshot": real, "synthetic": made})
    _output(tmp_path / "models/classifiers/real+synthetic-0", trained, classifier={"digest": "56" * 32})
    assert cli.main(["lineage", "models/classifiers/real+synthetic-0"]) == 0
    printed = capsys.readouterr().out
    assert f"{made}  data/accepted, made by validate" in printed
    assert f"{validation.digest}  reports/validation, made by validate" in printed
    assert f"{made}  data/synthetic, made by sample" in printed
    assert f"{weights}  models/generator, made by finetune" in printed
    assert f"{base}  demo://glyphs" in printed
    assert images in printed
    assert cli.main(["lineage", "data/accepted", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {one["role"]: one["path"].removeprefix(f"{tmp_path}/") for one in content["lineage"]} == {
        "synthetic": "data/synthetic",
        "validation": "reports/validation",
    }
    assert "data/accepted" not in json.dumps(content["lineage"])

"""`gda lineage` says what an output was made from and where that lies, whatever else lies around."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from gda.artifacts.fingerprint import Recipe
from gda.cli import main as cli


@pytest.mark.parametrize("damaged", ["{", "[]", '{"digest": 1}', ""])
def test_damaged_cards_nearby_do_not_hide_an_origin(tmp_path, capsys, damaged):
    """A card that cannot be read, beside the output, is passed over; the one that matches is named by its folder."""
    recipe = Recipe(stage="sample", config={}, inputs={"generator": "ab" * 32})
    for folder, text in (("models/generator", json.dumps({"digest": "ab" * 32})), ("models/broken", damaged)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "generator.json").write_text(text)
    (tmp_path / "data/synthetic").mkdir(parents=True)
    (tmp_path / "data/synthetic/recipe.json").write_text(json.dumps(asdict(recipe)))
    assert cli.main(["lineage", str(tmp_path / "data/synthetic")]) == 0
    said = capsys.readouterr().out
    assert "made by sample" in said
    assert "models/generator" in said


def test_folders_that_go_away_meanwhile_do_not_matter(tmp_path, monkeypatch, capsys):
    """Temporary folders of other programs lie around an output too: one that goes while it is looked for is no error."""
    _output(tmp_path / "data/real", Recipe(stage="snapshot", config={}, inputs={"source": "ab" * 32}))
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


def _output(folder, recipe: Recipe, **card: object) -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))
    for name, content in card.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_the_whole_chain_is_followed_with_full_digests(tmp_path, capsys, monkeypatch):
    """From a classifier back to the images: a judged copy of a set is never listed as what that set, or its verdict, was made from."""
    monkeypatch.chdir(tmp_path)
    real, made, images, base, weights = ("ab" * 32, "cd" * 32, "ef" * 32, "12" * 32, "34" * 32)
    _output(tmp_path / "data/real", Recipe(stage="snapshot", config={}, inputs={"source": images}), snapshot={"digest": real})
    tuned = Recipe(stage="finetune", config={}, inputs={"snapshot": real, "base": base})
    _output(tmp_path / "models/generator", tuned, generator={"digest": weights, "source": "demo://glyphs"})
    drawn = Recipe(stage="sample", config={}, inputs={"generator": weights, "snapshot": real})
    _output(tmp_path / "data/synthetic", drawn, snapshot={"digest": made})
    judging = Recipe(stage="validate", config={}, inputs={"synthetic": made, "snapshot": real})
    _output(tmp_path / "reports/validation", judging, verdict={"passed": True})
    judged = Recipe(stage="accepted", config={}, inputs={"synthetic": made, "validation": judging.digest})
    _output(tmp_path / "data/accepted", judged, snapshot={"digest": made})
    trained = Recipe(stage="classify", config={}, inputs={"snapshot": real, "synthetic": made})
    _output(tmp_path / "models/classifiers/real+synthetic-0", trained, classifier={"digest": "56" * 32})
    assert cli.main(["lineage", "models/classifiers/real+synthetic-0"]) == 0
    said = capsys.readouterr().out
    assert f"{made}  data/accepted, made by judged" in said
    assert f"{judging.digest}  reports/validation, made by validate" in said
    assert f"{made}  data/synthetic, made by sample" in said
    assert f"{weights}  models/generator, made by finetune" in said
    assert f"{base}  demo://glyphs" in said
    assert images in said
    assert cli.main(["lineage", "data/accepted", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {one["role"]: one["path"].removeprefix(f"{tmp_path}/") for one in content["lineage"]} == {
        "synthetic": "data/synthetic",
        "validation": "reports/validation",
    }
    assert "data/accepted" not in json.dumps(content["lineage"])

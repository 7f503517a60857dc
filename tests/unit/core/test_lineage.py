"""`gda lineage` says what an output was made from and where that lies, whatever else lies around."""

import json
from dataclasses import asdict

import pytest

from gda import cli
from gda.recipe import Recipe


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

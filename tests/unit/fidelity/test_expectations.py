"""Structural expectations: the ways in which Great Expectations passes what it should not are closed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gda.fidelity.expectations import Plan, check_structure, expectations, run_expectations

PLAN = Plan(count=40, classes=("a", "b"), max_class_ratio=1.5, size=(28, 28), generator_digest="ab")


def table(n: int = 40) -> pd.DataFrame:
    """A manifest that meets the plan."""
    return pd.DataFrame(
        {
            "key": [f"k{i}" for i in range(n)],
            "class": [("a", "b")[i % 2] for i in range(n)],
            "split": ["train"] * n,
            "decoded": 1,
            "as_recorded": 1,
            "decoded_width": 28,
            "decoded_height": 28,
            "seed": range(n),
            "prompt": "p",
            "guidance_scale": 1.5,
            "num_inference_steps": 16,
            "scheduler": "ddim",
            "generator_digest": "ab",
        }
    )


def test_a_set_as_planned_meets_every_expectation() -> None:
    """The base of the tests below, and no result is lost."""
    found = check_structure(table(), PLAN)
    assert found.failures == ()
    assert len(found.results) == len(expectations(PLAN))
    assert all(result["success"] for result in found.results)


def test_an_empty_table_fails() -> None:
    """Great Expectations finds an empty column unique and within every range."""
    failures = check_structure(table(0), replace(PLAN, classes=tuple("abcdef"))).failures
    assert any("row_count" in failure for failure in failures)
    # In order: reasons must read the same each time, and the library lists sets as their hashes fall.
    assert "column 'class': no record has a, b, c, d and 2 more, which is expected" in failures


def test_an_empty_suite_fails() -> None:
    """Great Expectations passes a suite that expects nothing."""
    assert run_expectations(table(), []).failures


def test_many_defects_at_once_are_each_named() -> None:
    """NaN in a range, a repeated seed, a class short of its share, an image that does not decode, another generator, a stray split."""
    spoiled = table()
    spoiled.loc[0, "guidance_scale"] = np.nan
    spoiled.loc[1, "seed"] = 2
    spoiled.loc[2, "decoded"] = 0
    spoiled.loc[3, "generator_digest"] = "cd"
    spoiled.loc[4, "split"] = "val"
    spoiled.loc[:29, "class"] = "a"
    failures = check_structure(spoiled, PLAN).failures
    for said in ("'guidance_scale': 1 records", "'seed'", "'decoded'", "for cd; only ab", "for val; only train", "class_ratio"):
        assert any(said in failure for failure in failures), said


@pytest.mark.parametrize("guidance", [np.inf, 0.5])
def test_guidance_out_of_range_fails(guidance: float) -> None:
    """Infinity is no setting, and guidance below 1 is none that could have been asked for."""
    spoiled = table()
    spoiled["guidance_scale"] = guidance
    assert any("guidance_scale" in failure for failure in check_structure(spoiled, PLAN).failures)


def test_a_missing_provenance_column_fails() -> None:
    """A column that is not there is a column without values."""
    failures = check_structure(table().drop(columns=["seed"]), PLAN).failures
    assert "column 'seed': 40 records have no value" in failures


def test_pages_are_offline_and_the_same_each_time() -> None:
    """Data Docs as they come load scripts from eight hosts and carry a tracking image and the time."""
    first, second = check_structure(table(), PLAN), check_structure(table(), PLAN)
    assert first.docs == second.docs
    assert first.results == second.results
    assert len(first.docs) == 3
    loaded = [
        line for page in first.docs.values() for line in page.splitlines() if "http" in line and "<a " not in line and "xmlns" not in line
    ]
    assert not any(word in line for line in loaded for word in ("src=", "<link", "url("))


def merged() -> pd.DataFrame:
    """Two runs of the same seeds with different guidance."""
    whole = table()
    whole["seed"] = whole["seed"] % 20
    whole.loc[20:, "guidance_scale"] = 3.0
    return whole


def test_a_union_of_runs_may_have_several_settings() -> None:
    """Settings may differ between merged runs, and only there; that a record says how it was drawn is expected of each."""
    assert check_structure(merged(), replace(PLAN, origin="merged")).failures == ()
    said = " ".join(check_structure(merged(), PLAN).failures)
    assert "'seed'" in said
    assert "'guidance_scale'" in said
    twice = merged()
    twice.loc[20:, "guidance_scale"] = 1.5
    assert any("compound_columns_to_be_unique" in said for said in check_structure(twice, replace(PLAN, origin="merged")).failures)
    silent = merged()
    silent.loc[3, "prompt"] = None
    assert check_structure(silent, replace(PLAN, origin="merged")).failures == ("column 'prompt': 1 records have no value",)


def test_imported_records_need_not_say_how_they_were_drawn() -> None:
    """Another generator's set is not refused for columns that only ours can fill, nor for sizes; half an answer is no answer."""
    plan = replace(PLAN, origin="imported", size=None, generator_digest=None)
    bare = table().drop(columns=["seed", "prompt", "guidance_scale", "num_inference_steps", "scheduler", "generator_digest"])
    bare.loc[:9, "decoded_width"] = 30
    assert check_structure(bare, plan).failures == ()
    assert check_structure(bare, replace(plan, origin="drawn")).failures != ()
    mixed = table()
    mixed.loc[:9, ["seed", "prompt", "guidance_scale", "num_inference_steps", "scheduler", "generator_digest"]] = None
    assert check_structure(mixed, plan).failures == ()
    mixed.loc[20, "seed"] = None
    assert any("'provenance_gaps'" in said for said in check_structure(mixed, plan).failures)
    mixed.loc[20, "seed"] = 21
    assert any("compound_columns_to_be_unique" in said for said in check_structure(mixed, plan).failures)


def test_imported_records_are_held_to_everything_else() -> None:
    """Equal terms: count, classes, balance, keys, split, pixels as recorded, and the generator that it is said to be of."""
    plan = replace(PLAN, origin="imported", size=None, generator_digest=None)
    spoiled = table(39).drop(columns=["seed", "prompt", "guidance_scale", "num_inference_steps", "scheduler", "generator_digest"])
    spoiled.loc[1, "key"] = "k0"
    spoiled.loc[2, "decoded"] = 0
    spoiled.loc[3, "as_recorded"] = 0
    spoiled.loc[4, "split"] = "val"
    spoiled.loc[:29, "class"] = "a"
    failures = check_structure(spoiled, plan).failures
    for said in ("row_count", "'key'", "'decoded'", "'as_recorded'", "for val; only train", "class_ratio"):
        assert any(said in failure for failure in failures), said
    assert any("'generator_digest'" in said for said in check_structure(spoiled, replace(plan, generator_digest="ab")).failures)

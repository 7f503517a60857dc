"""Structural expectations: the ways in which Great Expectations passes what it should not are closed."""

import json
from dataclasses import replace
from typing import Any

import great_expectations.expectations as gxe
import numpy as np
import pandas as pd
import pytest
from great_expectations.expectations.expectation import ColumnAggregateExpectation, Expectation
from great_expectations.expectations.row_conditions import Column

from gda.artifacts.verdict import Measure
from gda.config.sections import ValidateConfig
from gda.gate import suites
from gda.gate.expectations import (
    PROVENANCE,
    ExpectedSet,
    ExpectEveryValueToBe,
    ExpectEveryValueToBeTheSame,
    ExpectValuesToBeExactly,
    check_structure,
    expectations,
    metric_suite,
)
from gda.gate.suites import Found, Suite, run_suites
from gda.gate.verdict import assess_each

PLAN = ExpectedSet(
    count=40, classes=("a", "b"), counts=(20, 20), prompts=("an a", "a b"), size=(28, 28), generator_digest="ab", strengths=(0.0,)
)
UNKNOWN = ExpectedSet(count=40, classes=("a", "b"))


def table(n: int = 40) -> pd.DataFrame:
    """A manifest that meets the plan, with what an audit adds."""
    return pd.DataFrame(
        {
            "key": [f"k{i}" for i in range(n)],
            "class": [("a", "b")[i % 2] for i in range(n)],
            "split": ["train"] * n,
            "decoded": 1,
            "as_recorded": 1,
            "size_as_recorded": 1,
            "decoded_width": 28,
            "decoded_height": 28,
            "decoded_mode": "RGB",
            "seed": range(n),
            "prompt": [("an a", "a b")[i % 2] for i in range(n)],
            "negative_prompt": "",
            "guidance_scale": 1.5,
            "num_inference_steps": 16,
            "scheduler": "ddim",
            "generator_digest": "ab",
            "source_image": "",
            "strength": np.nan,
        }
    )


def spoilt(column: str, value: Any, rows: Any = 0) -> pd.DataFrame:
    """The sound table with one value changed."""
    changed = table()
    changed[column] = changed[column].astype(object)
    changed.loc[rows, column] = value
    return changed


def run(checks: list[Expectation], content: pd.DataFrame) -> Found:
    """One suite over a table of the test's own."""
    return run_suites([Suite(name="manifest", table=content, expected=checks)], pages=False)[0]["manifest"]


@pytest.mark.parametrize("plan", [PLAN, UNKNOWN], ids=["planned", "unknown plan"])
def test_a_set_as_planned_meets_every_expectation(plan: ExpectedSet) -> None:
    """The base of the tests below, and no result is lost."""
    found = check_structure(table(), plan)
    assert found.failures == ()
    assert len(found.results) == len(expectations(plan))
    assert all(result["success"] for result in found.results)


# Defects that do not overlap, with the message for each.
DEFECTS = [
    [
        ("class", "b", 0, "the classes of the images are not as planned: there are another number of a (19 of 20), b (21 of 20)"),
        ("split", "val", 4, "1 of 40 images are not in split train, where all of a synthetic set belong, but in val"),
        ("decoded", 0, 3, "1 of 40 images do not decode to the last byte"),
        ("as_recorded", 0, 3, "1 of 40 images do not show the pixels that the manifest records"),
        ("size_as_recorded", 0, 3, "1 of 40 images do not have the size that the manifest records"),
        (
            "decoded_width",
            29,
            3,
            "1 of 40 images are not 28 x 28 pixels, as the generator produces: decoded_width is 29 instead",
        ),
        ("decoded_mode", "L", 3, "1 of 40 images are not stored as RGB but as L"),
        ("key", "k6", 5, "2 of 40 records share their key with another, such as k6"),
        ("seed", 2, 1, "2 of 40 records share their seed with another, such as 2"),
        ("prompt", "an a", 1, "2 of 40 images were generated with another prompt than their class's"),  # and the one of another class
        ("negative_prompt", "x", 0, "1 of 40 records differ from the rest in their negative_prompt, of which a set has one:  (39), x (1)"),
        (
            "guidance_scale",
            3.0,
            0,
            "1 of 40 records differ from the rest in their guidance_scale, of which a set has one: 1.5 (39), 3.0 (1)",
        ),
        ("scheduler", "ddpm", 0, "1 of 40 records differ from the rest in their scheduler, of which a set has one: ddim (39), ddpm (1)"),
        ("generator_digest", "cd", 3, "1 of 40 images are of another generator than ab: generator_digest is cd"),
        ("strength", 0.5, 3, "1 of 40 records have a source image without a strength, or a strength without a source image"),
        ("strength", 0.5, 3, "the strengths of the records are not as planned (0 means generated from noise): there are some of nothing"),
    ],
    [
        ("class", None, 0, "the classes of the images are not as planned: there are some of nothing; another number of a (19 of 20)"),
        ("split", None, 4, "1 of 40 images are not in split train, where all of a synthetic set belong, but in nothing"),
        ("decoded", np.nan, 3, "1 of 40 images do not decode to the last byte"),
        ("as_recorded", np.nan, 3, "1 of 40 images do not show the pixels that the manifest records"),
        ("size_as_recorded", np.nan, 3, "1 of 40 images do not have the size that the manifest records"),
        (
            "decoded_height",
            np.nan,
            3,
            "1 of 40 images are not 28 x 28 pixels, as the generator produces: decoded_height is nothing instead",
        ),
        ("decoded_mode", None, 3, "1 of 40 images are not stored as RGB but as nothing"),
        ("key", None, 5, "1 of 40 records have no key"),
        ("seed", None, 1, "1 of 40 records have no seed"),
        ("prompt", None, 1, "2 of 40 images were generated with another prompt than their class's"),
        ("prompt", None, 1, "1 of 40 records have no prompt"),
        ("guidance_scale", np.nan, 0, "1 of 40 records have no guidance_scale"),
        ("num_inference_steps", None, 0, "1 of 40 records have no num_inference_steps"),
        ("scheduler", None, 0, "1 of 40 records have no scheduler"),
        ("generator_digest", None, 3, "1 of 40 records have no generator_digest"),
        ("generator_digest", None, 3, "1 of 40 images are of another generator than ab: generator_digest is nothing"),
    ],
    [
        ("class", "c", [0, 2], "the classes of the images are not as planned: there are some of c; another number of a (18 of 20)"),
        ("prompt", "other", [0, 2], "2 of 40 images were generated with another prompt than their class's"),
        ("guidance_scale", np.inf, slice(None), "the guidance_scale of a record is inf, which is not from 1 to 100"),
        ("num_inference_steps", 0, slice(None), "the num_inference_steps of a record is 0, which is not from 1 to 100000"),
    ],
    [
        ("class", "b", slice(None), "the classes of the images are not as planned: there are none of a; another number of b (40 of 20)"),
        ("prompt", "an a", slice(None), "40 of 40 images were generated with another prompt than their class's"),
        ("guidance_scale", 0.5, slice(None), "the guidance_scale of a record is 0.5, which is not from 1 to 100"),
        ("num_inference_steps", "many", slice(None), "40 of 40 records have no num_inference_steps"),
    ],
]


@pytest.mark.parametrize("defects", DEFECTS, ids=["values", "nulls", "beyond", "all"])
def test_each_of_many_defects_is_named_and_nothing_else(defects: list[tuple[str, Any, Any, str]]) -> None:
    """Each is refused in a sentence with numbers, nulls and values that are no numbers among them."""
    content = table()
    for column, value, rows, _ in defects:
        content[column] = content[column].astype(object)
        content.loc[rows, column] = value
    failures = set(check_structure(content, PLAN, pages=False).failures)
    echoes = {failure for failure in failures if failure.endswith("(40)") or "is None" in failure}  # of a column without any value
    assert failures - echoes == {message for *_, message in defects}


def test_an_empty_table_fails_and_says_no_more_than_that() -> None:
    """Great Expectations finds an empty column unique and within every range."""
    found = check_structure(table(0), PLAN)
    assert found.failures == ("the set has 0 images; 40 were planned", "the set has no images")
    assert check_structure(table(0), replace(PLAN, count=0, counts=None), pages=False).failures == ("the set has no images",)


def test_missing_columns_fail() -> None:
    """A column that is not there is a column without values, and no column may be without."""
    messages = " ".join(check_structure(table()[["source_image", "strength"]], PLAN, pages=False).failures)
    unnamed = {"class": "classes of the images", "decoded": "decode to the last byte", "decoded_mode": "stored as RGB but as nothing"}
    unnamed |= {
        "as_recorded": "show the pixels",
        "size_as_recorded": "have the size",
        "split": "in split train",
        "negative_prompt": "negative",
    }
    for name in table().columns.drop(["source_image", "strength"]):
        assert unnamed.get(name, f"no {name}" if name in (*PROVENANCE, "key") else name) in messages, name


def test_a_class_short_of_its_share_is_named_though_the_total_is_right() -> None:
    """Balance within the accepted ratio is not enough where the plan says how many there are of each."""
    plan = replace(PLAN, counts=(19, 21))
    expected = "the classes of the images are not as planned: there are another number of a (20 of 19), b (20 of 21)"
    assert check_structure(table(), plan, pages=False).failures == (expected,)


def test_without_a_generator_at_hand_most_of_a_class_say_its_prompt() -> None:
    """A record that was generated for another class is found, even if no prompts are planned."""
    content = spoilt("prompt", "a b", 0)
    assert check_structure(content, UNKNOWN, pages=False).failures == (
        "1 of 40 images were generated with another prompt than their class's",
    )
    merged = replace(UNKNOWN, origin="merged")
    content = table()
    content.loc[20:, ["prompt", "generator_digest"]] = ["another", "cd"]
    assert check_structure(content, merged, pages=False).failures == ()
    content.loc[20, "prompt"] = "an a"
    assert check_structure(content, merged, pages=False).failures == (
        "1 of 40 images were generated with another prompt than their class's",
    )


def from_images() -> pd.DataFrame:
    """An image-to-image set over two strengths."""
    content = table()
    content["source_image"] = [f"train-{i}" for i in range(40)]
    content["strength"] = [(0.3, 0.7)[i // 2 % 2] for i in range(40)]
    return content


def test_strengths_vary_over_the_planned_grid_and_no_further() -> None:
    """A grid of strengths is allowed in one set, another strength is not, nor a set generated from noise where sources were planned."""
    grid = replace(PLAN, strengths=(0.3, 0.7))
    assert check_structure(from_images(), grid, pages=False).failures == ()
    assert check_structure(from_images(), UNKNOWN, pages=False).failures == ()
    message = "the strengths of the records are not as planned (0 means generated from noise): there are "
    assert check_structure(table(), grid, pages=False).failures == (f"{message}none of 0.3, 0.7; some of 0.0",)
    odd = from_images()
    odd.loc[0, "strength"] = 0.5
    assert check_structure(odd, grid, pages=False).failures == (f"{message}some of 0.5",)
    odd["strength"] = 1.5
    assert "the strength of a record is 1.5, which is not from 0 to 1" in check_structure(odd, UNKNOWN, pages=False).failures
    odd = from_images()
    odd.loc[0, "source_image"] = None
    assert any("a strength without a source image" in failure for failure in check_structure(odd, UNKNOWN, pages=False).failures)


def test_an_empty_suite_fails() -> None:
    """Great Expectations passes a suite that expects nothing."""
    assert run([], table()).failures == ("0 of 0 expectations came back with a result, which is not a pass",)


def test_a_lost_result_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An expectation without a result has not been met."""
    found = suites._found
    monkeypatch.setattr(suites, "_found", lambda suite, results: found(suite, results[1:]))
    checks = [gxe.ExpectColumnValuesToNotBeNull(column="key"), gxe.ExpectColumnValuesToBeUnique(column="key")]
    assert run(checks, table()).failures == ("1 of 2 expectations came back with a result, which is not a pass",)


def test_a_column_that_is_not_there_fails_by_name() -> None:
    """The library swallows the exception; the sentence does not."""
    failures = run([gxe.ExpectColumnValuesToBeUnique(column="nowhere")], table()).failures
    assert len(failures) == 1
    assert "column 'nowhere': expect_column_values_to_be_unique could not be checked" in failures[0]


class ExpectTrouble(ColumnAggregateExpectation):
    """An expectation that raises."""

    metric_dependencies = ("column.value_counts",)

    def _validate(self, metrics: Any, runtime_configuration: Any = None, execution_engine: Any = None) -> dict[str, Any]:
        raise ZeroDivisionError("planted")


class ExpectSilence(ExpectTrouble):
    """An expectation that is content whatever it counts."""

    def _validate(self, metrics: Any, runtime_configuration: Any = None, execution_engine: Any = None) -> dict[str, Any]:
        return {"success": True, "result": {"observed_value": 0, "unexpected_count": 3, "partial_unexpected_list": [7]}}


def test_an_expectation_that_raises_fails_and_the_others_are_still_run() -> None:
    """An exception is no pass, and hides no other defect."""
    failures = run([ExpectTrouble(column="key"), gxe.ExpectColumnValuesToNotBeNull(column="seed")], spoilt("seed", None)).failures
    assert any("expect_trouble could not be checked" in failure and "planted" in failure for failure in failures)
    assert any("'seed'" in failure for failure in failures)


def test_success_with_unexpected_values_is_no_pass() -> None:
    """What an expectation counts decides, not what it calls a success."""
    found = run([ExpectSilence(column="key")], table())
    assert len(found.failures) == 1
    assert not found.results[0]["success"]


def test_tolerances_conditions_and_severities_do_not_pass() -> None:
    """One record without a value fails the check, whatever tolerance the expectation has."""
    lenient = [
        gxe.ExpectColumnValuesToNotBeNull(column="key", mostly=0.9),
        gxe.ExpectColumnValuesToNotBeNull(column="seed", severity="warning"),
        gxe.ExpectColumnValuesToNotBeNull(column="scheduler", severity="info"),
    ]
    content = table().astype(object)
    content.loc[0, ["key", "seed", "scheduler"]] = None
    found = run(lenient, content)
    assert [result["success"] for result in found.results] == [False] * 3
    assert len(found.failures) == 3 + 1  # and the tolerance itself
    nobody = gxe.ExpectColumnValuesToNotBeNull(column="prompt", row_condition=Column("split") == "val")
    assert run([nobody], table()).failures == ("expect_column_values_to_not_be_null may leave records out, which is not a check",)


def test_a_tolerance_is_refused_even_where_it_was_not_needed() -> None:
    """A check that may pass over records is a mistake to be found before it matters."""
    assert run([gxe.ExpectColumnValuesToNotBeNull(column="seed", mostly=0.9)], table()).failures
    assert run([gxe.ExpectColumnValuesToNotBeNull(column="seed")], table()).failures == ()


def test_expectations_of_our_own_count_what_the_library_passes_over() -> None:
    """No records, nulls alone, and nulls in addition to the expected values all fail."""
    for values in ([], [None, None], [1, None], [np.nan, 1], [1, 2]):
        content = pd.DataFrame({"x": pd.Series(values, dtype=object), "y": pd.Series(values, dtype=object)})
        found = run([ExpectEveryValueToBe(column="x", value=1), ExpectValuesToBeExactly(column="x", value_set=[1])], content)
        assert [result["success"] for result in found.results] == [False, False], values
        # That a value is missing is another expectation's to say, but not that all are.
        same = run([ExpectEveryValueToBeTheSame(column="x")], content)
        assert same.results[0]["success"] == (values in ([1, None], [np.nan, 1])), values


def sound_measures() -> dict[str, Measure]:
    return {
        "fid": Measure(value=2.0, low=1.5, high=2.5, floor=1.0, n=350),
        "coverage": Measure(value=0.8, low=0.7, high=0.9, floor=0.9, n=350),
        "kid": Measure(value=0.1),
    }


def metric_failures(**changed: Measure) -> tuple[str, ...]:
    measures = sound_measures() | changed
    return run_suites([metric_suite(measures, assess_each(measures, ValidateConfig()))], pages=False)[0]["metrics"].failures


def test_metrics_within_their_limits_pass_and_are_on_the_pages() -> None:
    """The numbers are held against their limits a second time, and Data Docs show it."""
    measures = sound_measures()
    found = check_structure(table(), PLAN, measures, assess_each(measures, ValidateConfig()))
    assert found.metric_failures == ()
    assert len(found.metric_results) == 1 + 3 + 2
    assert sum("metrics" in name for name in found.docs) >= 2


def test_a_metric_that_is_no_number_or_beyond_its_limit_fails_in_the_table() -> None:
    """NaN passes the library's range check of values; and what has no limit to be held against passes nothing."""
    nan, inf = float("nan"), float("inf")
    for name, updates in {
        "fid": ({"high": 10.1}, {"floor": None}, {"high": nan}),
        "coverage": ({"low": 0.1}, {"low": inf}, {"floor": None}),
        "kid": ({"value": None}, {"value": nan}, {"value": inf}),
    }.items():
        for update in updates:
            failures = metric_failures(**{name: sound_measures()[name].model_copy(update=update)})
            assert len(failures) == 1, (name, update)
            assert failures[0].startswith(name)


def test_results_are_plain_json() -> None:
    """Infinity is not JSON, and no reader of results should need to know numpy."""
    measures = {"kid": Measure(value=0.1).model_copy(update={"value": float("inf")})}
    found = check_structure(spoilt("seed", None), PLAN, measures, (), pages=False)
    assert "inf" in json.dumps([*found.results, *found.metric_results], allow_nan=False)


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
    """Settings may differ between merged runs, and only there; every record must have its sampling settings."""
    assert check_structure(merged(), replace(PLAN, origin="merged"), pages=False).failures == ()
    messages = " ".join(check_structure(merged(), PLAN, pages=False).failures)
    assert "40 of 40 records share their seed with another" in messages
    assert "in their guidance_scale, of which a set has one: 1.5 (20), 3.0 (20)" in messages
    twice = merged()
    twice.loc[20:, "guidance_scale"] = 1.5
    assert check_structure(twice, replace(PLAN, origin="merged"), pages=False).failures == (
        "40 of 40 records share their seed with another of the same settings",
    )
    silent = merged()
    silent.loc[3, "scheduler"] = None
    assert check_structure(silent, replace(PLAN, origin="merged"), pages=False).failures == ("1 of 40 records have no scheduler",)


def test_imported_records_need_no_sampling_settings() -> None:
    """Another generator's set is not refused for columns that only ours can fill, nor for sizes; half an answer is no answer."""
    plan = replace(UNKNOWN, origin="imported")
    bare = table().drop(columns=list(PROVENANCE))
    bare.loc[:9, "decoded_width"] = 30
    assert check_structure(bare, plan, pages=False).failures == ()
    assert check_structure(bare, replace(plan, origin="generated"), pages=False).failures != ()
    mixed = table()
    mixed.loc[:9, list(PROVENANCE)] = None
    assert check_structure(mixed, plan, pages=False).failures == ()
    mixed.loc[20, "seed"] = None
    assert check_structure(mixed, plan, pages=False).failures[0].startswith("1 of 40 records have incomplete sampling settings")
    mixed.loc[20, "seed"] = 21
    assert check_structure(mixed, plan, pages=False).failures == ("2 of 40 records share their seed with another of the same settings",)


def test_imported_records_are_held_to_everything_else() -> None:
    """Equal terms: count, classes, keys, split, pixels as recorded, and the generator that is recorded."""
    plan = replace(UNKNOWN, origin="imported")
    spoiled = table(39).drop(columns=list(PROVENANCE))
    spoiled.loc[1, "key"] = "k0"
    spoiled.loc[2, "decoded"] = 0
    spoiled.loc[3, "as_recorded"] = 0
    spoiled.loc[4, "split"] = "val"
    spoiled.loc[5, "class"] = "c"
    failures = check_structure(spoiled, plan, pages=False).failures
    for part in ("39 images; 40", "share their key", "do not decode", "do not show the pixels", "but in val", "some of c"):
        assert any(part in failure for failure in failures), part
    assert any(
        "generator_digest is nothing" in failure
        for failure in check_structure(spoiled, replace(plan, generator_digest="ab"), pages=False).failures
    )

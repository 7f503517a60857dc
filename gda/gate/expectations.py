"""What is expected of a synthetic set's manifest, record by record, and of the numbers measured on it; run by Great Expectations.

Our own expectations compare counts of values with the number of records, so that null or absent values are unexpected; the library's
would ignore them. `gda.gate.suites` closes the other gaps of the library.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from gda.artifacts.verdict import Measure
from gda.gate.suites import Suite, run_suites  # before the library: it keeps that from calling home
from gda.gate.verdict import Assessment

import great_expectations.expectations as gxe  # isort: skip
from great_expectations.expectations.expectation import ColumnAggregateExpectation, Expectation  # isort: skip

PROVENANCE = ("seed", "prompt", "guidance_scale", "num_inference_steps", "scheduler", "generator_digest")
SETTINGS = ("guidance_scale", "num_inference_steps", "scheduler", "generator_digest")
_SIZE = ("decoded_width", "decoded_height")
_TEXTS = ("split", "class", "decoded_mode", "prompt", "negative_prompt", "scheduler", "generator_digest", "source_image")
_NUMBERS = ("decoded", "as_recorded", "size_as_recorded", *_SIZE, "guidance_scale", "num_inference_steps", "strength")
_GAPS = "provenance_gaps"  # columns of PROVENANCE in which a record has no value
_PROMPT = "prompt_of_its_class"  # 1 where the prompt is that of the record's class
_NOISED = "noised"  # strength, 0 for images generated from noise alone; null where a record has a source without a strength or vice versa
_FINITE = 1e300
_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class ExpectedSet:
    """The planned set, as far as it is known: images in all and per class, the prompt of each class, size, generator, strengths.

    `counts` and `prompts` follow `classes`. `strengths` are those of image-to-image records, 0 for records that start from noise. With
    `origin` "generated" every record has its sampling settings, the same for all; "merged" from several such sets, settings may differ;
    "imported" from another generator, records need no settings and no common size, but a record with any setting must have all.
    """

    count: int
    classes: tuple[str, ...]
    counts: tuple[int, ...] | None = None
    prompts: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    generator_digest: str | None = None
    strengths: tuple[float, ...] | None = None
    origin: Literal["generated", "merged", "imported"] = "generated"


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Outcome: a sentence for each failed expectation of the manifest and of the metrics, all results, and the pages by relative path."""

    failures: tuple[str, ...]
    results: tuple[dict[str, Any], ...]
    docs: dict[str, str]
    metric_failures: tuple[str, ...] = ()
    metric_results: tuple[dict[str, Any], ...] = ()


class _CountingExpectation(ColumnAggregateExpectation):
    """Base of expectations over how often each value occurs; what is not counted, such as nulls, is unexpected."""

    metric_dependencies: ClassVar[tuple[str, ...]] = ("column.value_counts", "table.row_count")

    def _validate(self, metrics: dict[str, Any], runtime_configuration: Any = None, execution_engine: Any = None) -> dict[str, Any]:
        counts: dict[Any, int] = metrics["column.value_counts"].to_dict()
        rows = int(metrics["table.row_count"])
        if (nulls := rows - sum(counts.values())) != 0:
            counts[None] = nulls
        return self._result_of(counts, rows)

    def _result_of(self, counts: dict[Any, int], rows: int) -> dict[str, Any]:
        raise NotImplementedError


class ExpectEveryValueToBe(_CountingExpectation):
    """Expect every record, and at least one, to have this value."""

    value: int | float | str
    success_keys: ClassVar[tuple[str, ...]] = ("value",)

    def _result_of(self, counts: dict[Any, int], rows: int) -> dict[str, Any]:
        return _outcome(counts, rows, {value for value in counts if value is not None and value == self.value})


class ExpectEveryValueToBeTheSame(_CountingExpectation):
    """Expect all records that have a value, and at least one, to have the same value."""

    def _result_of(self, counts: dict[Any, int], rows: int) -> dict[str, Any]:
        most = max((value for value in counts if value is not None), key=lambda value: counts[value], default=None)
        return _outcome(counts, rows if most is not None else 0, {most, None})


class ExpectValuesToBeExactly(_CountingExpectation):
    """Expect these values and no others, each in at least one record; with `counts`, in exactly so many."""

    value_set: list[Any]
    counts: list[int] | None = None
    success_keys: ClassVar[tuple[str, ...]] = ("value_set", "counts")

    def _result_of(self, counts: dict[Any, int], rows: int) -> dict[str, Any]:
        result = _outcome(counts, rows, set(self.value_set))
        missing = [value for value in self.value_set if not counts.get(value)]
        planned = dict(zip(self.value_set, self.counts, strict=True)) if self.counts is not None else {}
        wrong = [
            f"{value} ({counts[value]} of {count})" for value, count in planned.items() if counts.get(value) and counts[value] != count
        ]
        extra = [str(value) for value in result["result"]["partial_unexpected_list"]]
        parts = [("none of", missing), ("some of", extra), ("another number of", wrong)]
        observed = "; ".join(f"{word} {_some(values)}" for word, values in parts if values)
        result["success"] = result["success"] and not observed
        result["result"] |= {"observed_value": observed or "as expected", "partial_missing_list": missing}
        return result


def check_structure(
    table: pd.DataFrame,
    plan: ExpectedSet,
    measures: Mapping[str, Measure] | None = None,
    assessments: Sequence[Assessment] = (),
    *,
    pages: bool = True,
) -> Structure:
    """Check `table` (see `Audit`) against the plan, and `measures` against their limits as in `assessments`.

    An exception inside an expectation is a failure of that expectation. Without `pages` no Data Docs are made.
    """
    suites = [Suite(name="manifest", table=checked_table(table, plan), expected=expectations(plan))]
    if measures is not None:
        suites.append(metric_suite(measures, assessments))
    found, docs = run_suites(suites, pages=pages)
    manifest, measured = found["manifest"], found.get("metrics")
    return Structure(
        failures=manifest.failures,
        results=manifest.results,
        docs=docs,
        metric_failures=measured.failures if measured is not None else (),
        metric_results=measured.results if measured is not None else (),
    )


def checked_table(table: pd.DataFrame, plan: ExpectedSet) -> pd.DataFrame:
    """The columns that are checked, and nothing else; repeated texts are categories, which are counted quickly in a million records."""
    # The library hashes the whole table: for a million records that took twice as long as all the expectations.
    whole = table.reindex(columns=["key", "seed", *_TEXTS, *_NUMBERS])  # an absent column is all null
    for name in _TEXTS:
        whole[name] = whole[name].astype("category")
    for name in _NUMBERS:
        whole[name] = pd.to_numeric(whole[name], errors="coerce")
    whole[_GAPS] = sum(whole[name].isna().astype(int) for name in PROVENANCE)
    whole[_PROMPT] = _has_its_prompt(whole, plan)
    whole[_NOISED] = _noised(whole)
    return whole.drop(columns=["strength", "source_image"])


def _has_its_prompt(table: pd.DataFrame, plan: ExpectedSet) -> pd.Series:
    """1 where a record has the planned prompt of its class, or where none is planned, the one that most records of its class have."""
    if plan.prompts is not None:
        planned = table["class"].map(dict(zip(plan.classes, plan.prompts, strict=True)))
        return (table["prompt"].astype(object) == planned.astype(object)).astype(int)
    # In a merged set each generator may have its own prompt for a class.
    kinds = ["class", "generator_digest"] if plan.origin == "merged" else ["class"]
    codes = [table[name].cat.codes.to_numpy(np.int64) for name in (*kinds, "prompt")]
    kind = np.ravel_multi_index(codes[:-1], [code.max(initial=0) + 2 for code in codes[:-1]], mode="wrap")
    counted = pd.DataFrame({"kind": kind, "prompt": codes[-1]}).value_counts(sort=True).reset_index()
    usual = counted.drop_duplicates("kind").set_index("kind")["prompt"]
    return pd.Series((usual.loc[kind].to_numpy() == codes[-1]) & (codes[-1] >= 0), index=table.index).astype(int)


def _noised(table: pd.DataFrame) -> pd.Series:
    strength = table["strength"].astype(float)
    sourced = ~table["source_image"].isin([""]) & table["source_image"].notna()
    return strength.where(strength.notna(), 0.0).where(strength.notna() == sourced)


def expectations(plan: ExpectedSet) -> list[Expectation]:
    """Everything that is expected of a manifest by this plan."""
    expected: list[Expectation] = [
        gxe.ExpectTableRowCountToEqual(value=plan.count, meta=_meta(f"the set has {{found}} images; {plan.count} were planned")),
        gxe.ExpectTableRowCountToBeBetween(min_value=1, meta=_meta("the set has no images")),
        _classes(plan),
        _every("split", "train", "{count} of {n} images are not in split train, where all of a synthetic set belong, but in {some}"),
        _every("decoded", 1, "{count} of {n} images do not decode to the last byte"),
        _every("as_recorded", 1, "{count} of {n} images do not show the pixels that the manifest records"),
        _every("size_as_recorded", 1, "{count} of {n} images do not have the size that the manifest records"),
        _every("decoded_mode", "RGB", "{count} of {n} images are not stored as RGB but as {some}"),
        _not_null("key"),
        gxe.ExpectColumnValuesToBeUnique(column="key", meta=_meta("{count} of {n} records share their key with another, such as {some}")),
    ]
    expected += _of_provenance(plan)
    if plan.size is not None:
        width, height = plan.size
        size = f"{width} x {height} pixels, as the generator produces"
        complaint = f"{{count}} of {{n}} images are not {size}: {{}} is {{some}} instead"
        expected += [_every(name, side, complaint.replace("{}", name)) for name, side in zip(_SIZE, plan.size, strict=True)]
    if plan.generator_digest is not None:
        complaint = f"{{count}} of {{n}} images are of another generator than {plan.generator_digest}: generator_digest is {{some}}"
        expected.append(_every("generator_digest", plan.generator_digest, complaint))
    return expected


def _classes(plan: ExpectedSet) -> Expectation:
    complaint = (
        "the classes of the images are not as planned: there are {found}"
        if plan.counts
        else ("the classes of the images are not those of the real set: there are {found}")
    )
    counts = list(plan.counts) if plan.counts is not None else None
    return ExpectValuesToBeExactly(column="class", value_set=list(plan.classes), counts=counts, meta=_meta(complaint))


def _of_provenance(plan: ExpectedSet) -> list[Expectation]:
    # Runs with different settings may share seeds; records without any are ignored.
    unique_with_settings = gxe.ExpectCompoundColumnsToBeUnique(
        column_list=["seed", *SETTINGS],
        ignore_row_if="all_values_are_missing",
        meta=_meta("{count} of {n} records share their seed with another of the same settings"),
    )
    if plan.origin == "imported":
        complaint = "{count} of {n} records have incomplete sampling settings: some of " + ", ".join(PROVENANCE) + " are missing"
        return [unique_with_settings, gxe.ExpectColumnValuesToBeInSet(column=_GAPS, value_set=[0, len(PROVENANCE)], meta=_meta(complaint))]
    seeds = gxe.ExpectColumnValuesToBeUnique(
        column="seed", meta=_meta("{count} of {n} records share their seed with another, such as {some}")
    )
    expected: list[Expectation] = [
        unique_with_settings if plan.origin == "merged" else seeds,
        *_within("guidance_scale", 1.0, 100.0),
        *_within("num_inference_steps", 1, 100_000),
        *[_not_null(name) for name in PROVENANCE],
        _every(_PROMPT, 1, "{count} of {n} images were generated with another prompt than their class's"),
        *_of_strengths(plan),
    ]
    uniform = [*_SIZE] if plan.size is None else []
    if plan.origin == "generated":
        uniform += [name for name in (*SETTINGS, "negative_prompt") if name != "generator_digest" or plan.generator_digest is None]
    complaint = "{count} of {n} records differ from the rest in their {}, of which a set has one: {found}"
    return expected + [ExpectEveryValueToBeTheSame(column=name, meta=_meta(complaint.replace("{}", name))) for name in uniform]


def _of_strengths(plan: ExpectedSet) -> list[Expectation]:
    """Image-to-image sets vary the strength, over the planned grid; every such record names its source."""
    expected: list[Expectation] = [
        gxe.ExpectColumnValuesToNotBeNull(
            column=_NOISED,
            meta=_meta("{count} of {n} records have a source image without a strength, or a strength without a source image"),
        ),
        *_within(_NOISED, 0.0, 1.0),
    ]
    if plan.strengths is not None:
        complaint = "the strengths of the records are not as planned (0 means generated from noise): there are {found}"
        expected.append(ExpectValuesToBeExactly(column=_NOISED, value_set=list(plan.strengths), meta=_meta(complaint)))
    return expected


def metric_suite(measures: Mapping[str, Measure], assessments: Sequence[Assessment]) -> Suite:
    """A table of one record: a column for each measure, and one for the end that each limit applies to.

    Every number must be there and finite, and within its limit.
    """
    ends = {f"{found.name} ({found.direction} {found.limit})": found for found in assessments}
    values = {name: measure.value for name, measure in measures.items()} | {name: found.bound for name, found in ends.items()}
    table = pd.DataFrame([values], dtype=float)
    expected: list[Expectation] = [gxe.ExpectTableRowCountToEqual(value=1, meta=_meta("there is not one record of metrics but {found}"))]
    expected += [_limited(name, -_FINITE, _FINITE) for name in measures]
    for name, found in ends.items():
        # No value keeps an unknown limit.
        limit = found.limit if found.limit is not None else _FINITE if found.direction == "at_least" else -_FINITE
        expected.append(_limited(name, limit, _FINITE) if found.direction == "at_least" else _limited(name, -_FINITE, limit))
    return Suite(name="metrics", table=table, expected=expected)


def _limited(name: str, low: float, high: float) -> Expectation:
    complaint = f"{name} is {{found}}, which is not from {low:g} to {high:g}"
    # Of one record; the library's check of each value would pass NaN.
    return gxe.ExpectColumnMaxToBeBetween(column=name, min_value=low, max_value=high, meta=_meta(complaint))


def _within(column: str, low: float, high: float) -> list[Expectation]:
    # The library's check of each value would pass what is not a number.
    complaint = f"the {'strength' if column == _NOISED else column} of a record is {{found}}, which is not from {low:g} to {high:g}"
    return [
        gxe.ExpectColumnMinToBeBetween(column=column, min_value=low, max_value=high, meta=_meta(complaint)),
        gxe.ExpectColumnMaxToBeBetween(column=column, min_value=low, max_value=high, meta=_meta(complaint)),
    ]


def _every(column: str, value: Any, complaint: str) -> Expectation:
    return ExpectEveryValueToBe(column=column, value=value, meta=_meta(complaint))


def _not_null(column: str) -> Expectation:
    return gxe.ExpectColumnValuesToNotBeNull(column=column, meta=_meta(f"{{count}} of {{n}} records have no {column}"))


def _meta(complaint: str) -> dict[str, str]:
    return {"complaint": complaint}


def _outcome(counts: Mapping[Any, int], rows: int, accepted: set[Any]) -> dict[str, Any]:
    """The result of an expectation that accepts these values of all that were counted, commonest unexpected first."""
    others = sorted((value for value in counts if value not in accepted), key=lambda value: (-counts[value], str(value)))
    unexpected = sum(counts[value] for value in others)
    return {
        "success": bool(rows > 0 and unexpected == 0),
        "result": {
            "observed_value": _listed(counts),
            "element_count": rows,
            "unexpected_count": unexpected,
            "unexpected_percent": 100.0 * unexpected / rows if rows else 0.0,
            "partial_unexpected_list": ["nothing" if value is None else value for value in others[:_LISTED]],
        },
    }


def _listed(counts: Mapping[Any, int]) -> str:
    ordered = sorted(counts, key=lambda value: (-counts[value], str(value)))
    return _some([f"{'nothing' if value is None else value} ({counts[value]})" for value in ordered])


def _some(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:4])) + (f" and {len(values) - 4} more" if len(values) > 4 else "")

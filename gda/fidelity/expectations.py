"""Structural expectations over a synthetic set's manifest, run by Great Expectations, with its open ends closed.

Great Expectations passes NaN in a range check, an empty table in a uniqueness check and an empty suite altogether. So: the row count
and the set of classes are expected exactly, ranges are checked on a column's minimum and maximum, every expectation must have come
back with a result and without an exception, and what the gate reads is the number that did not.
"""

import datetime
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # telemetry, read when the library is imported

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.checkpoint import UpdateDataDocsAction
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation import ColumnAggregateExpectation, Expectation

PROVENANCE = ("seed", "prompt", "guidance_scale", "num_inference_steps", "scheduler", "generator_digest")
SETTINGS = ("guidance_scale", "num_inference_steps", "scheduler", "generator_digest")
SIZE = ("decoded_width", "decoded_height")
_EXPECTED_COLUMNS = ("key", "class", "split", "decoded", "as_recorded", *PROVENANCE, *SIZE)  # absent ones are checked as all null
_GAPS = "provenance_gaps"  # columns of PROVENANCE in which a record has no value
# One run, always named the same: the pages that come out must not depend on when they were made.
_RUN = RunIdentifier("validation", datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
_REMOTE = re.compile(
    r"<(script|link|img)\b[^>]*\b(?:src|href)\s*=\s*[\"']https?://[^>]*>(\s*</script>)?|url\(\s*['\"]?https?://[^)]*\)", re.DOTALL
)
_TIME = re.compile(r"(?!20000101)\d{8}T\d{6}\.\d{6}Z")
_RANDOM_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked for: images in all, class names, and where known the size (width, height) and the generator's digest.

    Of `origin` "drawn" every record says how, with the same settings; "merged" of several such sets, the settings may be several;
    "imported" records, of another generator, need say nothing, nor be of one size, and those that do say something say all of it.
    """

    count: int
    classes: tuple[str, ...]
    max_class_ratio: float
    size: tuple[int, int] | None = None
    generator_digest: str | None = None
    origin: Literal["drawn", "merged", "imported"] = "drawn"


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Outcome: one sentence a failed expectation, all results as plain JSON types, and Great Expectations' pages by relative path."""

    failures: tuple[str, ...]
    results: tuple[dict[str, Any], ...]
    docs: dict[str, str]


class ExpectClassRatioToBeAtMost(ColumnAggregateExpectation):
    """Expect the most frequent value to occur at most `max_ratio` times as often as the rarest; nothing counted fails."""

    max_ratio: float
    metric_dependencies: ClassVar[tuple[str, ...]] = ("column.value_counts",)
    success_keys: ClassVar[tuple[str, ...]] = ("max_ratio",)

    def _validate(self, metrics: dict[str, Any], runtime_configuration: Any = None, execution_engine: Any = None) -> dict[str, Any]:
        counts = metrics["column.value_counts"]
        ratio = float(counts.max() / counts.min()) if len(counts) and counts.min() > 0 else None
        return {"success": ratio is not None and ratio <= self.max_ratio, "result": {"observed_value": ratio}}


class ExpectColumnDistinctValuesToBeExactly(gxe.ExpectColumnDistinctValuesToEqualSet):
    """The library's own, with values listed in order: it lists them as its sets happen to, which differs from run to run."""

    def _validate(self, metrics: dict[str, Any], runtime_configuration: Any = None, execution_engine: Any = None) -> dict[str, Any]:
        ordered = {name: sorted(value, key=str) if isinstance(value, list | set | tuple) else value for name, value in metrics.items()}
        return super()._validate(ordered, runtime_configuration, execution_engine)


def check_structure(table: pd.DataFrame, plan: Plan) -> Structure:
    """Hold `table` (see `Audit`) against the plan. An exception inside an expectation is a failure of that expectation."""
    whole = table.reindex(columns=list(dict.fromkeys([*table.columns, *_EXPECTED_COLUMNS])))
    whole[_GAPS] = whole[list(PROVENANCE)].isna().sum(axis=1)
    return run_expectations(whole, expectations(plan))


def expectations(plan: Plan) -> list[Expectation]:
    """Everything that is expected of a set by this plan."""
    expected: list[Expectation] = [
        gxe.ExpectTableRowCountToEqual(value=plan.count),
        gxe.ExpectTableRowCountToBeBetween(min_value=1),
        ExpectColumnDistinctValuesToBeExactly(column="class", value_set=list(plan.classes)),
        ExpectClassRatioToBeAtMost(column="class", max_ratio=plan.max_class_ratio),
        ExpectColumnDistinctValuesToBeExactly(column="split", value_set=["train"]),
        _all_equal("decoded", 1),
        _all_equal("as_recorded", 1),
        gxe.ExpectColumnValuesToNotBeNull(column="key"),
        gxe.ExpectColumnValuesToBeUnique(column="key"),
    ]
    expected += _of_provenance(plan)
    if plan.size is not None:
        sides = zip(("decoded_width", "decoded_height"), plan.size, strict=True)
        expected += [_all_equal(column, side) for column, side in sides]
    if plan.generator_digest is not None:
        expected.append(ExpectColumnDistinctValuesToBeExactly(column="generator_digest", value_set=[plan.generator_digest]))
    return expected


def _of_provenance(plan: Plan) -> list[Expectation]:
    # Runs of other settings may share seeds; records without any are passed over.
    drawn_once = gxe.ExpectCompoundColumnsToBeUnique(column_list=["seed", *SETTINGS], ignore_row_if="all_values_are_missing")
    if plan.origin == "imported":
        return [drawn_once, gxe.ExpectColumnValuesToBeInSet(column=_GAPS, value_set=[0, len(PROVENANCE)])]
    uniform = SIZE if plan.origin == "merged" else (*SETTINGS, *SIZE)
    expected: list[Expectation] = [
        drawn_once if plan.origin == "merged" else gxe.ExpectColumnValuesToBeUnique(column="seed"),
        gxe.ExpectColumnMinToBeBetween(column="guidance_scale", min_value=1.0),
        gxe.ExpectColumnMaxToBeBetween(column="guidance_scale", max_value=100.0),
    ]
    expected += [gxe.ExpectColumnValuesToNotBeNull(column=name) for name in PROVENANCE]
    return expected + [gxe.ExpectColumnUniqueValueCountToBeBetween(column=name, min_value=1, max_value=1) for name in uniform]


def run_expectations(table: pd.DataFrame, expected: Sequence[Expectation]) -> Structure:
    """Run a suite through a checkpoint and render its Data Docs, offline. No expectations, or a lost result, is a failure too."""
    with tempfile.TemporaryDirectory() as root:
        context = gx.get_context(mode="file", project_root_dir=root)
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        batch = (
            context.data_sources.add_or_update_pandas("synthetic")
            .add_dataframe_asset("manifest")
            .add_batch_definition_whole_dataframe("all")
        )
        suite = context.suites.add(gx.ExpectationSuite(name="structure", expectations=list(expected)))
        definition = context.validation_definitions.add(gx.ValidationDefinition(name="structure", data=batch, suite=suite))
        actions = [UpdateDataDocsAction(name="data_docs")]
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(name="structure", validation_definitions=[definition], actions=actions, result_format="SUMMARY")
        )
        run = checkpoint.run(batch_parameters={"dataframe": table}, run_id=_RUN)
        results = [result for validation in run.run_results.values() for result in validation.results]
        docs = _collect_docs(Path(root) / "gx" / "uncommitted" / "data_docs" / "local_site")
    failures = [_sentence(result) for result in results if result.success is not True]
    if not results or len(results) != len(expected):
        failures.append(f"{len(results)} of {len(expected)} expectations came back with a result, which is not a pass")
    # Suites are stored as sets by random id: the order of what we write is ours.
    plain = sorted((_plain(result) for result in results), key=lambda r: (r["type"], str(r["kwargs"])))
    return Structure(failures=tuple(sorted(failures)), results=tuple(plain), docs=docs)


def _all_equal(column: str, value: int) -> Expectation:
    return ExpectColumnDistinctValuesToBeExactly(column=column, value_set=[value])


def _plain(result: ExpectationValidationResult) -> dict[str, Any]:
    """What is stored of a result: no ids, no batch, no timings."""
    content = result.to_json_dict()
    config = content["expectation_config"]
    kwargs = {name: value for name, value in config["kwargs"].items() if name != "batch_id"}
    raised = content["exception_info"]
    return {
        "type": config["type"],
        "kwargs": kwargs,
        "success": result.success is True,
        "result": {k: v for k, v in content["result"].items() if k in ("observed_value", "unexpected_count", "element_count", "details")},
        "exception": _exception(raised),
    }


def _exception(info: Any) -> str | None:
    """The message of whatever an expectation raised: Great Expectations nests it under a metric's id for some of them."""
    if not isinstance(info, dict):
        return None
    if info.get("raised_exception"):
        return str(info.get("exception_message"))
    nested = (_exception(value) for value in info.values())
    return next((message for message in nested if message), None)


def _sentence(result: ExpectationValidationResult) -> str:
    """The failed expectation as a person would say it."""
    plain = _plain(result)
    column = plain["kwargs"].get("column")
    subject = f"column {column!r}" if column else "the table"
    details = result.result
    if plain["exception"]:
        return f"{subject}: {plain['type']} could not be checked ({plain['exception']})"
    if plain["type"] == "expect_column_values_to_not_be_null":
        return f"{subject}: {details.get('unexpected_count')} records have no value"
    if missing := details.get("partial_missing_list"):
        others = f"; it has {_some(details['partial_unexpected_list'])}" if details.get("partial_unexpected_list") else ""
        return f"{subject}: no record has {_some(missing)}, which is expected{others}"
    if unexpected := details.get("partial_unexpected_list"):
        accepted = f"; only {_some(plain['kwargs']['value_set'])} is accepted" if "value_set" in plain["kwargs"] else ""
        return f"{subject}: {plain['type'].removeprefix('expect_')} failed for {_some(unexpected)}{accepted}"
    wanted = ", ".join(f"{name} {value}" for name, value in plain["kwargs"].items() if name != "column")
    return f"{subject}: {plain['type'].removeprefix('expect_')} failed, found {_found(details)}{f'; accepted: {wanted}' if wanted else ''}"


def _some(values: Sequence[Any]) -> str:
    """The first few different values."""
    names = list(dict.fromkeys(map(str, values)))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _found(details: dict[str, Any]) -> str:
    if details.get("observed_value") is not None:
        return str(details["observed_value"])
    return f"{details['unexpected_count']} such values" if "unexpected_count" in details else "nothing"


def _collect_docs(site: Path) -> dict[str, str]:
    """The pages alone, self-contained: no remote scripts, styles or tracking images, no ids or times that differ from run to run."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        text = _TIME.sub("", _REMOTE.sub("", path.read_text("utf-8")))
        for number, value in enumerate(dict.fromkeys(_RANDOM_ID.findall(text))):
            text = text.replace(value, f"id-{number}")
        pages[path.relative_to(site).as_posix()] = text
    return pages

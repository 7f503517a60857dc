"""Runs Great Expectations so that nothing passes unchecked: tables and what is expected of them in, sentences out.

The library passes NaN in a range check, an empty table in a uniqueness check, a suite that expects nothing, and the records that a
tolerance (`mostly`) or a condition (`row_condition`) leaves out. So every expectation must return a result without an exception and
without one unexpected value, even if it reports success; tolerances, conditions and severities that fail nothing are refused.
"""

import datetime
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # telemetry, read when the library is imported

import great_expectations as gx
import pandas as pd
from great_expectations.checkpoint import UpdateDataDocsAction
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation import Expectation

# One fixed run name: the pages must not depend on when they were made.
_RUN = RunIdentifier("validation", datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
_REMOTE = re.compile(
    r"<(script|link|img)\b[^>]*\b(?:src|href)\s*=\s*[\"']https?://[^>]*>(\s*</script>)?|url\(\s*['\"]?https?://[^)]*\)", re.DOTALL
)
_TIME = re.compile(r"(?!20000101)\d{8}T\d{6}\.\d{6}Z")
_RANDOM_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_KEPT = ("observed_value", "unexpected_count", "element_count", "details")
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A table and everything that is expected of it; `meta["complaint"]` of an expectation is the message for its failure.

    A complaint is a format string with {found} the observed value, {count} unexpected values, {n} records, {some} unexpected and
    {missing} values.
    """

    name: str
    table: pd.DataFrame
    expected: Sequence[Expectation]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Outcome of a suite: a sentence for each failed expectation, and all results as plain JSON types; both sorted."""

    failures: tuple[str, ...]
    results: tuple[dict[str, Any], ...]


def run_suites(suites: Sequence[Suite], *, pages: bool = True) -> tuple[dict[str, Found], dict[str, str]]:
    """Run each suite through a checkpoint of one file context; the outcome by suite name, and the Data Docs by relative path.

    An exception inside an expectation is a failure of that expectation, and so is a missing result. Without `pages` there are no docs.
    """
    with tempfile.TemporaryDirectory() as root:
        context = gx.get_context(mode="file", project_root_dir=root)
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        source = context.data_sources.add_or_update_pandas("synthetic")
        found = {}
        for suite in suites:
            batch = source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("all")
            added = context.suites.add(gx.ExpectationSuite(name=suite.name, expectations=list(suite.expected)))
            definition = context.validation_definitions.add(gx.ValidationDefinition(name=suite.name, data=batch, suite=added))
            # The pages show every suite, so they are made after the last one.
            actions = [UpdateDataDocsAction(name="data_docs")] if pages and suite is suites[-1] else []
            checkpoint = context.checkpoints.add(
                gx.Checkpoint(name=suite.name, validation_definitions=[definition], actions=actions, result_format="SUMMARY")
            )
            run = checkpoint.run(batch_parameters={"dataframe": suite.table}, run_id=_RUN)
            found[suite.name] = _found(suite, [result for validation in run.run_results.values() for result in validation.results])
        return found, _collect_docs(Path(root) / "gx" / "uncommitted" / "data_docs" / "local_site")


def _found(suite: Suite, results: Sequence[ExpectationValidationResult]) -> Found:
    n = len(suite.table)
    failed = [result for result in results if not _passed(result)]
    # On an empty table everything fails; report only that it is empty.
    empty = [result for result in failed if result.expectation_config.type.startswith("expect_table_row_count")]
    failures = [_sentence(result, n) for result in (empty if n == 0 and empty else failed)]
    failures += [f"{check.expectation_type} may leave records out, which is not a check" for check in suite.expected if _lenient(check)]
    if not results or len(results) != len(suite.expected):
        failures.append(f"{len(results)} of {len(suite.expected)} expectations came back with a result, which is not a pass")
    # Great Expectations stores suites as sets with random ids, so the results are sorted here.
    plain = sorted((_plain(result) for result in results), key=lambda r: (r["type"], str(r["kwargs"])))
    return Found(failures=tuple(sorted(set(failures))), results=tuple(plain))


def _lenient(check: Expectation) -> bool:
    return getattr(check, "mostly", 1) != 1 or getattr(check, "row_condition", None) is not None


def _passed(result: ExpectationValidationResult) -> bool:
    # A tolerance or a severity would leave `success` true with values that are not as expected.
    unexpected = result.result.get("unexpected_count") or 0
    return result.success is True and unexpected == 0 and _exception(result.to_json_dict()["exception_info"]) is None


def _plain(result: ExpectationValidationResult) -> dict[str, Any]:
    """What is stored of a result: no ids, no batch, no timings."""
    content = result.to_json_dict()
    config = content["expectation_config"]
    return {
        "type": config["type"],
        "kwargs": {name: value for name, value in config["kwargs"].items() if name != "batch_id"},
        "success": _passed(result),
        "result": {name: _finite(value) for name, value in content["result"].items() if name in _KEPT},
        "exception": _exception(content["exception_info"]),
    }


def _finite(value: Any) -> Any:
    """The value, or its text for a number that JSON cannot hold: NaN and infinities."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _exception(info: Any) -> str | None:
    """The message of an exception in an expectation; Great Expectations nests some of them under a metric's id."""
    if not isinstance(info, dict):
        return None
    if info.get("raised_exception"):
        return str(info.get("exception_message"))
    nested = (_exception(value) for value in info.values())
    return next((message for message in nested if message), None)


def _sentence(result: ExpectationValidationResult, n: int) -> str:
    """The failed expectation as one sentence."""
    config, details = result.expectation_config, result.result
    column = config.kwargs.get("column")
    if raised := _exception(result.to_json_dict()["exception_info"]):
        return f"{f'column {column!r}' if column else 'the table'}: {config.type} could not be checked ({raised})"
    complaint = (config.meta or {}).get("complaint")
    if complaint is None:
        return f"{f'column {column!r}' if column else 'the table'}: {config.type.removeprefix('expect_')} failed, found {_some(details)}"
    fields: Mapping[str, Any] = {
        "found": details.get("observed_value"),
        "count": details.get("unexpected_count"),
        "n": n,
        "some": _some(details.get("partial_unexpected_list") or []),
        "missing": _some(details.get("partial_missing_list") or []),
    }
    return complaint.format(**fields)


def _some(values: Any) -> str:
    """The first few different values."""
    names = list(dict.fromkeys(map(str, values))) if isinstance(values, Sequence) else [str(values)]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _collect_docs(site: Path) -> dict[str, str]:
    """The pages alone, self-contained: no remote scripts, styles or tracking images, no ids or times that differ from run to run."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        text = _TIME.sub("", _REMOTE.sub("", path.read_text("utf-8")))
        for number, value in enumerate(dict.fromkeys(_RANDOM_ID.findall(text))):
            text = text.replace(value, f"id-{number}")
        pages[path.relative_to(site).as_posix()] = text
    return pages

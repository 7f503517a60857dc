"""A run's workflow stays below what Argo takes: estimated from the compiled file, against a run that was measured on a server."""

import ast
import copy
import inspect
from pathlib import Path
from typing import Any

import pytest

from gda.config.load import Config
from gda.steps.entry import MOST_PODS, MOST_WORKERS, planned, planned_points
from gda.steps.form import classifier_runs
from pipelines.cli import main
from pipelines.compiling import COMPILED
from pipelines.documents import node_groups, read_compiled, tasks_of
from pipelines.registry import PIPELINES
from pipelines.scope_lint import lint
from pipelines.size import BUDGET, KIB, LIMIT, estimate
from pipelines.steps import EXEMPT, WIDTHS

SPEC, PLATFORM = read_compiled(COMPILED / "augment.yaml")


def test_the_measured_run() -> None:
    """On Kubeflow Pipelines 2.17.0, a run with seven pods in loops was 616 KiB: the estimate is not below it, and not far above."""
    size = estimate(SPEC, PLATFORM, {"plan-sampling": 2, "plan-classifiers": 5})
    assert size.num_pods == 7
    assert 0.98 * 616 * KIB < size.total < 1.1 * 616 * KIB


@pytest.mark.parametrize("name", PIPELINES)
def test_shipped_pipelines_fit_with_their_loops_at_their_widest(name: str) -> None:
    """No value of a run's form makes a workflow that Argo refuses hours later."""
    spec, platform = read_compiled(COMPILED / f"{name}.yaml")
    assert estimate(spec, platform, WIDTHS).total <= BUDGET < 0.86 * LIMIT
    assert lint(spec, platform, **EXEMPT) == []


def test_the_default_form_is_well_below() -> None:
    """Its 46 classifiers are a pod for each arm; one for each classifier would be over the limit."""
    runs = classifier_runs(Config())
    arms = len({run["arm"] for run in runs})
    assert len(runs) == 46
    size = estimate(SPEC, PLATFORM, {"plan-sampling": 4, "plan-classifiers": arms})
    assert size.total < 0.7 * LIMIT
    assert estimate(SPEC, PLATFORM, {"plan-sampling": 4, "plan-classifiers": len(runs)}).total > LIMIT


def test_widths_are_those_that_plans_hold_to() -> None:
    """What the lint takes for a loop's width is what the steps that plan it refuse to go above; each planned loop is known."""
    assert WIDTHS == {"plan-sampling": MOST_PODS, "plan-classifiers": MOST_PODS, "plan-points": MOST_WORKERS}
    for function, most in ((planned, ["MOST_PODS"]), (planned_points, [])):
        (call,) = [
            node
            for node in ast.walk(ast.parse(inspect.getsource(function)))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require_workers"
        ]
        assert [getattr(argument, "id", "") for argument in call.args[2:]] == most
    lists = {
        task["parameterIterator"]["items"]["inputParameter"]
        for name in PIPELINES
        for _, group in node_groups(read_compiled(COMPILED / f"{name}.yaml")[0])
        for task in tasks_of(group).values()
        if "parameterIterator" in task
    }
    assert {name.removeprefix("pipelinechannel--").removesuffix("-Output") for name in lists} == set(WIDTHS)


def _wider(spec: dict[str, Any], count: int) -> dict[str, Any]:
    """Every loop over `count` items that are written out."""
    changed = copy.deepcopy(spec)
    for _, group in node_groups(changed):
        for task in tasks_of(group).values():
            if "parameterIterator" in task:
                task["parameterIterator"]["items"] = {"raw": str(["x"] * count).replace("'", '"')}
    return changed


def test_loops_that_are_too_wide_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lint says how large the workflow would be and what it is made of; branches of which one runs are counted once."""
    narrow, wide = (estimate(_wider(SPEC, count), PLATFORM, {}) for count in (5, 25))
    assert (narrow.num_pods, wide.num_pods) == (10, 50)
    (finding,) = [finding for finding in lint(_wider(SPEC, 25), PLATFORM, **EXEMPT) if finding.where == "root"]
    assert str(finding) == f"root: makes {wide}"
    assert "50 pods of loops" in str(finding)
    assert "Argo takes 1024" in str(finding)
    assert [finding for finding in lint(_wider(SPEC, 5), PLATFORM, **EXEMPT) if finding.where == "root"] == []


def test_a_loop_of_unknown_width_is_taken_for_wide() -> None:
    """A planner that nobody says a width of may give as many items as any loop may have."""
    assert estimate(SPEC, PLATFORM, {}).num_pods == 100
    assert any("makes a workflow" in finding.what for finding in lint(SPEC, PLATFORM))


def test_the_command_prints_the_size(capsys: pytest.CaptureFixture[str]) -> None:
    """Who adds a step sees what it costs."""
    assert main(["lint", str(COMPILED / "promote.yaml")]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert "promote.yaml: a workflow of about " in first
    assert last == "nothing found"

"""No step is cached where a OneOf reads: servers leave its group RUNNING after a hit, and every second run then fails."""

import copy
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl
from kfp.compiler import Compiler

from pipelines.compiling import COMPILED
from pipelines.documents import component_of, node_groups, read_compiled, tasks_of
from pipelines.registry import PIPELINES
from pipelines.scope_lint import lint
from pipelines.steps import EXEMPT

MESSAGE = "is cached in a branch that a OneOf reads; set_caching_options(False)"


def _steps(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """Group and name of every task that is a step."""
    tasks = [(name, task) for name, group in node_groups(spec) for task in tasks_of(group).items()]
    return [(group, name) for group, (name, task) in tasks if "executorLabel" in component_of(spec, task)]


def _found(spec: dict[str, Any], platform: dict[str, Any]) -> set[str]:
    return {finding.where for finding in lint(spec, platform, **EXEMPT) if finding.what == MESSAGE}


def _with_cache(spec: dict[str, Any], group: str, name: str) -> dict[str, Any]:
    changed = copy.deepcopy(spec)
    holder = changed["root"] if group == "root" else changed["components"][group]
    holder["dag"]["tasks"][name]["cachingOptions"] = {"enableCache": True}
    return changed


@pytest.mark.parametrize("name", PIPELINES)
def test_shipped_pipelines_cache_nothing_there(name: str) -> None:
    """A second run of each, and every run of a schedule, gets past its branches."""
    assert _found(*read_compiled(COMPILED / f"{name}.yaml")) == set()


def test_each_step_of_a_branch_that_is_cached_is_found() -> None:
    """Steps of both ways to fine-tune, to sample and to train classifiers, in loops too; steps elsewhere may be cached."""
    spec, platform = read_compiled(COMPILED / "augment.yaml")
    found = {where for group, name in _steps(spec) for where in _found(_with_cache(spec, group, name), platform)}
    inside = {"finetune", "finetune-job", "plan-sampling", "sample-shards", "sample", "sample-job"}
    inside |= {"classify", "classify-job", "gather-classifiers", "gather-classifiers-2"}
    assert {where.partition("/")[2] for where in found} == inside
    kept = {name for group, name in _steps(spec) if spec["components"].get(group, spec["root"])["dag"]["tasks"][name]["cachingOptions"]}
    assert kept >= {"snapshot", "reference", "tune", "validate", "evaluate", "plan-classifiers"}


@dsl.component(base_image="image", install_kfp_package=False)
def make(text: str, made: dsl.Output[dsl.Dataset]) -> str:
    """A text and a file."""
    return text


@dsl.component(base_image="image", install_kfp_package=False)
def read(made: dsl.Input[dsl.Dataset]) -> None:
    """A step with a file."""


def _compiled(folder: Path, *, cached: bool, chosen: bool) -> dict[str, Any]:
    @dsl.pipeline
    def either(text: str = "a") -> None:
        before = make(text="before")
        with dsl.If(text == "a"):
            one = make(text="one").set_caching_options(cached)
        with dsl.Else():
            other = make(text="other").set_caching_options(cached)
        read(made=dsl.OneOf(one.outputs["made"], other.outputs["made"]) if chosen else before.outputs["made"])

    Compiler().compile(either, str(folder / "p.yaml"))
    return read_compiled(folder / "p.yaml")[0]


def test_files_are_chosen_from_branches_as_texts_are(tmp_path: Path) -> None:
    """The rule is of any OneOf, of files too; a branch that no OneOf reads may be cached, and so may one without hits."""
    assert len(_found(_compiled(tmp_path, cached=True, chosen=True), {})) == 2
    assert _found(_compiled(tmp_path, cached=False, chosen=True), {}) == set()
    assert _found(_compiled(tmp_path, cached=True, chosen=False), {}) == set()

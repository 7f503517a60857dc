"""The lint of compiled pipelines: what the compiler lets through is found, a sound pipeline has no finding, every damage to it has one."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl, kubernetes
from kfp.compiler import Compiler

from pipelines.compiling import COMPILED
from pipelines.documents import read_compiled
from pipelines.scope_lint import lint
from pipelines.steps import EXEMPT

AUGMENT = COMPILED / "augment.yaml"


@dsl.component(base_image="image", install_kfp_package=False)
def names(count: int) -> list[dict]:
    """A list of items that is known when the pipeline runs."""
    return [{"name": str(i)} for i in range(count)]


@dsl.component(base_image="image", install_kfp_package=False)
def work(text: str) -> str:
    """A step with one text."""
    return text


@dsl.component(base_image="image", install_kfp_package=False)
def join(texts: list[str]) -> None:
    """A step with many texts."""


@dsl.component(base_image="image", install_kfp_package=False)
def close() -> None:
    """An exit handler."""


def _placed(task: Any) -> Any:
    task.set_cpu_limit("1").set_memory_limit("1Gi").set_retry(num_retries=1)
    kubernetes.set_timeout(task, 60)
    return kubernetes.set_security_context(task, run_as_non_root=True)


def _compiled(pipeline: Callable[..., Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    Compiler().compile(pipeline, str(folder / "p.yaml"))
    return read_compiled(folder / "p.yaml")


def test_an_item_in_text_inside_an_exit_handler(tmp_path: Path) -> None:
    """kubeflow/pipelines#12390: the exit handler is given a loop's item, which nothing outside the loop has."""

    @dsl.pipeline
    def leaking(items: list[str] = ["a"]) -> None:  # noqa: B006
        with dsl.ExitHandler(_placed(close())), dsl.ParallelFor(items, name="loop") as item:
            _placed(work(text=f"name {item}"))

    @dsl.pipeline
    def sound(items: list[str] = ["a"]) -> None:  # noqa: B006
        with dsl.ExitHandler(_placed(close())), dsl.ParallelFor(items, name="loop") as item:
            _placed(work(text=item))

    found = lint(*_compiled(leaking, tmp_path))
    assert [finding for finding in found if finding.where == "root/exit-handler-1" and "which its group does not have" in finding.what]
    assert lint(*_compiled(sound, tmp_path)) == []


def test_an_item_of_a_steps_list_in_text(tmp_path: Path) -> None:
    """Of a list that a step gives, the compiler writes the item's name into the text in place of the item."""

    @dsl.pipeline
    def garbled() -> None:
        given = _placed(names(count=2))
        with dsl.ParallelFor(given.output, name="loop") as item:
            _placed(work(text=f"name {item.name}"))

    assert "text holds the name of a loop's item in its place" in {finding.what for finding in lint(*_compiled(garbled, tmp_path))}


@pytest.mark.parametrize("group", ["condition", "exit handler"])
def test_literal_dicts_inside_a_group(tmp_path: Path, group: str) -> None:
    """kubeflow/pipelines#13273: such a loop compiles and fails when it runs; at the top level it is fine."""

    @dsl.pipeline
    def failing(go: bool = True) -> None:
        inside = dsl.If(go == True, name="go") if group == "condition" else dsl.ExitHandler(_placed(close()))  # noqa: E712
        with inside, dsl.ParallelFor([{"a": "1"}, {"a": "2"}], name="loop") as item:
            _placed(work(text=item.a))

    @dsl.pipeline
    def sound() -> None:
        with dsl.ParallelFor([{"a": "1"}, {"a": "2"}], name="loop") as item:
            _placed(work(text=item.a))

    assert [str(finding) for finding in lint(*_compiled(failing, tmp_path)) if "literal dicts" in finding.what]
    assert lint(*_compiled(sound, tmp_path)) == []


def test_parameters_that_only_set_resources(tmp_path: Path) -> None:
    """Inside a group a run parameter that sets a limit and nothing else is read, and never handed in."""

    @dsl.pipeline
    def failing(memory: str = "1Gi") -> None:
        with dsl.ExitHandler(_placed(close())):
            _placed(work(text="a")).set_memory_limit(memory)

    @dsl.pipeline
    def sound(memory: str = "1Gi") -> None:
        with dsl.ExitHandler(_placed(close())):
            _placed(work(text=memory)).set_memory_limit(memory)

    assert any("memory" in finding.what and "does not have" in finding.what for finding in lint(*_compiled(failing, tmp_path)))
    assert lint(*_compiled(sound, tmp_path)) == []


def test_dictionaries_and_long_loops(tmp_path: Path) -> None:
    """Whole numbers in dictionaries become floating point; loops of more than fifty pods are too many."""

    @dsl.component(base_image="image", install_kfp_package=False)
    def with_dict(settings: dict) -> None:
        """A step with a dictionary."""

    @dsl.pipeline
    def wide(settings: dict = {"a": 1}) -> None:  # noqa: B006
        _placed(with_dict(settings=settings))
        with dsl.ParallelFor([str(i) for i in range(51)], name="loop") as item:
            _placed(work(text=item))

    found = [finding.what for finding in lint(*_compiled(wide, tmp_path))]
    assert any("settings is a dictionary" in what for what in found)
    assert "loops 51 times; at most 50" in found
    assert not [f for f in lint(*_compiled(wide, tmp_path), structs=frozenset({"settings"})) if "dictionary" in f.what]


def test_a_collected_loop_with_a_name(tmp_path: Path) -> None:
    """kubeflow/pipelines#13239: a server looks the loop up under the name that it is shown by, unless it has none of its own."""

    def collecting(name: str | None) -> list[str]:
        @dsl.pipeline
        def pipeline(items: list[str] = ["a"]) -> None:  # noqa: B006
            with dsl.ParallelFor(items, name=name) as item:
                worked = _placed(work(text=item))
            _placed(join(texts=dsl.Collected(worked.output)))

        return [str(finding) for finding in lint(*_compiled(pipeline, tmp_path), named_loops=frozenset({"known"}))]

    assert collecting(None) == collecting("known") == []
    assert collecting("parts") == ["root/for-loop-1: is named parts, and its outputs are collected; leave name= out"]


def test_what_runs_without_the_cache_is_listed(tmp_path: Path) -> None:
    """A step that lost its cache is paid for again in each run: it must be known by name."""

    @dsl.pipeline
    def uncached() -> None:
        _placed(work(text="a")).set_caching_options(False)

    files = _compiled(uncached, tmp_path)
    assert [str(finding) for finding in lint(*files, uncached=frozenset())] == ["root/work: is not cached"]
    assert lint(*files, uncached=frozenset({"work"})) == []


@pytest.mark.parametrize("path", sorted(COMPILED.glob("*.yaml")), ids=lambda path: path.name)
def test_the_checked_in_pipelines_are_sound(path: Path) -> None:
    """Neither form of any pipeline has a finding."""
    spec, platform = read_compiled(path)
    assert spec["deploymentSpec"]["executors"]
    assert platform
    assert lint(spec, platform, **EXEMPT) == []


def _group(spec: dict[str, Any], task: str) -> dict[str, Any]:
    """The tasks of the group that holds `task`."""
    groups = [spec["root"], *spec["components"].values()]
    (found,) = [group["dag"]["tasks"] for group in groups if task in group.get("dag", {}).get("tasks", {})]
    return found


def _outer(spec: dict[str, Any], task: str) -> dict[str, Any]:
    """The component of the group that holds `task`."""
    (found,) = [c for c in spec["components"].values() if task in c.get("dag", {}).get("tasks", {})]
    return found


def _without_input(spec: dict[str, Any]) -> None:
    del _group(spec, "reference")["reference"]["inputs"]["parameters"]["snapshot"]


def _without_definition(spec: dict[str, Any]) -> None:
    del _outer(spec, "sample-shards")["inputDefinitions"]["parameters"]["pipelinechannel--tune-Output"]


def _renamed_definition(spec: dict[str, Any]) -> None:
    parameters = _outer(spec, "classify")["inputDefinitions"]["parameters"]
    parameters["pipelinechannel--others"] = parameters.pop("pipelinechannel--snapshot-Output")


def _missing_producer(spec: dict[str, Any]) -> None:
    _group(spec, "reference")["reference"]["inputs"]["parameters"]["snapshot"]["taskOutputParameter"]["producerTask"] = "snapshots"


def _missing_output(spec: dict[str, Any]) -> None:
    _group(spec, "reference")["reference"]["inputs"]["parameters"]["snapshot"]["taskOutputParameter"]["outputParameterKey"] = "Out"


def _missing_component(spec: dict[str, Any]) -> None:
    _group(spec, "finetune")["finetune"]["componentRef"]["name"] = "comp-none"


def _condition_without_input(spec: dict[str, Any]) -> None:
    for group in spec["components"].values():
        for task in group.get("dag", {}).get("tasks", {}).values():
            if "condition" in task.get("triggerPolicy", {}):
                task["inputs"]["parameters"] = {
                    name: source for name, source in task["inputs"]["parameters"].items() if "passed" not in name and "workers" not in name
                }


def _loop_over_nothing(spec: dict[str, Any]) -> None:
    for group in spec["components"].values():
        for task in group.get("dag", {}).get("tasks", {}).values():
            if "parameterIterator" in task:
                task["parameterIterator"]["items"]["inputParameter"] = "pipelinechannel--none"


def _no_memory_limit(spec: dict[str, Any]) -> None:
    del spec["deploymentSpec"]["executors"]["exec-finetune"]["container"]["resources"]["resourceMemoryLimit"]


def _no_retry(spec: dict[str, Any]) -> None:
    del _group(spec, "finetune")["finetune"]["retryPolicy"]


def _text_out_of_scope(spec: dict[str, Any]) -> None:
    constant = {"runtimeValue": {"constant": "{{$.inputs.parameters['pipelinechannel--nobody']}}"}}
    _group(spec, "reference")["reference"]["inputs"]["parameters"]["code"] = constant


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_input, "lacks snapshot"),
        (_without_definition, "reads pipelinechannel--tune-Output, which its group does not have"),
        (_renamed_definition, "reads pipelinechannel--snapshot-Output, which its group does not have"),
        (_missing_producer, "reads an output of snapshots, which is no task of the same scope"),
        (_missing_output, "reads Out of snapshot, which has no such output"),
        (_missing_component, "refers to a component that there is none of"),
        (_condition_without_input, "its condition reads"),
        (_loop_over_nothing, "loops over pipelinechannel--none"),
        (_no_memory_limit, "has no resourceMemoryLimit"),
        (_no_retry, "is not tried again"),
        (_text_out_of_scope, "writes pipelinechannel--nobody into text"),
    ],
)
def test_every_damage_is_found(damage: Callable[[dict[str, Any]], None], message: str) -> None:
    """Mutations of the sound pipeline, one each: its lint says which name or limit is missing."""
    spec, platform = copy.deepcopy(read_compiled(AUGMENT))
    damage(spec)
    assert [finding for finding in lint(spec, platform, **EXEMPT) if message in finding.what]


@pytest.mark.parametrize(("field", "message"), [("activeDeadlineSeconds", "has no timeout"), ("securityContext", "may run as root")])
def test_the_kubernetes_part_is_read(field: str, message: str) -> None:
    """A step without a timeout, or that may run as root, is found."""
    spec, platform = copy.deepcopy(read_compiled(AUGMENT))
    del platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-finetune"][field]
    assert [str(finding) for finding in lint(spec, platform, **EXEMPT)] == [f"exec-finetune: {message}"]


def test_another_image_is_found() -> None:
    """Every step runs in the image that the pipeline was compiled for."""
    spec, platform = read_compiled(AUGMENT)
    image = spec["deploymentSpec"]["executors"]["exec-finetune"]["container"]["image"]
    assert lint(spec, platform, image=image, **EXEMPT) == []
    assert len(lint(spec, platform, image="other@sha256:1", **EXEMPT)) == len(spec["deploymentSpec"]["executors"])

"""Every reference of a sound compiled pipeline, damaged one at a time: the lint has a finding for each, and none for the sound one."""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kfp import dsl, kubernetes
from kfp.compiler import Compiler

from pipelines.documents import node_groups, read_compiled, tasks_of
from pipelines.scope_lint import lint

IMAGE = "registry.test/image@sha256:" + 64 * "a"
Damaged = tuple[str, dict[str, Any], dict[str, Any]]
# Values that name something elsewhere in the file.
_REFERENCES = {
    "componentInputParameter", "componentInputArtifact", "producerTask", "producerSubtask", "outputParameterKey", "outputArtifactKey",
    "inputParameter", "executorLabel", "itemInput",
}  # fmt: skip
_DEFINITIONS = {"inputDefinitions", "outputDefinitions"}


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan(count: int, passed: dsl.OutputPath(bool)) -> list[str]:  # type: ignore[valid-type]
    """What there is to do."""
    return [str(i) for i in range(count)]


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sample(item: str, made: dsl.Output[dsl.Dataset]) -> str:
    """One part of it."""
    return item


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def join(parts: list[str], data: dsl.Input[list[dsl.Dataset]], memory: str) -> str:
    """All parts; the memory that the step is given is one of its inputs, as the compiler needs inside a group."""
    return ",".join(parts)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def skip(why: str) -> str:
    """None of them."""
    return why


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish(text: str) -> None:
    """The end of the work."""


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def close(status: dsl.PipelineTaskFinalStatus, claim: str) -> None:
    """What runs last."""


def _placed(task: Any, claim: Any) -> Any:
    task.set_cpu_limit("1").set_memory_limit("1Gi").set_retry(num_retries=1)
    kubernetes.set_timeout(task, 60)
    kubernetes.mount_pvc(task, pvc_name=claim, mount_path="/data")
    return kubernetes.set_security_context(task, run_as_non_root=True)


@dsl.pipeline
def whole(claim: str, count: int, memory: str) -> None:
    """A condition, a loop whose parts are collected, either of two outputs, an exit task: what the shipped pipelines are made of."""
    with dsl.ExitHandler(_placed(close(claim=claim), claim)):
        settings = _placed(plan(count=count), claim)
        with dsl.If(settings.outputs["passed"] == True, name="go"):  # noqa: E712
            with dsl.ParallelFor(settings.outputs["Output"], parallelism=2) as item:
                sampled = _placed(sample(item=item), claim).set_caching_options(False)
            parts, data = dsl.Collected(sampled.outputs["Output"]), dsl.Collected(sampled.outputs["made"])
            joined = _placed(join(parts=parts, data=data, memory=memory), claim).set_memory_limit(memory).set_caching_options(False)
        with dsl.Else(name="leave"):
            left = _placed(skip(why=memory), claim).set_caching_options(False)
        _placed(publish(text=dsl.OneOf(joined.output, left.output)), claim)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    path = tmp_path_factory.mktemp("whole") / "whole.yaml"
    Compiler().compile(whole, str(path))
    return read_compiled(path)


def _paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*path, key)
        yield from _paths(value, (*path, key))


def _damaged(sound: tuple[dict[str, Any], dict[str, Any]], wanted: Callable[[tuple[Any, ...]], bool], damage: str) -> Iterator[Damaged]:
    """A copy for each wanted path: what is there renamed (a value or a key), or dropped."""
    for path in [path for path in _paths(list(sound)) if wanted(path)]:
        files = copy.deepcopy(list(sound))
        holder: Any = files
        for key in path[:-1]:
            holder = holder[key]
        if damage == "value":
            holder[path[-1]] = f"{holder[path[-1]]}-gone"
        else:
            removed = holder.pop(path[-1])
            if damage == "key":
                holder[f"{path[-1]}-gone"] = removed
        yield "/".join(map(str, path)), files[0], files[1]


def _survivors(damaged: Iterator[Damaged]) -> tuple[int, list[str]]:
    results = [(where, bool(lint(spec, platform, image=IMAGE, uncached=frozenset()))) for where, spec, platform in damaged]
    return len(results), [where for where, found in results if not found]


def test_the_whole_pipeline_is_sound(sound: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """No finding where nothing is wrong, with every rule on."""
    assert lint(*sound, image=IMAGE, uncached=frozenset()) == []
    assert len(list(node_groups(sound[0]))) == 6
    assert all(tasks_of(group) for _, group in node_groups(sound[0]))


def test_every_reference_is_followed(sound: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """A name that is nowhere else: of an input, a task, an output, a component, an executor, a loop's list, a volume's claim."""
    number, survived = _survivors(_damaged(sound, lambda path: path[-1] in _REFERENCES or path[-2:-1] == ("dependentTasks",), "value"))
    assert number > 60
    assert survived == []
    number, survived = _survivors(_damaged(sound, lambda path: path[-2:] == ("componentRef", "name"), "value"))
    assert number == 11
    assert survived == []


@pytest.mark.parametrize("damage", ["key", "drop"])
def test_every_definition_is_needed(sound: tuple[dict[str, Any], dict[str, Any]], damage: str) -> None:
    """An input that a component does not declare any more, or an output that a reader waits for."""
    read = set(_read_outputs(sound[0]))

    def wanted(path: tuple[Any, ...]) -> bool:
        if len(path) < 4 or path[-2] not in ("parameters", "artifacts") or path[-3] not in _DEFINITIONS:
            return False
        return path[-3] == "inputDefinitions" or (path[2], path[-1]) in read

    number, survived = _survivors(_damaged(sound, wanted, damage))
    assert number > 30
    assert survived == []


def _read_outputs(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Component and name of every output that a task reads or a group hands out."""
    for name, group in node_groups(spec):
        tasks = tasks_of(group)
        for task in tasks.values():
            for sources in task.get("inputs", {}).values():
                for source in sources.values():
                    reference = source.get("taskOutputParameter") or source.get("taskOutputArtifact")
                    if reference:
                        key = reference.get("outputParameterKey") or reference.get("outputArtifactKey")
                        yield tasks[reference["producerTask"]]["componentRef"]["name"], key
        for kind in ("parameters", "artifacts"):
            for output in group.get("outputDefinitions", {}).get(kind, {}):
                yield name, output


@pytest.mark.parametrize("damage", ["key", "drop"])
def test_every_input_is_given(sound: tuple[dict[str, Any], dict[str, Any]], damage: str) -> None:
    """A task without an input that its component declares, or with one under another name."""

    def wanted(path: tuple[Any, ...]) -> bool:
        return (
            len(path) > 4
            and path[-3] == "inputs"
            and path[-2] in ("parameters", "artifacts")
            and path[-1] not in ("memory_limit", "status")
        )

    number, survived = _survivors(_damaged(sound, wanted, damage))
    assert number > 25
    assert survived == []


_STEP = ["resourceCpuLimit", "resourceMemoryLimit", "retryPolicy", "maxRetryCount", "cachingOptions", "enableCache", "image", "container"]
_POD = ["activeDeadlineSeconds", "runAsNonRoot", "securityContext"]


@pytest.mark.parametrize("last", [*_STEP, *_POD, "componentRef", "executorLabel", "taskOutputParameter", "componentInputParameter"])
def test_what_every_step_needs(sound: tuple[dict[str, Any], dict[str, Any]], last: str) -> None:
    """A step without a limit, retries, timeout, cache, image or user of its own, or with an input from nowhere."""
    # In the Kubernetes part a name that is dropped leaves a constant next to it.
    # Steps that a OneOf reads have the cache off, which is reported by options that say nothing.
    message = functools.partial(functools.reduce, lambda node, key: node[key])
    wanted = lambda path: path[-1] == last and "pvcMount" not in path and message(path, list(sound)) != {}  # noqa: E731
    number, survived = _survivors(_damaged(sound, wanted, "drop"))
    assert number > 0
    assert survived == []


def test_every_output_of_a_group_is_handed_out(sound: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """A group that declares an output and gives none, or gives one that it does not declare."""
    for damage in ("drop", "key"):
        number, survived = _survivors(_damaged(sound, lambda path: path[-4:-2] == ("dag", "outputs"), damage))
        assert number > 3
        assert survived == []

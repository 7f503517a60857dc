"""How the steps of `gda.flow` hang together when each runs by itself: what a step reads, which settings it sees, and its key.

Pure: no disk, no torch. A step's output is known by a `Reference` (where it lies, and the digest of its content), and a step by its key,
so that the same request finds the same folder again: a retried pod, a second run, or the report that looks a run up.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gda.artifacts.document import Document
from gda.artifacts.fingerprint import digest_of
from gda.config.arm import TRAININGS, Arm
from gda.config.load import Config, dump_config, parse_config
from gda.errors import DataError, UsageError
from gda.flow import CLASSIFIERS, EXTRA_NODES, GRAPH, Node, arm_inputs
from gda.runtime.reading import as_object, parse_json, whole_number

NODES = {node.name: node for node in (*GRAPH, *EXTRA_NODES)}
# The node that trains the classifiers of every arm; a step trains one of them.
CLASSIFY = "classify"
# What fields name outside the job, by role (`gda.flow.WATCHED`) and field: name and digest, as `gda.stages.inputs.contents_of` has them.
Outside = Mapping[str, Mapping[str, Any]]
_OUTSIDE = "outside"  # next to the sections in a step's settings
# A run of the job registers its candidate; `champion` is moved by another pipeline, under an account of its own.
REGISTER_FLAGS = ("--register-only",)


class Reference(Document):
    """Where an output lies and what is in it; what steps hand to each other in place of data."""

    uri: str
    digest: str

    @property
    def path(self) -> Path:
        """The folder or file. Raises `DataError` for anything that is no absolute path of this file system."""
        path = Path(self.uri.removeprefix("file://"))
        if "://" in self.uri.removeprefix("file://") or not path.is_absolute():
            raise DataError(f"{self.uri}: accepted: an absolute path on a volume that every step mounts, with or without file://")
        return path

    def text(self) -> str:
        """The reference as one line of JSON, which pipelines pass on as a string."""
        return json.dumps(self.model_dump(), sort_keys=True)


def parse_reference(text: str, *, role: str) -> Reference:
    """Read `Reference.text`. Raises `UsageError` that names the role."""
    try:
        return Reference.model_validate_json(text)
    except ValueError:
        raise UsageError(f"{role}: {text[:80]!r} is no reference; accepted: a JSON object with uri and digest") from None


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """One step to run: the node, the item of its matrix, its inputs by role, its settings, and flags in addition to the flow's own.

    `code` names program and image.
    """

    node: Node
    item: Mapping[str, str]
    inputs: Mapping[str, tuple[Reference, ...]]
    settings: str
    code: str
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the step's folder, such as `finetune` or `classify-real-0`."""
        return "-".join([CLASSIFY if self.node.matrix else self.node.name, *self.item.values()])

    @property
    def key(self) -> str:
        """sha256 over everything that decides the output; paths, and the order of classifiers, are not in it."""
        digests = {role: sorted(reference.digest for reference in given) for role, given in self.inputs.items()}
        request = {"step": self.name, "settings": json.loads(self.settings), "inputs": digests, "code": self.code}
        return digest_of(request | ({"flags": list(self.flags)} if self.flags else {}))


def settings_of(config: Config, node: Node, outside: Outside | None = None) -> str:
    """The sections that `node` depends on, resolved, and the content of what they name outside the job, as one line of JSON.

    A change of any other setting does not change this text; other images under the same path do.
    """
    resolved = dump_config(config)
    chosen: dict[str, Any] = {}
    for name in node.sections:
        section, _, leaf = name.partition(".")
        if not leaf:
            chosen[section] = resolved[section]
        elif not isinstance(chosen.get(section), dict) or leaf not in chosen[section]:
            chosen.setdefault(section, {})[leaf] = resolved[section][leaf]
    if watched := {role: outside[role] for role in node.watched if outside and outside.get(role)}:
        chosen[_OUTSIDE] = watched
    return json.dumps(chosen, sort_keys=True)


def config_of(settings: str) -> Config:
    """The configuration as a step sees it: its own sections, the defaults elsewhere. Raises `ConfigError`."""
    content = as_object(parse_json(settings, "settings", error=UsageError), "settings", error=UsageError)
    content = {name: section for name, section in content.items() if name != _OUTSIDE}
    classify = content.get("classify", {})
    arms = classify.get("arms") if isinstance(classify, dict) else None
    if isinstance(arms, list) and arms and "promote" not in content:
        # This step has the compared arms but not the declared one; any of them serves to parse the rest.
        content = {**content, "promote": {"arm": arms[0]}}
    if isinstance(arms, list) and "trainings" not in classify:
        # It does not have the trainings of the arms either, and does not need them.
        own = {_training_of(arm) for arm in arms} - {"", *TRAININGS}
        content = {**content, "classify": {**classify, "trainings": {name: {} for name in sorted(own)}}}
    return parse_config(content, where="settings")


def _training_of(arm: object) -> str:
    try:
        return Arm(str(arm)).training
    except ValueError:
        return ""  # which parsing refuses by its field


def make_step_request(
    name: str,
    *,
    inputs: Mapping[str, tuple[Reference, ...]],
    settings: str,
    code: str,
    item: Mapping[str, str],
    flags: tuple[str, ...] = (),
) -> StepRequest:
    """Check that `inputs` are what the node reads, and leave out what this arm does not. Raises `UsageError`."""
    node = node_of(name, item)
    wanted = roles(node, item)
    if node.matrix:
        item = {"arm": item["arm"], "seed": item["seed"]}
    if missing := [role for role in wanted if not inputs.get(role)]:
        raise UsageError(f"{name}: no reference for {', '.join(missing)}; given: {', '.join(inputs) or 'none'}")
    settings = json.dumps(json.loads(settings), sort_keys=True)
    return StepRequest(
        node=node, item=dict(item), inputs={role: inputs[role] for role in wanted}, settings=settings, code=code, flags=flags
    )


def node_of(name: str, item: Mapping[str, str]) -> Node:
    """The node of the graph; of classifiers `item` has arm and seed. Raises `UsageError`."""
    if name not in NODES:
        raise UsageError(f"{name}: no step of the job; accepted: {', '.join(NODES)}")
    if name != CLASSIFY:
        return NODES[name]
    try:
        Arm(item.get("arm", ""))
    except ValueError as error:
        raise UsageError(f"classify: {error}") from None
    if whole_number(item.get("seed", "")) is None:
        raise UsageError(f"classify: seed {item.get('seed')!r}; accepted: a number")
    return NODES[CLASSIFY]


def roles(node: Node, item: Mapping[str, str]) -> dict[str, str]:
    """What the node reads: role -> path in the flow."""
    if not node.matrix:
        return dict(node.inputs)
    return {"snapshot": node.inputs["snapshot"]} | arm_inputs(Arm(item["arm"]))


def producer(path: str) -> tuple[str, str]:
    """Name of the node that writes the flow's `path`, and which of its outputs that lies in."""
    for node in GRAPH:
        for output in node.outputs:
            if PurePosixPath(path).is_relative_to(output):
                return node.name, output
    return CLASSIFY, CLASSIFIERS


def argv(request: StepRequest, folder: Path) -> list[str]:
    """The flow's own command for `request`, with its paths: outputs below `folder`, inputs where they lie."""
    resolved = dump_config(config_of(request.settings))

    def value(name: str) -> str:
        section, leaf = name.split(".")
        return str(resolved[section][leaf])

    return [
        *request.node.words(
            inputs={role: _places(flow, request.inputs[role]) for role, flow in roles(request.node, request.item).items()},
            outputs={path: str(folder / place) for path, place in _outputs(request).items()},
            value=value,
            item=request.item,
        ),
        *request.flags,
    ]


def output_paths(request: StepRequest) -> tuple[str, ...]:
    """The flow's paths of what the step writes, its own output first."""
    return tuple(_outputs(request).values())


def _outputs(request: StepRequest) -> dict[str, str]:
    """The node's outputs and where the step writes them; one classifier per step, as its siblings are steps of their own."""
    main = f"{CLASSIFIERS}/{request.item['arm']}/{request.item['seed']}" if request.node.matrix else request.node.output
    return {path: main if path == request.node.output else path for path in request.node.outputs}


def _places(flow: str, given: tuple[Reference, ...]) -> list[str]:
    """Paths of an input; a file within another step's output is found there under the name that the flow gives it."""
    _, output = producer(flow)
    within = PurePosixPath(flow).relative_to(output) if flow != CLASSIFIERS else PurePosixPath()
    return [str(reference.path / within) for reference in given]

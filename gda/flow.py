"""The typed graph of the workflow: every step with its configuration sections, inputs, output and command.

The command line, `dvc.yaml`, `params.yaml` and the pipeline are generated from it or contract-tested against it:
`python -m gda.flow` prints the `dvc.yaml` of the built-in run.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gda.config.arm import Arm

STAGE_NAMES = ("snapshot", "finetune", "tune", "sample", "validate", "classify", "evaluate", "promote")

REAL = "data/real"
SYNTHETIC = "data/synthetic"
ZERO_SHOT = "data/zero_shot"
IMG2IMG = "data/img2img"
POOL = "data/pool"
ACCEPTED = "data/accepted"
REFERENCE = "models/reference"
GENERATOR = "models/generator"
CLASSIFIERS = "models/classifiers"
TUNING = "reports/tuning"
TUNING_ZERO_SHOT = "reports/tuning_zero_shot"
VALIDATION = "reports/validation"
VERDICT = f"{VALIDATION}/verdict.json"
EVALUATION = "reports/evaluation"
PROMOTION = "reports/promotion"
RATIO = "reports/ratio"
INPUTS = "data/inputs"
# One file of digests per compared arm, on which its classifiers depend: DVC's templates cannot express which sets an arm reads.
ARM_DIGESTS = "data/arms"
# What arms read in addition to the real snapshot, by role; `arm_inputs` lists those of one arm.
ARM_SETS = {"synthetic": ACCEPTED, "zero_shot": ZERO_SHOT, "img2img": IMG2IMG, "pool": POOL, "verdict": VERDICT, "reference": REFERENCE}

# External inputs that fields name: `gda inputs` writes one file of content digests per role to `INPUTS`, on which DVC's stages depend.
WATCHED = ("source", "pool", "base", "prompts", "quotas", "features", "pretrained", "sets")

# Settings of feature extraction: every stage that extracts features depends on them.
EXTRACTOR = ("validate.extractor", "validate.extractor_weights", "validate.image_size")


@dataclass(frozen=True, kw_only=True)
class Node:
    """One step of the graph: `stage` is the verb, `variant` distinguishes two uses of one verb, `inputs` are paths by role.

    The command has a flag per role of `inputs` and `more_outputs`, `--out` with `output`, a flag per entry of `fields` with the value of
    that field of the configuration, the value of the field `argument` without a flag, and `switches` as they are.
    `watched` are the roles of `WATCHED` that the step reads. `always_changed` steps depend on something outside the folder, such as the
    registry, and run each time. The output of a `kept` step is still there when it runs again: its command replaces only what has to
    change. A step with a `matrix` is one for each of its items.
    """

    stage: str
    variant: str = ""
    sections: tuple[str, ...]
    inputs: dict[str, str]
    watched: tuple[str, ...] = ()
    output: str
    more_outputs: dict[str, str] = field(default_factory=dict)
    argument: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    switches: tuple[str, ...] = ()
    helper: bool = False
    always_changed: bool = False
    kept: bool = False
    matrix: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the step, such as `sample` or `sample_zero_shot`."""
        return f"{self.stage}_{self.variant}" if self.variant else self.stage

    @property
    def outputs(self) -> tuple[str, ...]:
        """Paths of all outputs, the main one first."""
        return (self.output, *self.more_outputs.values())

    def words(
        self,
        *,
        inputs: Mapping[str, Sequence[str]],
        outputs: Mapping[str, str],
        value: Callable[[str], str],
        item: Mapping[str, str] | None = None,
    ) -> list[str]:
        """The command after `gda`, a word each.

        `inputs` has the places of each role, `outputs` the place of each path of `self.outputs`, `value` gives the text of a field, and
        `item` the flags of one item of the matrix.
        """
        places = {role: outputs[path] for role, path in self.more_outputs.items()} | {"out": outputs[self.output]}
        flags = [
            *(item or {}).items(),
            *((flag, value(name)) for flag, name in self.fields.items()),
            *((role, place) for role, given in inputs.items() for place in given),
            *places.items(),
        ]
        argument = [value(self.argument)] if self.argument else []
        return [self.stage, *argument, *self.switches, *(word for flag, text in flags for word in (f"--{flag.replace('_', '-')}", text))]


def _sample(variant: str, tuning: str, output: str, *switches: str, of_base: bool = False, more: tuple[str, ...] = ()) -> Node:
    return Node(
        stage="sample",
        variant=variant,
        sections=("seed", "sample") + (("finetune.base",) if of_base else ()) + more,
        inputs={"snapshot": REAL, "settings": f"{tuning}/settings.json"} | ({} if of_base else {"generator": GENERATOR}),
        watched=("quotas", "base") if of_base else ("quotas",),
        output=output,
        fields={"generator": "finetune.base"} if of_base else {},
        switches=switches,
    )


def _tune(variant: str, output: str, *, of_base: bool = False) -> Node:
    return Node(
        stage="tune",
        variant=variant,
        sections=("seed", "tune", "classify", *EXTRACTOR[:2]) + (("finetune.base",) if of_base else ()),
        inputs={"snapshot": REAL} | ({} if of_base else {"generator": GENERATOR}),
        watched=("features", "pretrained", *(("base",) if of_base else ())),
        output=output,
        fields={"generator": "finetune.base"} if of_base else {},
    )


def arm_inputs(arm: Arm) -> dict[str, str]:
    """What an arm needs besides the real snapshot, by role: other images, and, where the gate applies, the verdict on them."""
    data = arm.data
    needed = {data.others: True, "verdict": data.gated, "reference": data.targeted}
    return {role: path for role, path in ARM_SETS.items() if needed.get(role)}


GRAPH: tuple[Node, ...] = (
    Node(
        stage="snapshot",
        sections=("snapshot",),
        inputs={},
        watched=("source",),
        output=REAL,
        argument="snapshot.source",
    ),
    Node(
        stage="snapshot",
        variant="pool",
        sections=("snapshot", "classify.arms"),
        inputs={"snapshot": REAL},
        watched=("pool",),
        output=POOL,
        switches=("--as", "pool", "--if-compared"),
    ),
    Node(
        stage="reference",
        sections=("seed", "reference", "classify", *EXTRACTOR),
        inputs={"snapshot": REAL},
        watched=("features", "pretrained"),
        output=REFERENCE,
        helper=True,
    ),
    Node(
        stage="finetune",
        sections=("seed", "finetune", *EXTRACTOR[:2]),
        inputs={"snapshot": REAL},
        watched=("base", "prompts", "features"),
        output=GENERATOR,
        fields={"base": "finetune.base"},
    ),
    _tune("", TUNING),
    _tune("zero_shot", TUNING_ZERO_SHOT, of_base=True),
    _sample("", TUNING, SYNTHETIC),
    _sample("zero_shot", TUNING_ZERO_SHOT, ZERO_SHOT, "--zero-shot", of_base=True),
    _sample("img2img", TUNING, IMG2IMG, "--image-to-image", "--if-compared", more=("classify.arms",)),
    Node(
        stage="validate",
        sections=("seed", "validate", "sample", "classify.image_size"),
        inputs={"synthetic": SYNTHETIC, "snapshot": REAL, "reference": REFERENCE, "generator": GENERATOR},
        watched=("features",),
        output=VALIDATION,
        more_outputs={"accepted": ACCEPTED},
    ),
    Node(
        stage="classify",
        sections=("classify",),
        inputs={"snapshot": REAL, "sets": f"{ARM_DIGESTS}/${{item.arm}}.json"},
        watched=("pretrained",),
        output=f"{CLASSIFIERS}/${{item.arm}}",
        kept=True,
        matrix={"arm": "${classify.arms}"},
    ),
    Node(
        stage="evaluate",
        sections=("seed", "evaluate", "promote", "classify.seeds", "classify.control_seeds", "classify.arms"),
        inputs={
            "runs": CLASSIFIERS,
            "snapshot": REAL,
            "synthetic": ACCEPTED,
            "zero-shot": ZERO_SHOT,
            "tuning": TUNING,
            "verdict": VERDICT,
        },
        watched=("sets",),
        output=EVALUATION,
    ),
    Node(
        stage="promote",
        sections=("promote",),
        inputs={"evaluation": EVALUATION, "verdict": VERDICT},
        output=PROMOTION,
        always_changed=True,
    ),
)

# Steps outside the workflow: run by hand, or by a pipeline of their own.
EXTRA_NODES: tuple[Node, ...] = (
    Node(
        stage="ratio",
        sections=("seed", "ratio", "classify"),
        inputs={"snapshot": REAL, "synthetic": ACCEPTED, "verdict": VERDICT},
        output=RATIO,
    ),
)


def dvc_document() -> dict[str, Any]:
    """The content of `dvc.yaml` for `GRAPH`."""
    watch = {"cmd": f"gda inputs --out {INPUTS}", "always_changed": True, "outs": [INPUTS]}
    stages: dict[str, Any] = {"inputs": watch}
    for node in GRAPH:
        if node.matrix:
            flags = "".join(f" --{role.replace('_', '-')} {path}" for role, path in ARM_SETS.items())
            stages["arms"] = {
                "cmd": f"gda arms{flags} --out {ARM_DIGESTS}",
                "deps": list(ARM_SETS.values()),
                "params": ["classify.arms"],
                "outs": [ARM_DIGESTS],
            }
        stage: dict[str, Any] = {}
        if node.matrix:
            stage["matrix"] = node.matrix
        stage["cmd"] = dvc_command(node)
        stage["deps"] = list(_deps(node))
        stage["params"] = list(node.sections)
        stage["outs"] = [{node.output: {"persist": True}} if node.kept else node.output, *node.more_outputs.values()]
        stage["always_changed"] = node.always_changed
        stages[node.name] = {key: value for key, value in stage.items() if value}
    return {"stages": stages, "metrics": [f"{EVALUATION}/metrics.json"]}


def dvc_command(node: Node) -> str:
    """The command of `node` with DVC's templates for fields and items of a matrix."""
    item = {name: f"${{item.{name}}}" for name in node.matrix}
    return " ".join(["gda", *command_words(node, value=lambda name: f'"${{{name}}}"', item=item)])  # quoted: a path may hold spaces


def command_words(node: Node, *, value: Callable[[str], str], item: Mapping[str, str]) -> list[str]:
    """The words after `gda` with which one folder's job runs `node`; an arm is offered every set that arms read.

    `value` gives the text of a field, `item` the flags of one item of the matrix, whose names the output's path may hold.
    """
    inputs = {"snapshot": REAL, **ARM_SETS} if node.matrix else node.inputs
    places = {
        path: functools.reduce(lambda text, pair: text.replace(f"${{item.{pair[0]}}}", pair[1]), item.items(), path)
        for path in node.outputs
    }
    words = node.words(inputs={role: (path,) for role, path in inputs.items()}, outputs=places, value=value, item=item)
    return [*words, *(("--replace",) if node.kept else ())]


def _deps(node: Node) -> Iterator[str]:
    seen = set()
    for path in (*node.inputs.values(), *(f"{INPUTS}/{role}.json" for role in node.watched)):
        if path not in seen:
            seen.add(path)
            yield path


def dvc_text() -> str:
    """`dvc.yaml` as it is checked in."""
    import io

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 200
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    stream.write("# Made by `python -m gda.flow`; edit gda/flow.py instead.\n")
    yaml.dump(dvc_document(), stream)
    return stream.getvalue()


if __name__ == "__main__":
    print(dvc_text(), end="")

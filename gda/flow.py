"""The typed graph of the job: every step with its configuration sections, inputs, output and command.

The command line, `dvc.yaml`, `params.yaml` and the pipeline are generated from it or contract-tested against it:
`python -m gda.flow` prints the `dvc.yaml` of the built-in run.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gda.config import Arm

STAGES = ("snapshot", "finetune", "tune", "sample", "validate", "classify", "evaluate", "promote")

REAL = "data/real"
SYNTHETIC = "data/synthetic"
ZERO_SHOT = "data/zero_shot"
JUDGED = "data/judged"
REFERENCE = "models/reference"
GENERATOR = "models/generator"
CLASSIFIERS = "models/classifiers"
TUNING = "reports/tuning"
TUNING_ZERO_SHOT = "reports/tuning_zero_shot"
VALIDATION = "reports/validation"
VERDICT = f"{VALIDATION}/verdict.json"
EVALUATION = "reports/evaluation"
PROMOTION = "reports/promotion"

# What features are measured with: every stage that extracts some depends on it.
EXTRACTOR = ("validate.extractor", "validate.extractor_weights", "validate.image_size")

# Arms whose every seed is compared with real by seed; the others are controls with fewer seeds.
PAIRED_ARMS = (Arm.REAL, Arm.MIXED)
CONTROL_ARMS = (Arm.REAL_LONG, Arm.REAL_STRONG, Arm.ZERO_SHOT, Arm.SYNTHETIC)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One step of the graph: `stage` is the verb, `variant` tells two uses of one verb apart, `inputs` are paths by role.

    `more_outputs` are data sets beside the `output` that the step is known by.
    """

    stage: str
    variant: str = ""
    sections: tuple[str, ...]
    inputs: dict[str, str]
    output: str
    more_outputs: tuple[str, ...] = ()
    command: str
    helper: bool = False
    matrix: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.stage}_{self.variant}" if self.variant else self.stage


def _sample(variant: str, generator: str, tuning: str, output: str) -> Node:
    flag = " --zero-shot" if variant else ""
    return Node(
        stage="sample",
        variant=variant,
        sections=("seed", "sample") + (("finetune.base",) if variant else ()),
        inputs={"snapshot": REAL, "settings": f"{tuning}/settings.json"} | ({} if variant else {"generator": GENERATOR}),
        output=output,
        command=f"gda sample --generator {generator} --snapshot {REAL} --settings {tuning}/settings.json{flag} --out {output}",
    )


def _tune(variant: str, generator: str, output: str) -> Node:
    return Node(
        stage="tune",
        variant=variant,
        sections=("seed", "tune", "classify", *EXTRACTOR[:2]) + (("finetune.base",) if variant else ()),
        inputs={"snapshot": REAL} | ({} if variant else {"generator": GENERATOR}),
        output=output,
        command=f"gda tune --generator {generator} --snapshot {REAL} --out {output}",
    )


def arm_inputs(arm: Arm) -> dict[str, str]:
    """What an arm trains on besides the real snapshot: its synthetic set, and the verdict where the gate applies."""
    if arm is Arm.ZERO_SHOT:
        return {"synthetic": ZERO_SHOT}
    if arm in (Arm.SYNTHETIC, Arm.MIXED):
        return {"synthetic": JUDGED, "verdict": VERDICT}
    return {}


def _classify(variant: str, arms: tuple[Arm, ...], seeds: str) -> Node:
    items = []
    for arm in arms:
        inputs = arm_inputs(arm)
        flags = "".join(f" --{role} {path}" for role, path in inputs.items())
        # DVC's templates have no lists of varying length: an arm without a set names the real snapshot again.
        items.append({"name": str(arm), "flags": flags.strip(), **{role: inputs.get(role, REAL) for role in ("synthetic", "verdict")}})
    return Node(
        stage="classify",
        variant=variant,
        sections=("classify",),
        inputs={"snapshot": REAL, "synthetic": "${item.arm.synthetic}", "verdict": "${item.arm.verdict}"},
        output=f"{CLASSIFIERS}/${{item.arm.name}}-${{item.seed}}",
        command=(
            f"gda classify --snapshot {REAL} --arm ${{item.arm.name}} --seed ${{item.seed}} --all-seeds ${{item.arm.flags}}"
            f" --out {CLASSIFIERS}/${{item.arm.name}}-${{item.seed}}"
        ),
        matrix={"arm": items, "seed": f"${{{seeds}}}"},
    )


GRAPH: tuple[Node, ...] = (
    Node(
        stage="snapshot",
        sections=("snapshot",),
        inputs={},
        output=REAL,
        command=f"gda snapshot ${{snapshot.source}} --out {REAL}",
    ),
    Node(
        stage="reference",
        sections=("seed", "reference", "classify", *EXTRACTOR),
        inputs={"snapshot": REAL},
        output=REFERENCE,
        command=f"gda reference --snapshot {REAL} --out {REFERENCE}",
        helper=True,
    ),
    Node(
        stage="finetune",
        sections=("seed", "finetune", *EXTRACTOR[:2]),
        inputs={"snapshot": REAL},
        output=GENERATOR,
        command=f"gda finetune --snapshot {REAL} --base ${{finetune.base}} --out {GENERATOR}",
    ),
    _tune("", GENERATOR, TUNING),
    _tune("zero_shot", "${finetune.base}", TUNING_ZERO_SHOT),
    _sample("", GENERATOR, TUNING, SYNTHETIC),
    _sample("zero_shot", "${finetune.base}", TUNING_ZERO_SHOT, ZERO_SHOT),
    Node(
        stage="validate",
        sections=("seed", "validate", "sample", "classify.image_size"),
        inputs={"synthetic": SYNTHETIC, "snapshot": REAL, "reference": REFERENCE, "generator": GENERATOR},
        output=VALIDATION,
        more_outputs=(JUDGED,),
        command=(
            f"gda validate --synthetic {SYNTHETIC} --snapshot {REAL} --reference {REFERENCE} --generator {GENERATOR} --judged {JUDGED}"
            f" --out {VALIDATION}"
        ),
    ),
    _classify("", PAIRED_ARMS, "classify.seeds"),
    _classify("controls", CONTROL_ARMS, "classify.control_seeds"),
    Node(
        stage="evaluate",
        sections=("seed", "evaluate", "promote", "classify.seeds", "classify.control_seeds"),
        inputs={
            "runs": CLASSIFIERS,
            "snapshot": REAL,
            "synthetic": JUDGED,
            "zero-shot": ZERO_SHOT,
            "tuning": TUNING,
            "verdict": VERDICT,
        },
        output=EVALUATION,
        command=(
            f"gda evaluate --runs {CLASSIFIERS} --snapshot {REAL} --synthetic {JUDGED} --zero-shot {ZERO_SHOT}"
            f" --tuning {TUNING} --verdict {VERDICT} --out {EVALUATION}"
        ),
    ),
    Node(
        stage="promote",
        sections=("promote",),
        inputs={"evaluation": EVALUATION, "verdict": VERDICT},
        output=PROMOTION,
        command=f"gda promote --evaluation {EVALUATION} --verdict {VERDICT} --out {PROMOTION}",
    ),
)


def dvc_document() -> dict[str, Any]:
    """The content of `dvc.yaml` for `GRAPH`."""
    stages: dict[str, Any] = {}
    for node in GRAPH:
        stage: dict[str, Any] = {}
        if node.matrix:
            stage["matrix"] = node.matrix
        stage["cmd"] = node.command
        stage["deps"] = list(_deps(node))
        stage["params"] = list(node.sections)
        stage["outs"] = [node.output, *node.more_outputs]
        stages[node.name] = {key: value for key, value in stage.items() if value}
    return {"stages": stages, "metrics": [f"{EVALUATION}/metrics.json"]}


def _deps(node: Node) -> Iterator[str]:
    seen = set()
    for path in node.inputs.values():
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

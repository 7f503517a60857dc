"""The typed graph of the workflow: every step with its configuration sections, inputs, output and command.

The command line, `dvc.yaml`, `params.yaml` and the pipeline are generated from it or contract-tested against it:
`python -m gda.flow` prints the `dvc.yaml` of the built-in run.
"""

from collections.abc import Iterator, Mapping
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

    `output` is the main output and `more_outputs` are further data sets. `watched` are the roles of `WATCHED` that the step reads.
    `always_changed` steps depend on something outside the folder, such as the registry, and run each time. The output of a `kept` step is
    still there when it runs again: its command replaces only what has to change.
    """

    stage: str
    variant: str = ""
    sections: tuple[str, ...]
    inputs: dict[str, str]
    watched: tuple[str, ...] = ()
    output: str
    more_outputs: tuple[str, ...] = ()
    command: str
    helper: bool = False
    always_changed: bool = False
    kept: bool = False
    matrix: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.stage}_{self.variant}" if self.variant else self.stage


def _sample(variant: str, generator: str, tuning: str, output: str, flags: str = "", more: tuple[str, ...] = ()) -> Node:
    base = generator != GENERATOR
    return Node(
        stage="sample",
        variant=variant,
        sections=("seed", "sample") + (("finetune.base",) if base else ()) + more,
        inputs={"snapshot": REAL, "settings": f"{tuning}/settings.json"} | ({} if base else {"generator": GENERATOR}),
        watched=("quotas", "base") if base else ("quotas",),
        output=output,
        command=f"gda sample --generator {generator} --snapshot {REAL} --settings {tuning}/settings.json{flags} --out {output}",
    )


def _tune(variant: str, generator: str, output: str) -> Node:
    return Node(
        stage="tune",
        variant=variant,
        sections=("seed", "tune", "classify", *EXTRACTOR[:2]) + (("finetune.base",) if variant else ()),
        inputs={"snapshot": REAL} | ({} if variant else {"generator": GENERATOR}),
        watched=("features", "pretrained", *(("base",) if variant else ())),
        output=output,
        command=f"gda tune --generator {generator} --snapshot {REAL} --out {output}",
    )


def arm_inputs(arm: Arm) -> dict[str, str]:
    """What an arm needs besides the real snapshot, by role: other images, and, where the gate applies, the verdict on them."""
    data = arm.data
    needed = {data.others: True, "verdict": data.gated, "reference": data.targeted}
    return {role: path for role, path in ARM_SETS.items() if needed.get(role)}


def classify_command(arm: str, sets: Mapping[str, str], out: str, *, seed: str = "") -> str:
    """The command that trains the classifiers of `arm` on `sets` (by role), for `seed` alone or for every seed in folders below `out`."""
    flags = "".join(f" --{role.replace('_', '-')} {path}" for role, path in sets.items())
    return f"gda classify --snapshot {REAL} --arm {arm}{f' --seed {seed}' if seed else ''}{flags} --out {out}"


GRAPH: tuple[Node, ...] = (
    Node(
        stage="snapshot",
        sections=("snapshot",),
        inputs={},
        watched=("source",),
        output=REAL,
        command=f"gda snapshot ${{snapshot.source}} --out {REAL}",
    ),
    Node(
        stage="snapshot",
        variant="pool",
        sections=("snapshot", "classify.arms"),
        inputs={"snapshot": REAL},
        watched=("pool",),
        output=POOL,
        command=f"gda snapshot --as pool --snapshot {REAL} --if-compared --out {POOL}",
    ),
    Node(
        stage="reference",
        sections=("seed", "reference", "classify", *EXTRACTOR),
        inputs={"snapshot": REAL},
        watched=("features", "pretrained"),
        output=REFERENCE,
        command=f"gda reference --snapshot {REAL} --out {REFERENCE}",
        helper=True,
    ),
    Node(
        stage="finetune",
        sections=("seed", "finetune", *EXTRACTOR[:2]),
        inputs={"snapshot": REAL},
        watched=("base", "prompts", "features"),
        output=GENERATOR,
        command=f"gda finetune --snapshot {REAL} --base ${{finetune.base}} --out {GENERATOR}",
    ),
    _tune("", GENERATOR, TUNING),
    _tune("zero_shot", "${finetune.base}", TUNING_ZERO_SHOT),
    _sample("", GENERATOR, TUNING, SYNTHETIC),
    _sample("zero_shot", "${finetune.base}", TUNING_ZERO_SHOT, ZERO_SHOT, " --zero-shot"),
    _sample("img2img", GENERATOR, TUNING, IMG2IMG, " --image-to-image --if-compared", ("classify.arms",)),
    Node(
        stage="validate",
        sections=("seed", "validate", "sample", "classify.image_size"),
        inputs={"synthetic": SYNTHETIC, "snapshot": REAL, "reference": REFERENCE, "generator": GENERATOR},
        watched=("features",),
        output=VALIDATION,
        more_outputs=(ACCEPTED,),
        command=(
            f"gda validate --synthetic {SYNTHETIC} --snapshot {REAL} --reference {REFERENCE} --generator {GENERATOR} --accepted {ACCEPTED}"
            f" --out {VALIDATION}"
        ),
    ),
    Node(
        stage="classify",
        sections=("classify",),
        inputs={"snapshot": REAL, "sets": f"{ARM_DIGESTS}/${{item.arm}}.json"},
        watched=("pretrained",),
        output=f"{CLASSIFIERS}/${{item.arm}}",
        command=classify_command("${item.arm}", ARM_SETS, f"{CLASSIFIERS}/${{item.arm}}") + " --replace",
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
        command=(
            f"gda evaluate --runs {CLASSIFIERS} --snapshot {REAL} --synthetic {ACCEPTED} --zero-shot {ZERO_SHOT}"
            f" --tuning {TUNING} --verdict {VERDICT} --out {EVALUATION}"
        ),
    ),
    Node(
        stage="promote",
        sections=("promote",),
        inputs={"evaluation": EVALUATION, "verdict": VERDICT},
        output=PROMOTION,
        command=f"gda promote --evaluation {EVALUATION} --verdict {VERDICT} --out {PROMOTION}",
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
        command=f"gda ratio --snapshot {REAL} --synthetic {ACCEPTED} --verdict {VERDICT} --out {RATIO}",
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
        stage["cmd"] = node.command
        stage["deps"] = list(_deps(node))
        stage["params"] = list(node.sections)
        stage["outs"] = [{node.output: {"persist": True}} if node.kept else node.output, *node.more_outputs]
        stage["always_changed"] = node.always_changed
        stages[node.name] = {key: value for key, value in stage.items() if value}
    return {"stages": stages, "metrics": [f"{EVALUATION}/metrics.json"]}


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

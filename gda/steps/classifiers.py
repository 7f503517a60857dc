"""The classifiers of a run, one pod per arm with its seeds, because a workflow's bookkeeping grows with its pods (ADR 5)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.document import read_document
from gda.config.arm import Arm
from gda.errors import UsageError
from gda.flow import arm_inputs
from gda.io.atomic import write_bytes
from gda.runtime.parallel import num_accelerators
from gda.steps.entry import MOST_PODS
from gda.steps.form import classifier_runs
from gda.steps.graph import CLASSIFY, config_of, parse_reference
from gda.steps.jobs import TaskConfig, train_by_job
from gda.steps.processes import train_here
from gda.steps.step import FileArtifact, MetricsArtifact, Step, run_step


def planned_classifiers(settings: str, *, seeds_per_pod: int, summary: FileArtifact) -> list[dict[str, str]]:
    """What each pod trains: an arm, and at most `seeds_per_pod` of its seeds, separated by commas; 0 is all of them.

    Raises `UsageError` for more pods than a loop may have.
    """
    runs = classifier_runs(config_of(settings))
    by_arm: dict[str, list[str]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"], []).append(run["seed"])
    if seeds_per_pod < 0:
        raise UsageError(f"seeds_per_pod {seeds_per_pod}: accepted: 0 for all seeds of an arm, or a number of them")
    pods = [
        {"arm": arm, "seeds": ",".join(seeds[i : i + (seeds_per_pod or len(seeds))])}
        for arm, seeds in by_arm.items()
        for i in range(0, len(seeds), seeds_per_pod or len(seeds))
    ]
    if len(pods) > MOST_PODS:
        raise UsageError(f"seeds_per_pod {seeds_per_pod}: makes {len(pods)} pods; accepted: 0, or as many as make at most {MOST_PODS}")
    rows = [f"| {arm} | {', '.join(seeds)} |" for arm, seeds in by_arm.items()]
    head = [f"# {len(runs)} classifiers, by {len(pods)} pods", "", "| Arm | Seeds |", "|---|---|"]
    write_bytes(Path(summary.path), "\n".join([*head, *rows, ""]).encode())
    return pods


def classifier_inputs(
    arm: str, *, snapshot: str, accepted: str, verdict: str, zero_shot: str, img2img: str, pool: str, reference: str
) -> dict[str, str]:
    """References by role for a classifier of `arm`: only those that it reads. Raises `ValueError` for an unknown arm."""
    every = {"synthetic": accepted, "zero_shot": zero_shot, "img2img": img2img, "pool": pool, "verdict": verdict, "reference": reference}
    return {"snapshot": snapshot} | {role: every[role] for role in arm_inputs(Arm(arm))}


def train_seeds_here(arm: str, seeds: str, *, sets: Mapping[str, str], settings: str, data_root: str, code: str) -> list[Step]:
    """Train the classifiers of `arm` in this pod: side by side where these are all of its seeds and no accelerator is shared by processes.

    `sets` are references as `classifier_inputs` takes them. Raises what `train_here` raises.
    """
    given: dict[str, Any] = {"settings": settings, "data_root": data_root, "code": code}
    inputs, wanted = classifier_inputs(arm, **sets), seeds.split(",")
    every = [run["seed"] for run in classifier_runs(config_of(settings)) if run["arm"] == arm]
    if len(wanted) > 1 and wanted == every and num_accelerators() <= 1:
        run_step(CLASSIFY, inputs=inputs, item={"arm": arm, "seed": wanted[0]}, alongside=True, **given)
    return _each(functools.partial(train_here, CLASSIFY, inputs=inputs, **given), arm, wanted)


def train_seeds_by_jobs(
    arm: str,
    seeds: str,
    *,
    sets: Mapping[str, str],
    settings: str,
    data_root: str,
    code: str,
    nodes: int,
    image: str,
    task: TaskConfig,
    job: str,
) -> list[Step]:
    """Train the classifiers of `arm` by a TrainJob each, one after the other. Raises what `train_by_job` raises."""
    train = functools.partial(
        train_by_job, CLASSIFY, inputs=classifier_inputs(arm, **sets), settings=settings, data_root=data_root, code=code
    )
    return _each(functools.partial(train, nodes=nodes, image=image, task=task, job=job), arm, seeds.split(","))


def _each(train: Callable[..., Step], arm: str, seeds: Sequence[str]) -> list[Step]:
    return [train(item={"arm": arm, "seed": seed}) for seed in seeds]


def show_trained(steps: Sequence[Step], *, metrics: MetricsArtifact) -> str:
    """References to the classifiers, one a line; their measures are shown by seed."""
    for step in steps:
        for name, value in sorted(step.record.metrics.items()):
            metrics.log_metric(f"{name} of {step.record.step}" if len(steps) > 1 else name, value)
    return "\n".join(step.reference() for step in steps)


def gathered(runs: Sequence[str], *, summary: FileArtifact) -> list[str]:
    """Pass on the classifiers in `runs` (one text per pod, one reference per line), and show each one's validation accuracy."""
    runs = [line for text in runs for line in text.splitlines()]
    folders = [parse_reference(run, role="runs").path for run in runs]
    cards = sorted(
        (read_document(folder / "classifier.json", ClassifierCard) for folder in folders), key=lambda card: (card.arm, card.seed)
    )
    rows = [
        f"| {card.arm} | {card.seed} | {f'{card.val_top1:.2%}' if card.val_top1 is not None else f'skipped: {card.skipped}'} |"
        for card in cards
    ]
    head = [f"# {len(cards)} classifiers", "", "| Arm | Seed | Top-1 on validation |", "|---|---|---|"]
    write_bytes(Path(summary.path), "\n".join([*head, *rows, ""]).encode())
    return runs

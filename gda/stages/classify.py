"""classify: train one arm's classifier for one seed; other seeds of the arm may be trained alongside and published later.

The heavy imports wait until something has to be trained: publishing finished work takes a fraction of a second.
"""

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.contents import FILES, with_files
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.fingerprint import Fingerprint, digest_of
from gda.artifacts.outcome import Outcome
from gda.config.arm import Arm
from gda.config.load import Config
from gda.errors import DataError, TryAgainError, UsageError
from gda.io.atomic import work_root, write_bytes
from gda.io.checked import read_checked_json, write_checked_json
from gda.io.publish import exclusive, publish
from gda.io.replacing import ADVICE, Own, begin, drop_unfinished, kept_result
from gda.io.skipped_arms import publish_skipped
from gda.io.up_to_date import Workspace, prepare, read_fingerprint
from gda.runtime.parallel import is_first_process, num_processes, own_device, run_parallel, training_device, workers_of
from gda.runtime.progress import Bar, tick
from gda.training.arms.arm_data import Loaded, load_data
from gda.training.arms.arm_request import ArmRequest, make_arm_request
from gda.training.arms.requirements import not_compared

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gda.runtime.process_group import ProcessGroup
    from gda.training.loop.classifier import Curve

_CARD, VAL_PREDICTIONS = "classifier.json", "val_predictions.safetensors"
_log = logging.getLogger(__name__)
CHECKPOINT_EVERY = 100  # steps
_DONE = "done.json"  # in the work folder, written last: what is in its `out` is complete


@dataclass(frozen=True, kw_only=True)
class Job:
    """Train one seed of a request in its work folder; `requested` when this is the seed of the command.

    Classifiers that are published already lie in folders of `siblings`.
    """

    request: ArmRequest
    seed: int
    workspace: Workspace
    siblings: Path
    requested: bool

    @property
    def num_train_steps(self) -> int:
        """Those of its head alone included."""
        return self.request.num_train_steps + self.request.head_train_steps


def run(
    config: Config,
    *,
    snapshot: Path,
    arm: Arm,
    seed: int,
    out: Path,
    synthetic: Path | None = None,
    verdict: Path | None = None,
    pool: Path | None = None,
    reference: Path | None = None,
    if_compared: bool = False,
    with_seeds: tuple[int, ...] = (),
    replacing: bool = False,
    progress: bool = False,
) -> Outcome:
    """Train the classifier of `arm` and `seed` and publish it at `out` as a directory that timm loads.

    `with_seeds` are other seeds of the arm to train side by side; their results wait in the work folder for their own commands.
    When the verdict refused the synthetic set, a gated arm's output is a card that says so. Real arms never open `synthetic`; `pool`, more
    real images, is opened by the arm retrieved alone, and `reference` by targeted. With `if_compared` an arm that `config.classify.arms`
    does not name is skipped. With `replacing` a classifier of `arm` and `seed` that was made otherwise gives way, once the new one
    is complete.
    Under `torchrun` every process calls this: together they train `seed` alone, whatever `with_seeds` says, and the first one writes.
    Raises `UsageError` when the arm needs something that is not given, `DataError` when the parts do not belong together.
    """
    if if_compared and arm not in config.classify.arms:
        return publish_skipped("classify", out, f"because {not_compared(arm)}") if is_first_process() else _left_to_the_first(out)
    request = make_arm_request(config.classify, arm, snapshot, synthetic, verdict, pool=pool, reference=reference)
    own = _own(arm, seed) if replacing else None
    if num_processes() > 1:
        return _run_together(request, seed, out, own, progress=progress)
    workspace = begin(request.fingerprint(seed), out, own)
    if not workspace.finished and not _is_done(workspace):
        requested = Job(request=request, seed=seed, workspace=workspace, siblings=workspace.out.parent, requested=True)
        if request.skipped is not None:
            _write_skipped(requested)
        else:
            _train_all([requested, *_others(requested, with_seeds)], progress=progress)
    return _result(workspace, out, own)


def seeds_in(out: Path, arm: Arm) -> tuple[int, ...]:
    """Seeds of the classifiers of `arm` in `out`, which may hold nothing else but what is hidden; leftovers of killed processes go.

    Raises `UsageError` or `DataError`, in words, for anything that may not be replaced.
    """
    seeds = []
    drop_unfinished(out)
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        if path.name.startswith("."):
            continue
        seed = _seed_of(path.name)
        if seed is None or path.is_symlink():
            raise UsageError(f"{path}: is no folder of a seed that this command made; {ADVICE}")
        _own(arm, seed).require(path)
        seeds.append(seed)
    return tuple(seeds)


def remove(out: Path, arm: Arm, seeds: Sequence[int]) -> Outcome:
    """Take the classifiers of `seeds` out of `out`. Raises as `seeds_in` does."""
    for seed in seeds:
        _own(arm, seed).remove(out / str(seed))
    names = ", ".join(map(str, seeds))
    return Outcome(output=out, digest="", summary=f"removed from {out} what this command does not make: seed {names}")


def _seed_of(name: str) -> int | None:
    with suppress(ValueError):
        if str(int(name)) == name:
            return int(name)
    return None


def _own(arm: Arm, seed: int) -> Own:
    return Own(stage="classify", config={"arm": str(arm), "seed": seed})


def _run_together(request: ArmRequest, seed: int, out: Path, own: Own | None, *, progress: bool) -> Outcome:
    """What each of the processes that `torchrun` started does; the first one looks what is there, writes, and the others wait for that."""
    from gda.runtime.process_group import ProcessGroup

    world = ProcessGroup.init()
    try:
        begun = begin(request.fingerprint(seed), out, own) if world.is_first else None
        workspace, done = world.broadcast(None if begun is None else (begun, begun.finished or _is_done(begun)))
        job = Job(request=request, seed=seed, workspace=workspace, siblings=workspace.out.parent, requested=True)
        if not done and request.skipped is None:
            with (
                exclusive(workspace) if world.is_first else nullcontext(),
                _bar(job, job.num_train_steps, shown=progress and world.is_first, device=world.device.type),
            ):
                _train(job, world)
        elif not done and world.is_first:
            _write_skipped(job)
        outcome = _result(workspace, out, own) if world.is_first else _left_to_the_first(out)
        world.broadcast(None)
        return outcome
    finally:
        ProcessGroup.destroy()


def _left_to_the_first(out: Path) -> Outcome:
    return Outcome(output=out, digest="", summary="the first process writes the result")


def _others(requested: Job, seeds: Sequence[int]) -> list[Job]:
    """Jobs of the seeds to train alongside, without those that are published next to our output, finished already or kept."""
    published = [fingerprint for folder in requested.siblings.glob("*/fingerprint.json") if (fingerprint := _fingerprint_in(folder.parent))]
    jobs = []
    for seed in sorted(set(seeds) - {requested.seed}):
        fingerprint = requested.request.fingerprint(seed)
        work = work_root() / "work" / fingerprint.digest[:32]
        if fingerprint in published or (work / _DONE).exists() or kept_result(fingerprint) is not None:
            continue
        # Its final name is not ours to know: `out` is where its own command will publish from.
        workspace = prepare(fingerprint, work / "published")
        jobs.append(Job(request=requested.request, seed=seed, workspace=workspace, siblings=requested.siblings, requested=False))
    return jobs


def _fingerprint_in(folder: Path) -> Fingerprint | None:
    with suppress(DataError):
        return read_fingerprint(folder)
    return None


def _train_all(jobs: list[Job], *, progress: bool) -> None:
    # Imported and loaded before the processes are forked, so that it is paid once.
    import gda.training.loop.classifier  # noqa: F401

    request = jobs[0].request
    load_data(request.data)
    with _bar(jobs[0], jobs[0].num_train_steps * len(jobs), shown=progress, device=training_device()):
        run_parallel(train_seed, jobs, workers=workers_of(training_device()))


def _bar(job: Job, num_steps: int, *, shown: bool, device: str) -> Bar:
    config, arm = job.request.config, job.request.arm
    precision = "float32" if config.mixed_precision == "no" else config.mixed_precision
    about = f"{device}, {precision}, {config.model} at {config.image_size} px"
    return Bar(num_steps, f"classify {arm}", unit="step", shown=shown, about=about)


def train_seed(job: Job) -> None:
    """Train one seed into its work folder and mark it done; a companion seed that another process works on is left to it."""
    if _is_done(job.workspace):
        tick(job.num_train_steps)
        return
    from gda.runtime.process_group import ProcessGroup

    try:
        with exclusive(job.workspace):
            _train(job, ProcessGroup.single(own_device(training_device())))
    except TryAgainError:
        if job.requested:
            raise


def _train(job: Job, world: "ProcessGroup") -> None:
    from gda.training.loop.classifier import predict_logits, top1

    loaded = load_data(job.request.data)
    model, curve = _train_head(job, loaded, world) if job.request.arm.data.last_layer else _train_whole(job, loaded, world)
    if not world.is_first:
        return
    logits = predict_logits(model, loaded.val.images, image_size=job.request.config.tested_at)
    _write_classifier(job, model, logits, loaded.val.labels, val_top1=top1(logits, loaded.val.labels))
    _mark_done(job.workspace, curve)


def _train_whole(job: Job, loaded: Loaded, world: "ProcessGroup") -> "tuple[nn.Module, Curve]":
    from gda.training.loop.classifier import TrainRecipe, train_classifier

    request = job.request
    return train_classifier(
        loaded.sources(request.config.ratio, seed=job.seed),
        TrainRecipe.from_config(request.config, num_train_steps=request.num_train_steps, augment=request.augment),
        num_classes=len(request.classes),
        seed=job.seed,
        checkpoint=job.workspace.work / "checkpoint",
        checkpoint_every=CHECKPOINT_EVERY,
        progress=lambda step, loss: tick(loss=loss, series=f"seed {job.seed}", step=step),
        world=world,
    )


def _train_head(job: Job, loaded: Loaded, world: "ProcessGroup") -> "tuple[nn.Module, Curve]":
    """Go on from the classifier of real+synthetic of the same seed: one that is finished already, or its like, trained here."""
    from gda.training.loop.classifier import TrainRecipe, load_classifier, train_classifier

    request = job.request
    finished = world.broadcast(_finished_mixed(job) if world.is_first else None)
    if finished is not None:
        start = load_classifier(finished)
        tick(request.num_train_steps)
    else:
        start, _ = _train_whole(job, loaded, world)
    recipe = TrainRecipe.from_config(request.config, num_train_steps=request.head_train_steps, augment=request.augment)
    model, curve = train_classifier(
        [loaded.real_source],
        recipe.for_head(request.config.last_layer_learning_rate),
        num_classes=len(request.classes),
        seed=job.seed,
        start=start,
        progress=lambda step, loss: tick(loss=loss, series=f"seed {job.seed}", step=step),
        world=world,
    )
    return model, [(request.num_train_steps + update, loss) for update, loss in curve]


def _finished_mixed(job: Job) -> Path | None:
    """The classifier of real+synthetic of the same seed, published next to our output or waiting in its work folder."""
    fingerprint = replace(job.request, arm=job.request.arm.with_data(Arm.MIXED.data.name)).fingerprint(job.seed)
    for folder in sorted(path.parent for path in job.siblings.glob("*/fingerprint.json")):
        if _fingerprint_in(folder) == fingerprint:
            return folder  # compared with what was written when it is loaded
    waiting = Workspace(fingerprint=fingerprint, work=work_root() / "work" / fingerprint.digest[:32], out=job.siblings, finished=False)
    return waiting.staging if _is_done(waiting) else None


def _write_classifier(job: Job, model: "nn.Module", logits: "Tensor", labels: "Tensor", *, val_top1: float) -> None:
    from safetensors.torch import save

    from gda.training.networks.export import export_classifier, model_digest

    folder = job.workspace.fresh_staging()
    export_classifier(model, folder, _card(job, weights=model_digest(model), val_top1=val_top1))
    write_bytes(folder / VAL_PREDICTIONS, save({"logits": logits, "labels": labels}))


def _write_skipped(job: Job) -> None:
    write_bytes(job.workspace.fresh_staging() / _CARD, dump_document(_card(job)))
    _mark_done(job.workspace, [])


def _card(job: Job, *, weights: str | None = None, val_top1: float | None = None) -> ClassifierCard:
    request, fingerprint = job.request, job.workspace.fingerprint
    synthetic = request.generated if request.arm.data.synthetic else None
    targets = None if request.others is None else request.others.labels
    return ClassifierCard(
        arm=request.arm,
        seed=job.seed,
        skipped=request.skipped,
        model=request.config.model,
        image_size=request.config.tested_at,
        classes=request.classes,
        num_train_steps=0 if request.skipped else request.num_train_steps + request.head_train_steps,
        val_top1=val_top1,
        digest=digest_of({"weights": weights, "config": fingerprint.config, "inputs": fingerprint.inputs}),
        snapshot_digest=request.real.digest,
        synthetic_digest=synthetic.digest if synthetic else None,
        pool_digest=request.generated.digest if request.generated and request.arm.data.others == "pool" else None,
        synthetic_parts=request.others.parts if request.others else 1,
        targets=None if targets is None else tuple(request.classes[label] for label in targets),
        base_licence=(request.generated or request.real).licence,
        pretrained=None if request.weights is None else request.weights.digest,
        interpolation=None if request.weights is None else request.weights.interpolation,
    )


def _refused(card: ClassifierCard) -> bool:
    """Whether the gate kept the arm from being trained, rather than that no arm needs its images."""
    return card.skipped is not None and card.synthetic_digest is not None


def _is_done(workspace: Workspace) -> bool:
    """Whether the work folder holds the finished classifier; a damaged one is reported, and trained again from its checkpoint."""
    if not (workspace.work / _DONE).exists():
        return False
    done = read_checked_json(workspace.work / _DONE)
    if done is not None and done["files"] == _listed(workspace):
        return True
    _log.warning("%s: what waits there to be published is damaged; training goes on from the checkpoint before", workspace.work)
    return False


def _mark_done(workspace: Workspace, curve: "Curve") -> None:
    write_checked_json(workspace.work / _DONE, {"curve": [list(point) for point in curve], "files": _listed(workspace)})


def _listed(workspace: Workspace) -> dict[str, str]:
    """sha256 by name of the files that wait to be published; what publishing itself adds is left out."""
    return dict(with_files({}, workspace.staging)[FILES])


def _result(workspace: Workspace, out: Path, own: Own | None) -> Outcome:
    """Of a fingerprint that is finished, or that is done and waits to be published."""
    if not workspace.finished:
        return _publish(workspace, own)
    card = read_document(out / _CARD, ClassifierCard)
    metrics = {} if card.val_top1 is None else {"val_top1": card.val_top1}
    return Outcome(output=out, digest=card.digest, summary=f"{out} is up to date", metrics=metrics, reused=True, refused=_refused(card))


def _publish(workspace: Workspace, own: Own | None) -> Outcome:
    curve = [(int(update), float(loss)) for update, loss in json.loads((workspace.work / _DONE).read_bytes())["curve"]]
    out = publish(workspace, room=None if own is None else own.moved_away(workspace.out))
    card = read_document(out / _CARD, ClassifierCard)
    if card.skipped is not None:
        return Outcome(
            output=out,
            digest=card.digest,
            summary=f"wrote {out}: skipped, {card.skipped}",
            files=(out / _CARD,),
            refused=_refused(card),
        )
    assert card.val_top1 is not None
    return Outcome(
        output=out,
        digest=card.digest,
        summary=f"wrote {out}: {card.arm}, seed {card.seed}, {card.num_train_steps} steps, {100 * card.val_top1:.1f}% on validation",
        metrics={"val_top1": card.val_top1, "loss": curve[-1][1]},
        curves={"loss": curve},
        series={"loss": f"seed {card.seed}"},
        files=tuple(sorted(path for path in out.iterdir() if path.is_file())),
    )

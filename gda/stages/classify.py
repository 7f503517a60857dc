"""classify: train one arm's classifier for one seed; other seeds of the arm may be trained alongside and published later.

The heavy imports wait until something has to be trained: publishing finished work takes a fraction of a second.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from gda.artifacts import ClassifierCard, Outcome, SnapshotIndex, dump_document, read_document
from gda.config import Arm, ClassifyConfig, Config
from gda.errors import DataError, TryAgainError, UsageError
from gda.io.publish import Workspace, exclusive, prepare, publish, read_recipe, work_root, write_bytes, write_json
from gda.parallel import Bar, run_parallel, tick
from gda.recipe import Recipe, bits_environment, digest_of
from gda.training.arms import PLANS, ArmPlan, read_index, refusal, require_same_classes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gda.data.resident import ImageSet
    from gda.training.classifier import Curve, Source

CARD, PREDICTIONS = "classifier.json", "val_predictions.safetensors"
CHECKPOINT_EVERY = 100  # updates
_DONE = "done.json"  # in the work folder, written last: what is in its `out` is complete


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What to load; the digests are there so that two contents of one path are two keys."""

    snapshot: Path
    snapshot_digest: str
    synthetic: Path | None
    synthetic_digest: str | None
    use_real: bool
    image_size: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """An arm on given snapshots, without a seed; `skipped` says why there is nothing to train."""

    config: ClassifyConfig
    arm: Arm
    snapshot: Path
    real: SnapshotIndex
    synthetic_path: Path | None
    synthetic: SnapshotIndex | None
    skipped: str | None

    @property
    def plan(self) -> ArmPlan:
        """What the arm is trained on."""
        return PLANS[self.arm]

    @property
    def num_updates(self) -> int:
        """Optimizer updates of this arm."""
        return self.config.mixed_num_updates if self.plan.long else self.config.num_updates

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return tuple(info.name for info in self.real.classes)

    @property
    def data(self) -> TrainingData:
        """The images that this arm is trained and validated on."""
        return TrainingData(
            snapshot=self.snapshot,
            snapshot_digest=self.real.digest,
            synthetic=self.synthetic_path,
            synthetic_digest=self.synthetic.digest if self.synthetic else None,
            use_real=self.plan.real,
            image_size=self.config.image_size,
        )

    def recipe(self, seed: int) -> Recipe:
        """What is asked for with `seed`: only what changes the outcome, so that a real arm does not depend on synthetic data."""
        unused = {"seeds", "control_seeds", "num_updates", "mixed_num_updates"} | (set() if self.arm is Arm.MIXED else {"ratio"})
        settings = self.config.model_dump(mode="json", exclude=unused)
        decided = {
            "arm": str(self.arm),
            "seed": seed,
            "num_updates": self.num_updates,
            "augment": self.plan.augment,
            "skipped": self.skipped,
        }
        inputs = {"snapshot": self.real.digest} | ({"synthetic": self.synthetic.digest} if self.synthetic else {})
        return Recipe(stage="classify", config=settings | decided, inputs=inputs, environment=bits_environment("timm", "torchvision"))


@dataclass(frozen=True, kw_only=True)
class Job:
    """Train one seed of a request in its work folder; `mine` when this is the seed that was asked for."""

    request: Request
    seed: int
    workspace: Workspace
    mine: bool


def run(
    config: Config,
    *,
    snapshot: Path,
    arm: Arm,
    seed: int,
    out: Path,
    synthetic: Path | None = None,
    verdict: Path | None = None,
    with_seeds: tuple[int, ...] = (),
    progress: bool = False,
) -> Outcome:
    """Train the classifier of `arm` and `seed` and publish it at `out` as a directory that timm loads.

    `with_seeds` are other seeds of the arm to train side by side; their results wait in the work folder for their own commands.
    When the verdict refused the synthetic set, a gated arm's output is a card that says so. Real arms never open `synthetic`.
    Raises `UsageError` when the arm needs a synthetic set or verdict that is not given, `DataError` when they do not belong together.
    """
    request = make_request(config.classify, arm, snapshot, synthetic, verdict)
    workspace = prepare(request.recipe(seed), out)
    if workspace.finished:
        card = read_document(out / CARD, ClassifierCard)
        return Outcome(output=out, digest=card.digest, summary=f"{out} is up to date", reused=True, refused=card.skipped is not None)
    if not _is_done(workspace):
        mine = Job(request=request, seed=seed, workspace=workspace, mine=True)
        if request.skipped is not None:
            _write_skipped(mine)
        else:
            _train_all([mine, *_others(mine, with_seeds)], progress=progress)
    return _publish(workspace)


def make_request(config: ClassifyConfig, arm: Arm, snapshot: Path, synthetic: Path | None, verdict: Path | None) -> Request:
    """Check what was given against what `arm` needs, and read the small files that say what the snapshots are. Raises as `run` does."""
    plan, real = PLANS[arm], read_index(snapshot, "real")
    if not plan.synthetic:
        return Request(config=config, arm=arm, snapshot=snapshot, real=real, synthetic_path=None, synthetic=None, skipped=None)
    if synthetic is None:
        raise UsageError(f"arm {arm} is trained on synthetic images: give --synthetic DIR")
    drawn = read_index(synthetic, "synthetic")
    require_same_classes(snapshot, real, synthetic, drawn)
    skipped = refusal(arm, verdict, real, drawn) if plan.gated else None
    return Request(config=config, arm=arm, snapshot=snapshot, real=real, synthetic_path=synthetic, synthetic=drawn, skipped=skipped)


def _others(mine: Job, seeds: Sequence[int]) -> list[Job]:
    """Jobs of the seeds to train alongside, without those that are published beside our output or finished already."""
    published = [recipe for folder in mine.workspace.out.parent.glob("*/recipe.json") if (recipe := _recipe_in(folder.parent))]
    jobs = []
    for seed in sorted(set(seeds) - {mine.seed}):
        recipe = mine.request.recipe(seed)
        work = work_root() / "work" / recipe.digest[:32]
        if recipe in published or (work / _DONE).exists():
            continue
        # Its final name is not ours to know: `out` is where its own command will publish from.
        workspace = prepare(recipe, work / "published")
        jobs.append(Job(request=mine.request, seed=seed, workspace=workspace, mine=False))
    return jobs


def _recipe_in(folder: Path) -> Recipe | None:
    with suppress(DataError):
        return read_recipe(folder)
    return None


def _train_all(jobs: list[Job], *, progress: bool) -> None:
    # Imported and loaded before the processes are forked, so that it is paid once.
    import gda.training.classifier  # noqa: F401

    request = jobs[0].request
    _load(request.data)
    with Bar(request.num_updates * len(jobs), f"classify {request.arm}", unit="update", shown=progress):
        run_parallel(train_job, jobs)


def train_job(job: Job) -> None:
    """Train one seed into its work folder and mark it done; a companion seed that another process works on is left to it."""
    if _is_done(job.workspace):
        tick(job.request.num_updates)
        return
    try:
        with exclusive(job.workspace):
            _train(job)
    except TryAgainError:
        if job.mine:
            raise


def _train(job: Job) -> None:
    from gda.training.classifier import TrainRecipe, predict_logits, top1, train_classifier

    request = job.request
    sources, val = _load(request.data)
    model, curve = train_classifier(
        _with_shares(sources, request.config.ratio),
        TrainRecipe.from_config(request.config, num_updates=request.num_updates, augment=request.plan.augment),
        num_classes=len(request.classes),
        seed=job.seed,
        checkpoint=job.workspace.work / "checkpoint",
        checkpoint_every=CHECKPOINT_EVERY,
        progress=lambda _: tick(),
    )
    logits = predict_logits(model, val.images, image_size=request.config.image_size)
    _write_classifier(job, model, logits, val.labels, val_top1=top1(logits, val.labels))
    _mark_done(job.workspace, curve)


@lru_cache(maxsize=1)
def _load(data: TrainingData) -> tuple[dict[str, "ImageSet"], "ImageSet"]:
    """Training images by origin, and the validation split; kept, so that forked processes find them in memory."""
    from gda.data.resident import load_images
    from gda.data.snapshot import Snapshot

    real = Snapshot.open(data.snapshot)
    sources = {"real": load_images(real, "train", size=data.image_size)} if data.use_real else {}
    if data.synthetic is not None:
        sources["synthetic"] = load_images(Snapshot.open(data.synthetic), "train", size=data.image_size)
    return sources, load_images(real, "val", size=data.image_size)


def _with_shares(sources: dict[str, "ImageSet"], ratio: float) -> list["Source"]:
    """A lone source fills the batch; two share it as `ratio` synthetic images to one real."""
    from gda.training.classifier import Source

    shares = {"real": 1 / (1 + ratio), "synthetic": ratio / (1 + ratio)} if len(sources) == 2 else dict.fromkeys(sources, 1.0)
    return [Source(images=images.images, labels=images.labels, share=shares[name]) for name, images in sources.items()]


def _write_classifier(job: Job, model: "nn.Module", logits: "Tensor", labels: "Tensor", *, val_top1: float) -> None:
    from safetensors.torch import save

    from gda.training.export import export_classifier, weights_digest

    folder = job.workspace.fresh_staging()
    export_classifier(model, folder, _card(job, weights=weights_digest(model), val_top1=val_top1))
    write_bytes(folder / PREDICTIONS, save({"logits": logits, "labels": labels}))


def _write_skipped(job: Job) -> None:
    write_bytes(job.workspace.fresh_staging() / CARD, dump_document(_card(job)))
    _mark_done(job.workspace, [])


def _card(job: Job, *, weights: str | None = None, val_top1: float | None = None) -> ClassifierCard:
    request, recipe = job.request, job.workspace.recipe
    source = request.synthetic or request.real
    return ClassifierCard(
        arm=request.arm,
        seed=job.seed,
        skipped=request.skipped,
        model=request.config.model,
        image_size=request.config.image_size,
        classes=request.classes,
        num_updates=0 if request.skipped else request.num_updates,
        val_top1=val_top1,
        digest=digest_of({"weights": weights, "config": recipe.config, "inputs": recipe.inputs}),
        snapshot_digest=request.real.digest,
        synthetic_digest=request.synthetic.digest if request.synthetic else None,
        base_licence=source.licence,
    )


def _is_done(workspace: Workspace) -> bool:
    return (workspace.work / _DONE).exists()


def _mark_done(workspace: Workspace, curve: "Curve") -> None:
    write_json(workspace.work / _DONE, {"curve": [list(point) for point in curve]})


def _publish(workspace: Workspace) -> Outcome:
    curve = [(int(update), float(loss)) for update, loss in json.loads((workspace.work / _DONE).read_bytes())["curve"]]
    out = publish(workspace)
    card = read_document(out / CARD, ClassifierCard)
    if card.skipped is not None:
        return Outcome(
            output=out,
            digest=card.digest,
            summary=f"wrote {out}: skipped, because the synthetic set was refused",
            files=(out / CARD,),
            refused=True,
        )
    assert card.val_top1 is not None
    return Outcome(
        output=out,
        digest=card.digest,
        summary=f"wrote {out}: {card.arm}, seed {card.seed}, {card.num_updates} updates, {100 * card.val_top1:.1f}% on validation",
        metrics={"val_top1": card.val_top1, "loss": curve[-1][1]},
        curves={"loss": curve},
        files=tuple(sorted(path for path in out.iterdir() if path.is_file())),
    )

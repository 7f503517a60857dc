"""ratio: how many synthetic images help: accuracy on validation against the synthetic to real ratio, and its peak.

Every ratio gets a few seeds, the best ones get more. The test split is not opened, and the seeds of the comparison are not used.
"""

from functools import partial
from pathlib import Path

import numpy as np

from gda.artifacts.curves import RatioCurve, RatioPoint
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.fingerprint import Fingerprint, bits_environment, digest_of
from gda.artifacts.outcome import Outcome
from gda.artifacts.snapshot import SnapshotIndex
from gda.config.arm import Arm
from gda.config.load import Config
from gda.data.images.codecs import LANCZOS
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot
from gda.data.store.soft_labels import soft_labels_input
from gda.errors import DataError
from gda.io.atomic import work_root, write_bytes
from gda.io.publish import publish_once
from gda.io.up_to_date import Workspace
from gda.report.ratio import ratio_answer, ratio_figure
from gda.runtime.progress import Bar
from gda.runtime.rng import numpy_stream
from gda.stats.paired import paired_differences
from gda.stats.peak import find_peak, pooled_intervals
from gda.training.arms.requirements import read_index, refusal, require_same_classes
from gda.training.loop.classifier import TrainRecipe
from gda.training.networks.pretrained import weights_inputs
from gda.tuning.ratio_search import REAL_ALONE, RatioSearch, Sets, _Correct, images_of, nested_order, num_classifiers

CURVE, _PICTURE = "ratio.json", "ratio.png"


def run(config: Config, *, snapshot: Path, synthetic: Path, verdict: Path, out: Path, progress: bool = False) -> Outcome:
    """Train real + synthetic classifiers at every ratio of section `ratio` and write `ratio.json` and its plot to `out`.

    Ratios for which the set has too few images are left out and noted. If the verdict refused the set, nothing is trained, and the
    curve states why. Raises `DataError` when the inputs do not belong together or no ratio can be tried.
    """
    real, generated = read_index(snapshot, "real"), read_index(synthetic, "synthetic")
    require_same_classes(snapshot, real, synthetic, generated)
    skipped = refusal(Arm.MIXED, verdict, real, generated)
    fingerprint = Fingerprint(
        stage="ratio",
        config={
            "ratio": config.ratio.model_dump(mode="json"),
            "batch_share": config.classify.ratio if config.ratio.batch_share == "classify" else None,
            "classifier": _training(config).identity(),
            "confidence": config.evaluate.confidence,
            "num_resamples": config.evaluate.num_resamples,
            "seed": config.seed,
            "skipped": skipped,
        },
        inputs={"snapshot": real.digest, "synthetic": generated.digest}
        | soft_labels_input(synthetic, generated)
        | weights_inputs(config.classify),
        environment=bits_environment("timm", "torchvision"),
    )

    def build(workspace: Workspace) -> None:
        if skipped is not None:
            curve = _curve(config, real, generated, num_real=_total(real, "train"), num_val=_total(real, "val"), skipped=skipped)
        else:
            curve = _search(config, snapshot, synthetic, real, generated, workspace, progress=progress)
            write_bytes(workspace.staging / _PICTURE, ratio_figure(curve))
        write_bytes(workspace.staging / CURVE, dump_document(curve))

    reused = publish_once(fingerprint, out, build)
    return _outcome(out, read_document(out / CURVE, RatioCurve), reused=reused)


def _training(config: Config) -> TrainRecipe:
    return TrainRecipe.from_config(config.classify, num_train_steps=config.ratio.num_train_steps or config.classify.mixed_num_train_steps)


def _search(
    config: Config, snapshot: Path, synthetic: Path, real: SnapshotIndex, generated: SnapshotIndex, workspace: Workspace, *, progress: bool
) -> RatioCurve:
    num_real, num_generated = _total(real, "train"), _total(generated, "train")
    ratios = [ratio for ratio in config.ratio.ratios if images_of(ratio, num_real) <= num_generated]
    if not ratios:
        raise DataError(
            f"{synthetic}: has {num_generated:,} images, too few for the smallest of ratio.ratios, {config.ratio.ratios[0]:g} to one of "
            f"{num_real:,} real images; sample more or add a smaller ratio"
        )
    left_out = [f"{ratio:g}" for ratio in config.ratio.ratios if ratio not in ratios]
    notes = [f"the set has {num_generated:,} images, too few for the ratio {', '.join(left_out)}"] if left_out else []
    training = _training(config)
    sets = _sets(training, snapshot, synthetic, workspace, most=images_of(ratios[-1], num_real))
    search = RatioSearch(sets, training, config.ratio, batch_share=_share(config), folder=work_root() / "ratios")
    with Bar(num_classifiers(config.ratio, len(ratios)), "ratio", unit="classifier", shown=progress):
        correct = search.run(ratios)
    gains, evaluate = {ratio: _gain(correct, ratio) for ratio in ratios}, config.evaluate
    rng = numpy_stream("stats", config.seed, "ratio")
    intervals = pooled_intervals(gains, rng, confidence=evaluate.confidence, num_resamples=evaluate.num_resamples)
    points = tuple(
        RatioPoint(
            ratio=ratio,
            num_images=images_of(ratio, num_real),
            top1=_by_seed(correct[ratio]),
            gain=float(gains[ratio].mean()),
            ci95=intervals[ratio],
        )
        for ratio in ratios
    )
    # Accuracies rather than gains: the score of real alone does not move the peak.
    scores = {ratio: correct[ratio].astype(np.float64) for ratio in ratios}
    peak = find_peak(scores, rng, confidence=evaluate.confidence, num_resamples=evaluate.num_resamples)
    curve = _curve(config, real, generated, num_real=num_real, num_val=len(sets.val.labels))
    return curve.model_copy(
        update={
            "points": points,
            "real_top1": _by_seed(correct[REAL_ALONE]),
            "peak": peak.ratio,
            "peak_ci95": (peak.low, peak.high),
            "best": peak.best,
            "enough": peak.enough,
            "at_edge": peak.at_edge,
            "notes": tuple(notes),
        }
    )


def _total(index: SnapshotIndex, split: str) -> int:
    return sum(index.counts.get(split, {}).values())


def _share(config: Config) -> float:
    """The synthetic share of a batch that classify would use."""
    return config.classify.ratio / (1 + config.classify.ratio)


def _sets(training: TrainRecipe, snapshot: Path, synthetic: Path, workspace: Workspace, *, most: int) -> Sets:
    real, generated = Snapshot.open(snapshot), Snapshot.open(synthetic)
    size, interpolation = training.image_size, LANCZOS if training.weights is None else training.weights.interpolation
    load = partial(load_images, scratch=workspace.work, interpolation=interpolation)
    images = load(generated, "train", size=size)
    return Sets(
        real=load(real, "train", size=size),
        synthetic=images.take(nested_order(images.labels)[:most]),
        val=load(real, "val", size=training.test_image_size or size),
        digests={"real": real.digest, "synthetic": generated.digest} | soft_labels_input(synthetic, generated.index),
    )


def _gain(correct: dict[float, _Correct], ratio: float) -> np.ndarray:
    own = correct[ratio]
    return paired_differences(own, correct[REAL_ALONE][: len(own)])


def _by_seed(correct: _Correct) -> tuple[float, ...]:
    return tuple(float(share) for share in correct.mean(axis=1))


def _curve(
    config: Config, real: SnapshotIndex, generated: SnapshotIndex, *, num_real: int, num_val: int, skipped: str | None = None
) -> RatioCurve:
    return RatioCurve(
        points=(),
        skipped=skipped,
        num_real=num_real,
        num_val=num_val,
        num_train_steps=0 if skipped else _training(config).num_train_steps,
        snapshot_digest=real.digest,
        synthetic_digest=generated.digest,
    )


def _outcome(out: Path, curve: RatioCurve, *, reused: bool) -> Outcome:
    digest = digest_of(curve.model_dump(mode="json"))
    if curve.skipped is not None:
        summary = f"{out} is up to date" if reused else f"wrote {out}: skipped, {curve.skipped}"
        return Outcome(output=out, digest=digest, summary=summary, files=(out / CURVE,), reused=reused, refused=True)
    measured = {"peak_ratio": curve.peak, "best_ratio": curve.best, "enough_ratio": curve.enough}
    return Outcome(
        output=out,
        digest=digest,
        summary=f"{out} is up to date" if reused else f"wrote {out}: on validation, {'; '.join([ratio_answer(curve), *curve.notes])}",
        metrics={name: value for name, value in measured.items() if value is not None},
        curves={"gain": [(point.num_images, point.gain) for point in curve.points]},
        files=(out / CURVE, out / _PICTURE),
        reused=reused,
    )

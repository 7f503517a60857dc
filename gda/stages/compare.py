"""compare: evaluations on one test split by training set size, each size with several choices of images, as table and plot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gda.artifacts.contents import require_whole
from gda.artifacts.curves import Exchange, SizeComparison, SizePoint
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.evaluation import Metrics
from gda.artifacts.fingerprint import Fingerprint, digest_of
from gda.artifacts.outcome import Outcome
from gda.config.arm import Arm
from gda.config.load import Config
from gda.data.store.predictions import Predictions, read_predictions
from gda.errors import DataError
from gda.io.atomic import write_bytes
from gda.io.publish import publish_once
from gda.io.up_to_date import Workspace
from gda.report.sizes import size_figure, size_table
from gda.stats.exchange import exchange_rate
from gda.stats.intervals import crossed_interval
from gda.stats.paired import Floats, paired_differences

_PREDICTIONS = "predictions.safetensors"
COMPARISON, TABLE, _PICTURE = "comparison.json", "comparison.csv", "sizes.png"


@dataclass(frozen=True, kw_only=True)
class _Evaluation:
    path: Path
    metrics: Metrics
    predictions: Predictions

    @property
    def num_train(self) -> int:
        if self.metrics.num_train is None:
            raise DataError(f"{self.path}: does not say how many images were trained on; evaluate again")
        return self.metrics.num_train

    def difference(self, arm: Arm) -> Floats:
        """Differences between the arm and real alone by seed and image, for the seeds that both have."""
        seeds = self.seeds(arm)
        return paired_differences(self.predictions.correct(arm, seeds), self.predictions.correct(Arm.REAL, seeds))

    def seeds(self, arm: Arm) -> tuple[int, ...]:
        """Seeds of the arm that real alone has too. Raises `DataError` when there are none."""
        both = sorted(set(self.predictions.seeds(arm)) & set(self.predictions.seeds(Arm.REAL)))
        if not both:
            raise DataError(f"{self.path}: {arm} and real share no seed")
        return tuple(both)

    def top1(self, arm: Arm, seeds: Sequence[int]) -> float:
        return float(self.predictions.correct(arm, seeds).mean())


def run(config: Config, *, evaluations: Sequence[Path], out: Path) -> Outcome:
    """Write `comparison.json`, a table and a plot of the gain of `promote.arm` over real alone by the number of real training images.

    Evaluations with equally many images are choices of one size. No image is read: the evaluations hold the predictions on the test split.
    Raises `DataError` for other test splits or classes, one real set given twice, or when the arm ran in none of them.
    """
    found = [_open(path) for path in evaluations]
    _require_comparable(found)
    fingerprint = Fingerprint(
        stage="compare",
        config={"arm": str(config.promote.arm), "evaluate": config.evaluate.model_dump(mode="json"), "seed": config.seed},
        inputs={f"evaluation {each.metrics.snapshot_digest}": digest_of(each.metrics.model_dump(mode="json")) for each in found},
    )

    def build(workspace: Workspace) -> None:
        comparison = _compare(config, found)
        write_bytes(workspace.staging / COMPARISON, dump_document(comparison))
        write_bytes(workspace.staging / TABLE, _table(comparison))
        write_bytes(workspace.staging / _PICTURE, size_figure(comparison, config.evaluate.confidence))

    reused = publish_once(fingerprint, out, build)
    return _outcome(out, read_document(out / COMPARISON, SizeComparison), reused=reused)


def _open(path: Path) -> _Evaluation:
    require_whole(path, only=["metrics.json", _PREDICTIONS], advice="run evaluate again")
    metrics, predictions = read_document(path / "metrics.json", Metrics), read_predictions(path / _PREDICTIONS)
    if predictions.test_digest != metrics.test_digest:
        raise DataError(f"{path}: its predictions are of another test split than its metrics")
    return _Evaluation(path=path, metrics=metrics, predictions=predictions)


def _require_comparable(found: Sequence[_Evaluation]) -> None:
    first, by_data = found[0], dict[str, Path]()
    for each in found:
        for name, value in (
            ("test split", each.metrics.test_digest == first.metrics.test_digest),
            ("classes", each.metrics.classes == first.metrics.classes),
        ):
            if not value:
                raise DataError(
                    f"{each.path}: has another {name} than {first.path}; only evaluations on the same test images can be compared"
                )
        if (other := by_data.setdefault(each.metrics.snapshot_digest, each.path)) is not each.path:
            raise DataError(f"{each.path}: is of the same real images as {other}; give each choice once")


def _compare(config: Config, found: Sequence[_Evaluation]) -> SizeComparison:
    arm = config.promote.arm
    skipped = {each.path.name: reason for each in found if (reason := _not_run(each, arm)) is not None}
    ran = [each for each in found if each.path.name not in skipped]
    if not ran:
        raise DataError(f"{arm} ran in none of these evaluations: {next(iter(skipped.values()))}")
    by_size = {size: [each for each in ran if each.num_train == size] for size in sorted({each.num_train for each in ran})}
    exchanged = _exchanges(config, arm, by_size)
    priced = {size: {"unpriced" if isinstance(found, str) else "exchange": found} for size, found in exchanged.items()}
    points = [_point(config, arm, choices) for choices in by_size.values()]
    return SizeComparison(
        arm=arm,
        points=tuple(point.model_copy(update=priced.get(point.num_train, {})) for point in points),
        num_test=ran[0].metrics.num_test,
        test_digest=ran[0].metrics.test_digest,
        skipped=tuple(f"{name}: {reason}" for name, reason in skipped.items()),
    )


def _not_run(evaluation: _Evaluation, arm: Arm) -> str | None:
    result = evaluation.metrics.arms.get(arm)
    return "it was not evaluated" if result is None else result.skipped


def _point(config: Config, arm: Arm, choices: Sequence[_Evaluation]) -> SizePoint:
    ordered = _ordered(choices)
    tables = [each.difference(arm) for each in ordered]
    # A choice of images is the unit of sampling: seeds of one choice share its images, so they count as one.
    rows = np.stack([table.mean(axis=0) for table in tables]) if len(tables) > 1 else tables[0]
    return SizePoint(
        num_train=ordered[0].num_train,
        choices=len(ordered),
        seeds=sum(len(table) for table in tables),
        real_top1=tuple(each.top1(Arm.REAL, each.seeds(arm)) for each in ordered),
        top1=tuple(each.top1(arm, each.seeds(arm)) for each in ordered),
        gain=float(rows.mean()),
        ci95=crossed_interval(rows, confidence=config.evaluate.confidence),
    )


def _exchanges(config: Config, arm: Arm, by_size: dict[int, list[_Evaluation]]) -> dict[int, Exchange | str]:
    """The exchange rate by size, or why there is none; empty below three sizes. A row is a choice, or a seed if a size has one choice."""
    choices = min(map(len, by_size.values()))
    if len(by_size) < 3:
        return {}
    if choices > 1:
        rows = {size: [(each, each.seeds(arm)) for each in _ordered(found)[:choices]] for size, found in by_size.items()}
    else:
        shared = sorted(set.intersection(*(set(found[0].seeds(arm)) for found in by_size.values())))
        rows = {size: [(_ordered(found)[0], (seed,)) for seed in shared] for size, found in by_size.items()}
    if len(next(iter(rows.values()))) < 2:
        return dict.fromkeys(by_size, "every size needs two choices, or two seeds in common")
    sizes = np.array(list(by_size), dtype=np.int64)
    real, own = (np.array([[each.top1(which, seeds) for each, seeds in rows[size]] for size in by_size]).T for which in (Arm.REAL, arm))
    found: dict[int, Exchange | str] = {}
    for place, size in enumerate(by_size):
        counts = {each.metrics.num_synthetic for each, _ in rows[size]}
        if len(counts) != 1 or not (num_synthetic := next(iter(counts))):
            found[size] = "its choices do not have one number of synthetic images"
            continue
        try:
            rate = exchange_rate(
                sizes, real, own[:, place], num_real=size, num_synthetic=num_synthetic, confidence=config.evaluate.confidence
            )
        except ValueError as error:  # a falling curve gives no exchange rate
            found[size] = str(error)
            continue
        ends = [value if math.isfinite(value) else None for value in (rate.rate, *rate.ci95)]
        found[size] = Exchange(rate=ends[0], low=ends[1], high=ends[2], num_synthetic=num_synthetic, method="measured sizes")
    return found


def _ordered(choices: Sequence[_Evaluation]) -> list[_Evaluation]:
    return sorted(choices, key=lambda each: each.metrics.snapshot_digest)


def _table(comparison: SizeComparison) -> bytes:
    rows = [
        {"num_train": point.num_train, "choice": choice, "real_top1": real, "top1": own, "gain": own - real}
        for point in comparison.points
        for choice, (real, own) in enumerate(zip(point.real_top1, point.top1, strict=True))
    ]
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode()


def _outcome(out: Path, comparison: SizeComparison, *, reused: bool) -> Outcome:
    notes = [f"left out {reason}" for reason in comparison.skipped]
    notes += [f"at {point.num_train:,} real images no exchange rate: {point.unpriced}" for point in comparison.points if point.unpriced]
    text = "\n".join([f"wrote {out}: {comparison.arm} against real", *size_table(comparison), *notes])
    return Outcome(
        output=out,
        digest=digest_of(comparison.model_dump(mode="json")),
        summary=f"{out} is up to date" if reused else text,
        metrics={f"gain_at_{point.num_train}": point.gain for point in comparison.points},
        curves={"gain": [(point.num_train, point.gain) for point in comparison.points]},
        files=(out / COMPARISON, out / TABLE, out / _PICTURE),
        reused=reused,
    )

"""evaluate: test every classifier once, measure arms, gains and CAS, name the candidate, and write the report."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.evaluation import Candidate, Metrics, SetResult
from gda.artifacts.fingerprint import Fingerprint, bits_environment, digest_of
from gda.artifacts.outcome import Outcome
from gda.artifacts.tuning import Settings
from gda.artifacts.verdict import Verdict
from gda.config.arm import Arm, in_order
from gda.config.load import Config
from gda.data.images.codecs import LANCZOS, Interpolation
from gda.data.ingest.held_out_sets import HeldOutSet
from gda.data.store.predictions import TOP_K, Predictions, read_predictions, write_predictions
from gda.data.store.snapshot import Snapshot
from gda.data.test_split.ledger import count_test_openings, record_look
from gda.data.test_split.opening import open_test
from gda.errors import DataError
from gda.evaluation.metrics import measure_arms, parts_of_arm
from gda.io.atomic import work_root, write_bytes
from gda.io.checked import is_whole
from gda.io.publish import publish_once
from gda.io.up_to_date import Workspace
from gda.registry.gate import decide
from gda.report.page import ReportInputs, write_report
from gda.report.wording import opened
from gda.runtime.parallel import run_parallel
from gda.runtime.progress import Bar, tick
from gda.stages import evaluate_sets
from gda.stats.confusion import confusion_counts
from gda.training.loop.classifier import load_classifier, predict_logits
from gda.training.networks.export import open_classifier

CARD_FILE, METRICS_FILE, _REPORT_FILE, TEST_PREDICTIONS = "classifier.json", "metrics.json", "report.html", "predictions.safetensors"
CONFUSION_FILE = "confusion.csv"
_KEPT = "test-predictions"  # in the work root


@dataclass(frozen=True, kw_only=True)
class Run:
    """A classifier directory and its card."""

    path: Path
    card: ClassifierCard


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """Predict the test images in the .npy file `images` (uint8 NCHW), whose classes are `labels` int32 [n], with one classifier."""

    folder: Path
    images: Path
    labels: np.ndarray
    image_size: int


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All inputs except the classifiers, opened and checked."""

    real: Snapshot
    synthetic: Snapshot | None
    zero_shot: Snapshot | None
    settings: Settings | None
    verdict: Verdict | None
    sets: tuple[HeldOutSet, ...]


Runs = Mapping[tuple[Arm, int], Run]


def run(
    config: Config,
    *,
    runs: Sequence[Path],
    snapshot: Path,
    synthetic: Path | None = None,
    zero_shot: Path | None = None,
    tuning: Path | None = None,
    verdict: Path | None = None,
    out: Path,
    progress: bool = False,
    timings: Mapping[str, float] | None = None,
    validation_report: Path | None = None,
) -> Outcome:
    """Evaluate exactly the arms and seeds that `config.classify` names and write metrics, predictions, plots and the report to `out`.

    `runs` are classifier directories or folders of them; others among them are ignored. The test split is opened once. `timings`
    (stage -> seconds) and `validation_report` (the folder of validate, by default that of the verdict) only add to the report.
    Raises `DataError` for a classifier that is missing, or was trained on another snapshot.
    """
    given = _open_inputs(config, snapshot, synthetic, zero_shot, tuning, verdict, progress=progress)
    chosen = select_runs(config, runs)
    _require_consistent(chosen, given.real, snapshot)

    def build(workspace: Workspace) -> None:
        predictions, openings, work = _predict(workspace, chosen, given.real, progress=progress)
        measured = measure_arms(
            config,
            {key: run_.card for key, run_ in chosen.items()},
            predictions,
            given.real,
            candidate=_candidate(config, chosen),
            synthetic=given.synthetic,
            verdict=given.verdict,
            sets=_measure_sets(config, workspace, chosen, given, progress=progress),
        )
        metrics = measured.model_copy(update={"test_openings": openings, "look": _look(config, given.real, work)})
        folder = workspace.fresh_staging()
        write_predictions(folder / TEST_PREDICTIONS, predictions)
        write_bytes(folder / METRICS_FILE, dump_document(metrics))
        page = _validation_page(verdict, validation_report, out)
        write_bytes(folder / CONFUSION_FILE, _confusions(predictions, metrics.classes))
        inputs = _report_inputs(config, chosen, given, metrics, timings=dict(timings or {}), validation_page=page)
        write_report(folder, replace(inputs, predictions=predictions))

    reused = publish_once(_fingerprint(config, chosen, given), out, build)
    return _outcome(out, read_document(out / METRICS_FILE, Metrics), reused=reused)


def _open_inputs(
    config: Config,
    snapshot: Path,
    synthetic: Path | None,
    zero_shot: Path | None,
    tuning: Path | None,
    verdict: Path | None,
    *,
    progress: bool,
) -> Inputs:
    real = Snapshot.open(snapshot)
    return Inputs(
        real=real,
        synthetic=Snapshot.open(synthetic) if synthetic is not None else None,
        zero_shot=Snapshot.open(zero_shot) if zero_shot is not None else None,
        settings=read_document(tuning / "settings.json", Settings) if tuning is not None else None,
        verdict=read_document(verdict, Verdict) if verdict is not None else None,
        sets=evaluate_sets.open_sets(config, tuple(info.name for info in real.classes), progress=progress),
    )


def _report_inputs(
    config: Config, chosen: Runs, given: Inputs, metrics: Metrics, *, timings: Mapping[str, float], validation_page: str | None
) -> ReportInputs:
    gate = decide(metrics, given.verdict, config.promote, licence=_licence(chosen, metrics.candidate))
    return ReportInputs(
        metrics=metrics,
        verdict=given.verdict,
        settings=given.settings,
        promote=config.promote,
        confidence=config.evaluate.confidence,
        gate_reasons=gate.reasons,
        real=given.real,
        synthetic=given.synthetic,
        zero_shot=given.zero_shot,
        timings=timings,
        validation_page=validation_page,
    )


def _validation_page(verdict: Path | None, report: Path | None, out: Path) -> str | None:
    """The path of the validation report relative to `out`; by default the report is next to the verdict."""
    folder = report if report is not None else verdict.parent if verdict is not None else None
    if folder is None or not (folder / "index.html").is_file():
        return None
    return Path(os.path.relpath(folder / "index.html", out)).as_posix()


def select_runs(config: Config, folders: Sequence[Path]) -> Runs:
    """The classifier of every arm and seed that `config.classify` names, each checked against its recorded digests.

    Raises `DataError` naming one that is missing, duplicated or damaged.
    """
    found: dict[tuple[Arm, int], Run] = {}
    for path in _classifier_folders(folders):
        card = read_document(path / CARD_FILE, ClassifierCard)
        if card.arm not in config.classify.arms or card.seed not in config.classify.seeds_of(card.arm):
            continue
        if (card.arm, card.seed) in found:
            other = found[card.arm, card.seed].path
            raise DataError(f"{path}: {card.arm}, seed {card.seed} is also in {other}; give --runs only one of them")
        found[card.arm, card.seed] = Run(path=path, card=card)
    wanted = [(arm, seed) for arm in in_order(config.classify.arms) for seed in config.classify.seeds_of(arm)]
    for arm, seed in wanted:
        if (arm, seed) not in found:
            where = ", ".join(map(str, folders))
            raise DataError(f"{where}: no classifier of arm {arm}, seed {seed} (expected a folder such as {arm}/{seed})")
    return {key: Run(path=found[key].path, card=open_classifier(found[key].path)) for key in wanted}


def _classifier_folders(folders: Sequence[Path]) -> list[Path]:
    paths: list[Path] = []
    for folder in folders:
        if (folder / CARD_FILE).is_file():
            paths.append(folder)
        elif folder.is_dir():
            paths += sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{CARD_FILE}"))
        else:
            raise DataError(f"{folder}: not found; expected a classifier or a folder of classifiers")
    return list(dict.fromkeys(paths))


def _require_consistent(chosen: Runs, real: Snapshot, snapshot: Path) -> None:
    classes = tuple(info.name for info in real.classes)
    for run_ in chosen.values():
        if run_.card.snapshot_digest != real.digest:
            raise DataError(f"{run_.path}: was trained on snapshot {run_.card.snapshot_digest[:12]}, but {snapshot} is {real.digest[:12]}")
        if run_.card.classes != classes:
            raise DataError(f"{run_.path}: its classes are not those of {snapshot}")
    for arm in dict.fromkeys(arm for arm, _ in chosen):
        states = {run_.card.skipped is None for (name, _), run_ in chosen.items() if name is arm}
        if len(states) > 1:
            raise DataError(f"arm {arm}: some seeds ran and others were skipped; run classify again for all of them")
    if chosen_real := next((r for (arm, _), r in chosen.items() if arm is Arm.REAL and r.card.skipped), None):
        raise DataError(f"{chosen_real.path}: the arm real was skipped, so there is nothing to compare with")


def _fingerprint(config: Config, chosen: Runs, given: Inputs) -> Fingerprint:
    snapshots = {"snapshot": given.real, "synthetic": given.synthetic, "zero_shot": given.zero_shot}
    documents = {"verdict": given.verdict, "settings": given.settings}
    return Fingerprint(
        stage="evaluate",
        config={
            "seed": config.seed,
            "evaluate": config.evaluate.model_dump(mode="json", exclude=set(evaluate_sets.FIELDS)),
            "promote": config.promote.model_dump(mode="json"),
        },
        inputs={
            **{name: opened.digest for name, opened in snapshots.items() if opened is not None},
            **{name: digest_of(document.model_dump(mode="json")) for name, document in documents.items() if document is not None},
            **evaluate_sets.identities(config, given.sets),
            # The path is in metrics.json, as the candidate's.
            **{f"{arm}-{seed}": f"{run_.path.as_posix()}@{run_.card.digest}" for (arm, seed), run_ in chosen.items()},
        },
        environment=bits_environment("timm", "scipy", "matplotlib"),
    )


def _predict(workspace: Workspace, chosen: Runs, real: Snapshot, *, progress: bool) -> tuple[Predictions, int, str]:
    """Predictions of every classifier that ran, the number of test openings so far including this one, and the digest of this one.

    Predictions are kept, so that neither a later failure nor another gate opens the test split again.
    """
    trained, size, interpolation = _trained(chosen)
    work = _prediction_digest(trained, real, size, interpolation)
    kept = work_root() / _KEPT / f"{work[:32]}.safetensors"
    if is_whole(kept):
        # Files of earlier versions have no groups; the snapshot has them.
        return replace(read_predictions(kept), groups=real.groups("test")), _openings(real, work), work
    test = open_test(real, "evaluate", size=size, interpolation=interpolation, work=work)
    # Workers map this file, so the images are not copied to each of them.
    images = workspace.work / "test_images.npy"
    np.save(images, test.images.numpy())
    labels = test.labels.numpy().astype(np.int32)
    jobs = [PredictJob(folder=run_.path, images=images, labels=labels, image_size=size) for run_ in trained.values()]
    with Bar(len(jobs), "evaluate", unit="classifier", shown=progress, about=f"{len(labels):,} test images"):
        found = dict(zip(trained, run_parallel(predict, jobs), strict=True))
    images.unlink()
    predictions = Predictions(
        labels=labels,
        top={key: top for key, (top, _) in found.items()},
        test_digest=real.split_digest("test"),
        probabilities={key: both for key, (_, both) in found.items()},
        groups=real.groups("test"),
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(kept, predictions)
    return predictions, _openings(real, work), work


def _look(config: Config, real: Snapshot, work: str) -> int:
    """The number of this look at the test split, for these predictions and the declared arm; each later look has a stricter level."""
    declared = {"predictions": work, "arm": config.promote.arm, "rivals": sorted(config.promote.rivals)}
    return record_look(real, digest_of(declared))


def _openings(real: Snapshot, work: str) -> int:
    return count_test_openings(real.split_digest("test"), "evaluate", work=work, former=real.digest)


def _prediction_digest(trained: Runs, real: Snapshot, size: int, interpolation: Interpolation) -> str:
    """A digest of everything that determines the predictions: classifiers and images, but not how they are assessed."""
    return digest_of(
        {
            "test": real.split_digest("test"),
            "classifiers": {f"{arm}-{seed}": [run_.card.digest, run_.card.weights] for (arm, seed), run_ in trained.items()},
            "seen_as": [size, interpolation],
            "environment": bits_environment("timm"),
        }
    )


def _trained(chosen: Runs) -> tuple[Runs, int, Interpolation]:
    """The classifiers that ran, and the one size, in pixels, and filter of their images. Raises `DataError` where there are several."""
    trained = {key: run_ for key, run_ in chosen.items() if run_.card.skipped is None}
    sizes = sorted({run_.card.image_size for run_ in trained.values()})
    if len(sizes) != 1:
        pixels = ", ".join(map(str, sizes))
        raise DataError(f"classifiers take images of different sizes ({pixels} pixels); run classify again for all of them")
    filters = sorted({run_.card.interpolation or LANCZOS for run_ in trained.values()})
    if len(filters) != 1:
        raise DataError(f"classifiers take images resized differently ({', '.join(filters)}); run classify again for all of them")
    return trained, sizes[0], filters[0]


def _measure_sets(config: Config, workspace: Workspace, chosen: Runs, given: Inputs, *, progress: bool) -> dict[str, SetResult]:
    trained, size, interpolation = _trained(chosen)
    folders = {key: run_.path for key, run_ in trained.items()}
    seen_as = evaluate_sets.Seen(size=size, interpolation=interpolation)
    parts = {arm: parts_of_arm({key: run_.card for key, run_ in trained.items()}, arm) for arm, _ in trained}
    scratch = workspace.work
    return evaluate_sets.measure_sets(config, given.sets, folders, given.real, seen_as, parts=parts, scratch=scratch, progress=progress)


def predict(job: PredictJob) -> tuple[np.ndarray, np.ndarray]:
    """The best classes of every image, best first, int32 [images, at most TOP_K]; the lower class wins a tie. And probabilities.

    Probabilities are float32 [images, 2]: of the best class and of the true one.
    """
    images = torch.from_numpy(np.load(job.images, mmap_mode="c"))
    logits = predict_logits(load_classifier(job.folder), images, image_size=job.image_size)
    probabilities = logits.double().softmax(1).numpy()
    tick()
    top = np.argsort(-logits.numpy(), axis=1, kind="stable")[:, :TOP_K].astype(np.int32)
    rows = np.arange(len(top))
    return top, np.stack([probabilities[rows, top[:, 0]], probabilities[rows, job.labels]], axis=1).astype(np.float32)


def _confusions(predictions: Predictions, classes: Sequence[str]) -> bytes:
    """CSV: arm, true class, predicted class, and number of images over all seeds; pairs that never occur are left out."""
    tables = []
    for arm in dict.fromkeys(arm for arm, _ in predictions.top):
        predicted = np.stack([predictions.top[arm, seed][:, 0] for seed in predictions.seeds(arm)])
        counts = confusion_counts(predicted, predictions.labels, len(classes))
        rows, columns = np.nonzero(counts)
        pairs = {"class": [classes[int(i)] for i in rows], "predicted": [classes[int(i)] for i in columns], "images": counts[rows, columns]}
        tables.append(pd.DataFrame({"arm": str(arm)} | pairs, index=range(len(rows))))
    return pd.concat(tables).to_csv(index=False, lineterminator="\n").encode()


def _candidate(config: Config, chosen: Runs) -> Candidate | None:
    """The declared arm's classifier with the best *validation* accuracy, the lowest seed among equals; None when the arm was skipped."""
    own = [run_ for (arm, _), run_ in chosen.items() if arm is config.promote.arm and run_.card.val_top1 is not None]
    if not own:
        return None
    best = min(own, key=lambda run_: (-(run_.card.val_top1 or 0.0), run_.card.seed))
    return Candidate(arm=best.card.arm, seed=best.card.seed, path=best.path.as_posix(), digest=best.card.digest)


def _licence(chosen: Runs, candidate: Candidate | None) -> str:
    return chosen[candidate.arm, candidate.seed].card.base_licence if candidate is not None else "unknown"


def _outcome(out: Path, metrics: Metrics, *, reused: bool) -> Outcome:
    ran = {arm: metrics.arms[arm] for arm in in_order(metrics.arms)}
    numbers = {f"top1_{arm.replace('+', '_')}": result.mean for arm, result in metrics.arms.items() if result.mean is not None}
    numbers |= {f"gain_{arm.replace('+', '_')}": gain.mean for arm, gain in metrics.gain.items()}
    numbers |= {} if metrics.test_openings is None else {"test_openings": float(metrics.test_openings)}
    numbers |= {f"top1_{arm.replace('+', '_')}_{name}": of.mean for name, one in metrics.sets.items() for arm, of in one.arms.items()}
    accuracies = ", ".join(f"{arm} {100 * result.mean:.1f}%" for arm, result in ran.items() if result.mean is not None)
    skipped = ", ".join(arm for arm, result in ran.items() if result.skipped is not None)
    left_out = f"; skipped {skipped}" if skipped else ""
    again = f"; this test split was opened {opened(metrics.test_openings)}" if (metrics.test_openings or 0) > 1 else ""
    return Outcome(
        output=out,
        digest=digest_of(metrics.model_dump(mode="json")),
        summary=f"{out} is up to date" if reused else f"wrote {out / _REPORT_FILE}: {accuracies}{left_out}{again}",
        metrics=numbers,
        files=tuple(sorted(path for path in out.iterdir() if path.suffix in (".html", ".json", ".png", ".csv"))),
        reused=reused,
    )

"""evaluate: test every classifier once, measure arms, gains and CAS, name the candidate, and write the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gda.artifacts import Candidate, ClassifierCard, Metrics, Outcome, Settings, Verdict, dump_document, read_document
from gda.config import Arm, Config
from gda.data.ledger import read_ledger
from gda.data.resident import open_test
from gda.data.snapshot import Snapshot
from gda.errors import DataError
from gda.flow import PAIRED_ARMS
from gda.io.publish import Workspace, prepare, publish, write_bytes
from gda.parallel import Bar, run_parallel, tick
from gda.recipe import Recipe, bits_environment, digest_of
from gda.registry.gate import decide
from gda.data.predictions import TOP_K, Predictions, read_predictions, write_predictions
from gda.report.measure import measure
from gda.report.page import ReportInputs, write_report
from gda.training.classifier import load_classifier, predict_logits

CARD_FILE, METRICS_FILE, REPORT_FILE, PREDICTIONS_FILE = "classifier.json", "metrics.json", "report.html", "predictions.safetensors"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A classifier directory and its card."""

    path: Path
    card: ClassifierCard


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """Predict the test images in the .npy file `images` (uint8 NCHW) with one classifier."""

    folder: Path
    images: Path
    image_size: int


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

    `runs` are classifier directories or folders of them; others among them are ignored. The test split is opened once. `timings` (stage ->
    seconds) and `validation_report` (a folder whose pictures are shown) only dress the report. Raises `DataError` for a classifier
    that is missing, or was trained on another snapshot.
    """
    real = Snapshot.open(snapshot)
    sets = {name: Snapshot.open(path) for name, path in (("synthetic", synthetic), ("zero_shot", zero_shot)) if path is not None}
    judged = read_document(verdict, Verdict) if verdict is not None else None
    settings = read_document(tuning / "settings.json", Settings) if tuning is not None else None
    chosen = select_runs(config, runs)
    _require_consistent(chosen, real, snapshot)
    workspace = prepare(_recipe(config, chosen, real, sets, judged, settings), out)
    if workspace.finished:
        return _outcome(out, read_document(out / METRICS_FILE, Metrics), reused=True)

    predictions = _predict(workspace, chosen, real, progress=progress)
    metrics = measure(
        config,
        {key: run_.card for key, run_ in chosen.items()},
        predictions,
        real,
        candidate=_candidate(config, chosen),
        synthetic_digest=sets["synthetic"].digest if "synthetic" in sets else None,
        verdict=judged,
    )
    folder = workspace.fresh_staging()
    write_predictions(folder / PREDICTIONS_FILE, predictions)
    write_bytes(folder / METRICS_FILE, dump_document(metrics))
    gate = decide(metrics, judged, config.promote, licence=_licence(chosen, metrics.candidate))
    write_report(
        folder,
        ReportInputs(
            metrics=metrics,
            verdict=judged,
            settings=settings,
            promote=config.promote,
            confidence=config.evaluate.confidence,
            gate_reasons=gate.reasons,
            real=real,
            synthetic=sets.get("synthetic"),
            zero_shot=sets.get("zero_shot"),
            timings=dict(timings or {}),
            test_openings=sum(line["digest"] == real.digest and line["purpose"] == "evaluate" for line in read_ledger()),
            validation_report=validation_report,
        ),
    )
    publish(workspace)
    return _outcome(out, metrics)


def select_runs(config: Config, folders: Sequence[Path]) -> Runs:
    """The classifier of every arm and seed that `config.classify` names. Raises `DataError` naming one that is missing or there twice."""
    found: dict[tuple[Arm, int], Run] = {}
    for path in _classifier_folders(folders):
        card = read_document(path / CARD_FILE, ClassifierCard)
        if card.seed not in _seeds(config, card.arm):
            continue
        if (card.arm, card.seed) in found:
            raise DataError(f"{path}: {card.arm}, seed {card.seed} is also in {found[card.arm, card.seed].path}; give --runs only one of them")
        found[card.arm, card.seed] = Run(path=path, card=card)
    wanted = [(arm, seed) for arm in Arm for seed in _seeds(config, arm)]
    for arm, seed in wanted:
        if (arm, seed) not in found:
            raise DataError(f"{', '.join(map(str, folders))}: no classifier of arm {arm}, seed {seed} (expected a folder such as {arm}-{seed})")
    return {key: found[key] for key in wanted}


def _seeds(config: Config, arm: Arm) -> tuple[int, ...]:
    return config.classify.seeds if arm in PAIRED_ARMS else config.classify.control_seeds


def _classifier_folders(folders: Sequence[Path]) -> list[Path]:
    paths: list[Path] = []
    for folder in folders:
        if (folder / CARD_FILE).is_file():
            paths.append(folder)
        elif folder.is_dir():
            paths += sorted(path.parent for path in folder.glob(f"*/{CARD_FILE}"))
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
    for arm in Arm:
        states = {run_.card.skipped is None for (name, _), run_ in chosen.items() if name is arm}
        if len(states) > 1:
            raise DataError(f"arm {arm}: some seeds ran and others were skipped; run classify again for all of them")
    if chosen_real := next((r for (arm, _), r in chosen.items() if arm is Arm.REAL and r.card.skipped), None):
        raise DataError(f"{chosen_real.path}: the arm real was skipped, so there is nothing to compare with")


def _recipe(
    config: Config, chosen: Runs, real: Snapshot, sets: Mapping[str, Snapshot], verdict: Verdict | None, settings: Settings | None
) -> Recipe:
    documents = {"verdict": verdict, "settings": settings}
    return Recipe(
        stage="evaluate",
        config={
            "seed": config.seed,
            "evaluate": config.evaluate.model_dump(mode="json"),
            "promote": config.promote.model_dump(mode="json"),
        },
        inputs={
            "snapshot": real.digest,
            **{name: snapshot.digest for name, snapshot in sets.items()},
            **{name: digest_of(document.model_dump(mode="json")) for name, document in documents.items() if document is not None},
            **{f"{arm}-{seed}": f"{run_.path.as_posix()}@{run_.card.digest}" for (arm, seed), run_ in chosen.items()},
        },
        environment=bits_environment("timm", "scipy", "matplotlib"),
    )


def _predict(workspace: Workspace, chosen: Runs, real: Snapshot, *, progress: bool) -> Predictions:
    """Predictions of every classifier that ran; kept in the work folder, so that a later failure does not open the test split again."""
    kept = workspace.work / PREDICTIONS_FILE
    if kept.exists():
        return read_predictions(kept)
    trained = {key: run_ for key, run_ in chosen.items() if run_.card.skipped is None}
    sizes = sorted({run_.card.image_size for run_ in trained.values()})
    if len(sizes) != 1:
        raise DataError(f"classifiers take images of different sizes ({', '.join(map(str, sizes))} pixels); run classify again for all of them")
    test = open_test(real, "evaluate", size=sizes[0])
    # A file that the workers map, rather than a copy of the images sent to each of them.
    images = workspace.work / "test_images.npy"
    np.save(images, test.images.numpy())
    jobs = [PredictJob(folder=run_.path, images=images, image_size=sizes[0]) for run_ in trained.values()]
    with Bar(len(jobs), "evaluate", unit="classifier", shown=progress):
        top = run_parallel(predict_top, jobs)
    images.unlink()
    labels = test.labels.numpy().astype(np.int32)
    predictions = Predictions(labels=labels, top=dict(zip(trained, top, strict=True)), test_digest=real.split_digest("test"))
    write_predictions(kept, predictions)
    return predictions


def predict_top(job: PredictJob) -> np.ndarray:
    """The best classes of every image, best first, int32 [images, at most TOP_K]; ties go to the lower class."""
    images = torch.from_numpy(np.load(job.images, mmap_mode="c"))
    logits = predict_logits(load_classifier(job.folder), images, image_size=job.image_size).numpy()
    tick()
    return np.argsort(-logits, axis=1, kind="stable")[:, :TOP_K].astype(np.int32)


def _candidate(config: Config, chosen: Runs) -> Candidate | None:
    """The declared arm's classifier with the best *validation* accuracy, the lowest seed among equals; None when the arm was skipped."""
    mine = [run_ for (arm, _), run_ in chosen.items() if arm is config.promote.arm and run_.card.val_top1 is not None]
    if not mine:
        return None
    best = min(mine, key=lambda run_: (-(run_.card.val_top1 or 0.0), run_.card.seed))
    return Candidate(arm=best.card.arm, seed=best.card.seed, path=best.path.as_posix(), digest=best.card.digest)


def _licence(chosen: Runs, candidate: Candidate | None) -> str:
    return chosen[candidate.arm, candidate.seed].card.base_licence if candidate is not None else "unknown"


def _outcome(out: Path, metrics: Metrics, *, reused: bool = False) -> Outcome:
    numbers = {f"top1_{arm.replace('+', '_')}": result.mean for arm, result in metrics.arms.items() if result.mean is not None}
    numbers |= {f"gain_{arm.replace('+', '_')}": gain.mean for arm, gain in metrics.gain.items()}
    accuracies = ", ".join(f"{arm} {100 * result.mean:.1f}%" for arm, result in metrics.arms.items() if result.mean is not None)
    skipped = [str(arm) for arm, result in metrics.arms.items() if result.skipped is not None]
    return Outcome(
        output=out,
        digest=digest_of(metrics.model_dump(mode="json")),
        summary=f"{out} is up to date" if reused else f"wrote {out / REPORT_FILE}: {accuracies}" + (f"; skipped {', '.join(skipped)}" if skipped else ""),
        metrics=numbers,
        files=tuple(sorted(path for path in out.iterdir() if path.suffix in (".html", ".json", ".png"))),
        reused=reused,
    )

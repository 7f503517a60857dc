"""`gda verify`: compare every kind of output with its list of files and the digests in its card, and a snapshot pixel by pixel."""

from collections.abc import Callable
from pathlib import Path

from gda.artifacts.cards import ClassifierCard, GeneratorCard
from gda.artifacts.contents import FINGERPRINT_FILE, damaged_files, recorded_files
from gda.artifacts.decision import Decision
from gda.artifacts.document import Document, read_document
from gda.artifacts.evaluation import Metrics
from gda.artifacts.reference import REFERENCE_FILE, ReferenceIndex
from gda.artifacts.tuning import Settings
from gda.artifacts.verdict import Verdict
from gda.errors import DataError

_Check = Callable[[Path], list[str]]


def verify_output(path: Path) -> tuple[str, list[str]]:
    """The kind of output in the folder `path`, and all its problems, one line each naming the file.

    Raises `DataError` where nothing in it states what its files should be.
    """
    kind, check = next(((kind, check) for name, kind, check in _KINDS if (path / name).is_file()), ("output", _only_listed))
    problems = damaged_files(path)
    listed = _is_listed(path)
    if not problems and not listed and check is _only_listed:
        raise DataError(f"{path}: no {FINGERPRINT_FILE} lists its files and no card has a digest, so nothing states what they should be")
    if kind == "snapshot" or not problems:
        problems += [problem for problem in _outcome(check, path) if problem not in problems]
    return kind if listed or check is not _only_listed else "output", problems


def _is_listed(path: Path) -> bool:
    try:
        return recorded_files(path) is not None
    except DataError:
        return True  # damaged, which is listed among the problems


def _outcome(check: _Check, path: Path) -> list[str]:
    try:
        return check(path)
    except DataError as error:
        return [str(error)]


def _only_listed(_: Path) -> list[str]:
    return []


def _snapshot(path: Path) -> list[str]:
    from gda.data.store.verify import verify_snapshot

    return verify_snapshot(path)


def _generator(path: Path) -> list[str]:
    from gda.generator.weights.directory import weights_digest
    from gda.generator.weights.verified import with_adapters

    card = read_document(path / "generator.json", GeneratorCard)
    found = with_adapters(weights_digest(path), path, card.adapters)
    # An average of a generator with adapters leaves them out of its digest.
    if card.digest in (found, weights_digest(path) if card.averaging else found):
        return []
    return [f"{path}: its weights and configurations are {found[:12]}, but generator.json is the card of {card.digest[:12]}"]


def _classifier(path: Path) -> list[str]:
    from gda.io.tensors import read_tensors, tensors_digest

    card = read_document(path / "classifier.json", ClassifierCard)
    if card.skipped is not None:
        return []
    if card.weights is None:
        return [] if _is_listed(path) else [f"{path}: neither {FINGERPRINT_FILE} nor classifier.json states what its weights should be"]
    found = tensors_digest(read_tensors(path / "model.safetensors"))
    return [] if found == card.weights else [f"{path / 'model.safetensors'}: is not the weights that classifier.json names"]


def _reference(path: Path) -> list[str]:
    from gda.gate.reference import FEATURES_FILE, reference_problems
    from gda.io.tensors import read_tensors

    return reference_problems(path, read_document(path / REFERENCE_FILE, ReferenceIndex), read_tensors(path / FEATURES_FILE))


def _settings(path: Path) -> list[str]:
    _ = read_document(path / "settings.json", Settings).chosen_point
    return _unlisted(path, "settings.json")


def _evaluation(path: Path) -> list[str]:
    from gda.data.store.predictions import read_predictions

    metrics, predictions = read_document(path / "metrics.json", Metrics), read_predictions(path / "predictions.safetensors")
    if metrics.test_digest != predictions.test_digest:
        return [f"{path}: metrics.json and predictions.safetensors are about different test splits"]
    return _unlisted(path, "metrics.json")


def _promotion(path: Path) -> list[str]:
    """Each promotion overwrites its decision, which lists no files: check its form and the candidate that it names."""
    candidate = read_document(path / "decision.json", Decision).candidate
    if candidate is None or not Path(candidate.path).is_dir():
        return []
    problems = damaged_files(Path(candidate.path)) or _classifier(Path(candidate.path))
    found = read_document(Path(candidate.path) / "classifier.json", ClassifierCard).digest
    if found != candidate.digest:
        problems.append(f"{candidate.path}: is classifier {found[:12]}, but decision.json is about {candidate.digest[:12]}")
    return problems


def _document(name: str, kind: type[Document]) -> _Check:
    def check(path: Path) -> list[str]:
        read_document(path / name, kind)
        return _unlisted(path, name)

    return check


def _unlisted(path: Path, name: str) -> list[str]:
    return (
        []
        if _is_listed(path)
        else [f"{path / name}: no {FINGERPRINT_FILE} lists it, so that a change of it cannot be found; make it again"]
    )


_KINDS: tuple[tuple[str, str, _Check], ...] = (
    ("snapshot.json", "snapshot", _snapshot),
    ("generator.json", "generator", _generator),
    ("classifier.json", "classifier", _classifier),
    (REFERENCE_FILE, "reference", _reference),
    ("settings.json", "tuning", _settings),
    ("verdict.json", "validation", _document("verdict.json", Verdict)),
    ("metrics.json", "evaluation", _evaluation),
    ("decision.json", "promotion", _promotion),
)

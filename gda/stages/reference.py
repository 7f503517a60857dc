"""`reference`: what the real set itself scores, computed once for fine-tuning's checkpoint choice, tuning and validation."""

from pathlib import Path

from gda.artifacts.fingerprint import Fingerprint, bits_environment
from gda.artifacts.outcome import Outcome
from gda.artifacts.reference import ReferenceIndex
from gda.config.classify import TWO_ORIGINS
from gda.config.load import Config
from gda.data.store.snapshot import Snapshot
from gda.fidelity.extractors import comparison_size, configured_extractor
from gda.gate.reference import LabelReference, build_reference
from gda.io.publish import publish_once
from gda.io.up_to_date import Workspace
from gda.suitability import require_suitable_extractor
from gda.training.networks.pretrained import weights_inputs


def run(config: Config, *, snapshot: Path, out: Path, progress: bool = False) -> Outcome:
    """Write cross-fitted classifiers (`fold-<k>/`), features, statistics and class probabilities of train and val, and `reference.json`.

    Raises `DataError` when the snapshot lacks train or val images, `MissingError` without the extractor's weights.
    """
    real = Snapshot.open(snapshot)
    require_suitable_extractor(config, real)

    def build(workspace: Workspace) -> None:
        build_reference(config, real, workspace.staging, work=workspace.work / "folds", progress=progress)

    reused = publish_once(reference_fingerprint(config, real), out, build)
    return _outcome(out, LabelReference.open(out).index, reused=reused)


def reference_fingerprint(config: Config, real: Snapshot) -> Fingerprint:
    """What the reference depends on: of the classifier's section, only how one is trained."""
    extractor = configured_extractor(config)
    size = comparison_size(config, extractor)
    classify = config.classify.decided(exclude={"ratio", "num_train_steps", "mixed_num_train_steps", *TWO_ORIGINS})
    return Fingerprint(
        stage="reference",
        config={
            "kept": 3,
            "reference": config.reference.model_dump(mode="json"),
            "classify": classify,
            "seed": config.seed,
            "compared_at": size,
        },
        inputs={"snapshot": real.digest, "extractor": extractor.digest} | weights_inputs(config.classify),
        environment=bits_environment("timm", *extractor.packages),
    )


def _outcome(out: Path, index: ReferenceIndex, *, reused: bool) -> Outcome:
    summary = (
        f"{'kept' if reused else 'wrote'} {out}: classifiers confirm {index.agreement:.1%} of unseen training labels, "
        f"FID floor {index.fid_floor:.3g} at {index.fid_floor_n} images per side"
    )
    metrics = {"agreement": index.agreement, "fid_floor": index.fid_floor}
    return Outcome(output=out, digest=index.digest, summary=summary, metrics=metrics, reused=reused)

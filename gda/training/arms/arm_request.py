"""An arm on given snapshots: what it is trained on and how long, checked, and the fingerprint that this makes. Imports nothing heavy."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gda.artifacts.fingerprint import Fingerprint, bits_environment
from gda.artifacts.snapshot import SnapshotIndex
from gda.config.arm import TRAININGS, Arm
from gda.config.classify import TWO_ORIGINS
from gda.config.sections import ClassifyConfig
from gda.data.images.codecs import LANCZOS
from gda.data.store.soft_labels import soft_labels_input
from gda.errors import UsageError
from gda.io.skipped_arms import skipped_because
from gda.runtime.parallel import device_name, training_device
from gda.training.arms.arm_data import LoadedOthers, TrainingData
from gda.training.arms.requirements import read_index, refusal, require_pool_of, require_same_classes
from gda.training.arms.targets import target_labels
from gda.training.networks.pretrained import Weights, find_weights, weights_inputs


@dataclass(frozen=True, kw_only=True)
class ArmRequest:
    """An arm on given snapshots, without a seed; `skipped` says why there is nothing to train.

    `others` are the images next to the real ones or in their place, and `generated` is the index of their snapshot.
    """

    config: ClassifyConfig
    arm: Arm
    augment: Literal["standard", "strong"]
    snapshot: Path
    real: SnapshotIndex
    others: LoadedOthers | None
    generated: SnapshotIndex | None
    skipped: str | None
    weights: Weights | None

    @property
    def num_train_steps(self) -> int:
        """Training steps of this arm, without those of the head alone."""
        index = self.real if self.arm.data.real or self.generated is None else self.generated
        return self.config.train_steps_of(sum(index.counts["train"].values()), long=self.arm.long)

    @property
    def head_train_steps(self) -> int:
        """Updates of the head alone that follow."""
        return self.config.last_layer_num_train_steps if self.arm.data.last_layer else 0

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
            others=self.others,
            use_real=self.arm.data.real,
            image_size=self.config.image_size,
            test_image_size=self.config.tested_at,
            interpolation=LANCZOS if self.weights is None else self.weights.interpolation,
        )

    def fingerprint(self, seed: int) -> Fingerprint:
        """What is trained with `seed`: only what changes the outcome, so that a real arm does not depend on synthetic data."""
        unused = {"num_train_steps", "mixed_num_train_steps"} | (set() if self.arm.data.mixes else {"ratio"})
        unused |= set() if self.arm.data.real and self.arm.data.synthetic else TWO_ORIGINS
        settings = self.config.decided(exclude=unused)
        decided = {
            "arm": str(self.arm),
            "seed": seed,
            "num_train_steps": self.num_train_steps,
            "augment": self.augment,
            "skipped": self.skipped,
        }
        if self.others is not None and self.others.labels is not None:
            decided["targets"] = list(self.others.labels)
        if self.others is not None and self.others.parts > 1:
            decided["synthetic_part"] = [seed % self.others.parts, self.others.parts]
        if self.augment == "strong" and self.config.crop_area:
            decided["augment"] = "strong with crops"  # in earlier versions strong left the crop out
        if self.arm.data.last_layer:
            decided |= {
                "last_layer_num_train_steps": self.head_train_steps,
                "last_layer_learning_rate": self.config.last_layer_learning_rate,
            }
        inputs = {"snapshot": self.real.digest} | ({} if self.others is None else {self.others.origin: self.others.digest})
        if self.others is not None and self.generated is not None:
            inputs |= soft_labels_input(self.others.path, self.generated)
        inputs |= weights_inputs(self.config)
        environment = bits_environment("timm", "torchvision", device=device_name(training_device()))
        return Fingerprint(stage="classify", config=settings | decided, inputs=inputs, environment=environment)


def make_arm_request(
    config: ClassifyConfig,
    arm: Arm,
    snapshot: Path,
    synthetic: Path | None,
    verdict: Path | None,
    *,
    pool: Path | None = None,
    reference: Path | None = None,
) -> ArmRequest:
    """Check what was given against what `arm` needs, and read the small files that say what the snapshots are.

    Raises as `run` does, and as `find_weights` for pretrained weights that cannot be used.
    """
    if not config.has_training(arm):
        raise UsageError(f"arm {arm}: classify.trainings names no {arm.training!r}; accepted: {', '.join((*TRAININGS, *config.trainings))}")
    config, augment = config.trained_as(arm), config.augment_of(arm)
    data, real, weights = arm.data, read_index(snapshot, "real"), find_weights(config)
    request = ArmRequest(
        config=config, arm=arm, augment=augment, snapshot=snapshot, real=real, others=None, generated=None, skipped=None, weights=weights
    )
    if data.others == "pool":
        if pool is None:
            raise UsageError(f"arm {arm} is trained on more real images: give --pool DIR, or leave it out of classify.arms")
        if (why := skipped_because(pool)) is not None:
            return replace(request, skipped=why)
        more = read_index(pool, "real")
        require_pool_of(snapshot, real, pool, more)
        return replace(request, others=LoadedOthers(path=pool, digest=more.digest, origin="pool"), generated=more)
    if not data.synthetic:
        return request
    if synthetic is None:
        raise UsageError(f"arm {arm} is trained on synthetic images: give --synthetic DIR")
    if not data.gated and (why := skipped_because(synthetic)) is not None:
        return replace(request, skipped=why)
    generated = read_index(synthetic, "synthetic")
    require_same_classes(snapshot, real, synthetic, generated)
    skipped = refusal(arm, verdict, real, generated) if data.gated else None
    labels = target_labels(config, snapshot, real, reference) if data.targeted and skipped is None else None
    others = LoadedOthers(path=synthetic, digest=generated.digest, origin="synthetic", labels=labels, parts=config.synthetic_parts)
    return replace(request, others=others, generated=generated, skipped=skipped)

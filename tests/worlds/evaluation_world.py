"""A tiny world for evaluate and promote: colour is the class, and classifiers whose test accuracy is known beforehand.

One small network is trained until it is always right. A classifier of accuracy 0.75 or 0.5 is the same network with one or two of its
four output rows replaced by another's, so that it is wrong on exactly those classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from two_colours import SYNTHETIC_COLUMNS

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.document import dump_document
from gda.artifacts.tuning import SamplingSettings, Settings, TuningPoint
from gda.artifacts.verdict import Measure, Verdict
from gda.config.arm import Arm
from gda.config.load import Config, parse_config
from gda.data.store.classes import make_classes
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.data.store.writer import ImageRecord, write_image_shard
from gda.training.loop.classifier import TrainingSource, TrainRecipe, export_classifier, train_classifier

SIZE = 16
COLOURS = {"blue": (40, 60, 210), "green": (40, 180, 60), "grey": (130, 130, 130), "red": (200, 40, 40)}
CLASSES = tuple(COLOURS)
TEST_PER_CLASS = 25
COMPARED = tuple(
    Arm(name)
    for name in (
        "real",
        "real_long",
        "real_strong",
        "retrieved",
        "zero_shot",
        "real+zero_shot",
        "img2img",
        "synthetic",
        "real+synthetic",
        "real+synthetic_strong",
        "targeted",
        "last_layer",
    )
)
# classes that an arm's classifiers get wrong; the accuracy is 1 - wrong / 4
WRONG: Mapping[Arm, Sequence[int]] = {
    Arm.REAL: (0,),
    Arm.REAL_LONG: (0,),
    Arm.RETRIEVED: (0, 1),
    Arm.ZERO_SHOT: (0, 1),
    Arm("real+zero_shot"): (0,),
    Arm.IMG2IMG: (0,),
    Arm.SYNTHETIC: (0,),
}


def config(**promote: object) -> Config:
    """Six paired seeds, two control seeds, few resamples."""
    return parse_config(
        {
            "classify": {
                "model": "test_resnet",
                "model_args_json": "{}",
                "image_size": SIZE,
                "batch_size": 16,
                "num_train_steps": 40,
                "warmup_steps": 4,
                "seeds": [0, 1, 2, 3, 4, 5],
                "control_seeds": [0, 1],
                "arms": list(COMPARED),
            },
            "evaluate": {"num_resamples": 300},
            "promote": {"model_name": "tiny", **promote},
        },
        where="test",
    )


def write_snapshot(folder: Path, counts: Mapping[str, int], *, seed: int, synthetic: bool = False) -> Snapshot:
    """A snapshot with `counts` images per class in each split, in noisy colours."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows = []
    for split, count in counts.items():
        records = [
            ImageRecord(
                key=f"{split}-{name}-{i}",
                rgb=np.clip(np.array(colour) + rng.normal(0, 12, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8),
                label=label,
                class_name=name,
                meta=SYNTHETIC_COLUMNS if synthetic else {},
            )
            for label, (name, colour) in enumerate(COLOURS.items())
            for i in range(count)
        ]
        rows.append(write_image_shard(folder, name=f"{split}-000000.tar", split=split, records=records))
    commit_snapshot(
        folder,
        kind="synthetic" if synthetic else "real",
        classes=make_classes(CLASSES),
        rows=pd.concat(rows),
        provenance={},
        licence="apache-2.0",
        plan_digest="8" * 64 if synthetic else None,
    )
    return Snapshot.open(folder)


class ProcessGroup:
    """Snapshots, classifiers of every arm and seed, verdict and tuning under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.real = write_snapshot(root / "real", {"train": 8, "val": 4, "test": TEST_PER_CLASS}, seed=1)
        self.synthetic = write_snapshot(root / "synthetic", {"train": 6}, seed=2, synthetic=True)
        self.zero_shot = write_snapshot(root / "zero_shot", {"train": 6}, seed=3, synthetic=True)
        self.runs = root / "classifiers"
        train = load_images(self.real, "train", size=SIZE)
        recipe = TrainRecipe.from_config(config().classify, num_train_steps=60)
        source = TrainingSource(images=train.images, labels=train.labels, share=1.0)
        self._network, _ = train_classifier([source], recipe, num_classes=len(CLASSES), seed=0)
        for arm in COMPARED:
            for seed in range(6 if arm.data.compared_by_seed else 2):
                self.add_classifier(arm, seed, wrong=WRONG.get(arm, ()))
        self.write_verdict(passed=True)
        low, high = (SamplingSettings(guidance_scale=guidance, num_inference_steps=4) for guidance in (1.0, 2.0))
        points = (
            TuningPoint(settings=low, nfe=10, fid=3.0, cas=0.9, cas_by_seed=(0.9,), pareto=True),
            TuningPoint(settings=high, nfe=14, fid=5.0),
        )
        settings = Settings(
            chosen=low,
            points=points,
            extractor="glyph",
            fid_floor=1.0,
            num_images=20,
            generator_digest="9" * 64,
            snapshot_digest=self.real.digest,
        )
        (root / "tuning").mkdir()
        (root / "tuning/settings.json").write_bytes(dump_document(settings))

    @property
    def verdict(self) -> Path:
        """The verdict file."""
        return self.root / "verdict.json"

    def add_classifier(self, arm: Arm, seed: int, *, wrong: Sequence[int] = (), folder: Path | None = None, **card: object) -> Path:
        """Write the classifier of `arm` and `seed`, wrong on the classes `wrong`; `card` overrides fields of its card."""
        path = folder or self.runs / f"{arm}-{seed}"
        weights = {name: value.clone() for name, value in self._network.state_dict().items()}
        head = [name for name, value in weights.items() if value.shape[:1] == (len(CLASSES),)]
        for name in head[-2:]:  # weight and bias of the last layer
            for label in wrong:
                weights[name][label] = weights[name][(label + 2) % 4] - 1e-3
        original = {name: value.clone() for name, value in self._network.state_dict().items()}
        self._network.load_state_dict(weights)
        fields = {"val_top1": 0.9 + (seed == 3) * 0.05, "digest": f"{arm}-{seed}".encode().hex().ljust(64, "0")} | card
        full = ClassifierCard.model_validate(
            {
                "arm": arm,
                "seed": seed,
                "model": "test_resnet",
                "image_size": SIZE,
                "classes": CLASSES,
                "num_train_steps": 40,
                "snapshot_digest": self.real.digest,
                "synthetic_digest": self.synthetic.digest if arm in (Arm.SYNTHETIC, Arm.MIXED) else None,
                "base_licence": "apache-2.0",
            }
            | fields
        )
        export_classifier(self._network, path, full)
        self._network.load_state_dict(original)
        return path

    def skip(self, arm: Arm, seed: int, reason: str) -> None:
        """Replace a classifier by a card that states why there is none."""
        path = self.runs / f"{arm}-{seed}"
        card = ClassifierCard.model_validate_json((path / "classifier.json").read_bytes())
        (path / "classifier.json").write_bytes(dump_document(card.model_copy(update={"skipped": reason, "val_top1": None})))
        (path / "model.safetensors").unlink()

    def write_verdict(self, *, passed: bool) -> None:
        """A verdict on the synthetic set."""
        measure = Measure(value=2.0 if passed else 9.0, low=1.5, high=9.5, floor=1.0, limit=6.0, passed=passed, n=24, extractor="glyph")
        verdict = Verdict(
            passed=passed,
            reasons=() if passed else ("FID is 9, above 6",),
            metrics={"fid": measure},
            synthetic_digest=self.synthetic.digest,
            real_digest=self.real.digest,
        )
        self.verdict.write_bytes(dump_document(verdict))

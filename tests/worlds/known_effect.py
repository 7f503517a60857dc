"""A world in which the effect of synthetic images is known before anything is trained, because it was constructed.

Every class is a mixture of colours ("modes") that are far apart, with two exceptions. `olive` is in two classes, three times as often in
grey as in green, so that even a perfect classifier errs on green's share of it. Real training images never show red's mode `hidden`, which
lies beyond blue as seen from red: a classifier that has not seen it takes it for blue. The best accuracy that a training set allows is then
a sum of mode weights: each mode goes to the class in which the training images show it most often, and a mode that they do not show goes
to blue.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from two_colours import SYNTHETIC_COLUMNS

from gda.artifacts.document import dump_document
from gda.artifacts.verdict import Measure, Verdict
from gda.config.load import Config, parse_config
from gda.data.store.classes import make_classes
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.data.store.writer import ImageRecord, write_image_shard

SIZE = 8  # pixels
NOISE = 12.0  # of every pixel and channel, of 255
COLOURS = {
    "blue": (40, 60, 160),
    "green": (40, 170, 60),
    "lime": (150, 240, 90),
    "olive": (150, 140, 0),
    "grey": (130, 130, 130),
    "red": (210, 40, 40),
    "hidden": (0, 60, 250),
}
CLASSES = ("blue", "green", "grey", "red")
Mixture = Mapping[str, Mapping[str, float]]  # class -> mode -> its share of the class

# What the classes are: test images are sampled from this.
TRUE: Mixture = {
    "blue": {"blue": 1.0},
    "green": {"green": 0.6, "lime": 0.3, "olive": 0.1},
    "grey": {"grey": 0.7, "olive": 0.3},
    "red": {"red": 0.4, "hidden": 0.6},
}
# What real training images show of them, and what three synthetic sets do.
SHOWN: Mixture = {**TRUE, "red": {"red": 1.0}}
HELPFUL: Mixture = TRUE
IDLE: Mixture = SHOWN
HARMFUL: Mixture = {
    **TRUE,
    "green": {"green": 0.9, "olive": 0.1},
    "red": {"red": 0.2, "hidden": 0.5, "lime": 0.3},  # green's lime images under a wrong label
}
RATIO = 3.0  # synthetic to real images in a mixed batch: lime images labelled red outweigh those labelled green three to one


def mixed(real: Mixture, synthetic: Mixture, ratio: float = RATIO) -> Mixture:
    """What a batch of both shows."""
    return {
        name: {
            mode: (real[name].get(mode, 0.0) + ratio * synthetic[name].get(mode, 0.0)) / (1 + ratio)
            for mode in {**real[name], **synthetic[name]}
        }
        for name in CLASSES
    }


def best_per_class(trained_on: Mixture) -> dict[str, float]:
    """The accuracy on each class, in [0, 1], of a classifier that learns `trained_on` perfectly and is tested on `TRUE`."""
    taken_for = {mode: max(CLASSES, key=lambda name: trained_on[name].get(mode, 0.0)) for mode in COLOURS}
    if not any(trained_on[name].get("hidden") for name in CLASSES):
        taken_for["hidden"] = "blue"
    return {name: sum(share for mode, share in TRUE[name].items() if taken_for[mode] == name) for name in CLASSES}


def best(trained_on: Mixture) -> float:
    """The accuracy over all classes, which are equally frequent."""
    return sum(best_per_class(trained_on).values()) / len(CLASSES)


def config() -> Config:
    """Six paired seeds of a small network, trained long enough to learn what it is shown."""
    return parse_config(
        {
            "classify": {
                "model": "test_resnet",
                "model_args_json": '{"channels": [8, 8, 16, 16], "stem_width": 8}',
                "image_size": SIZE,
                "batch_size": 32,
                "num_train_steps": 160,
                "mixed_num_train_steps": 320,
                "warmup_steps": 10,
                "ratio": RATIO,
                "seeds": [0, 1, 2, 3, 4, 5],
                "control_seeds": [0, 1],
            },
            "evaluate": {"num_resamples": 2000},
        },
        where="test",
    )


def write_snapshot(folder: Path, splits: Mapping[str, tuple[Mixture, int]], *, seed: int, synthetic: bool = False) -> Snapshot:
    """A snapshot whose splits hold so many images per class of a mixture; modes are sampled by chance in `test`, else by quota."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows = []
    for split, (mixture, count) in splits.items():
        records = [
            ImageRecord(
                key=f"{split}-{name}-{i:04d}",
                rgb=np.clip(np.array(COLOURS[mode]) + rng.normal(0, NOISE, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8),
                label=label,
                class_name=name,
                meta=SYNTHETIC_COLUMNS if synthetic else {},
            )
            for label, name in enumerate(CLASSES)
            for i, mode in enumerate(_modes(mixture[name], count, rng if split == "test" else None))
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


def write_verdict(path: Path, real: Snapshot, synthetic: Snapshot) -> Path:
    """A verdict that passed: the comparison shows whether these images help."""
    measure = Measure(value=2.0, low=1.5, high=2.5, floor=1.0, limit=6.0, passed=True, n=24, extractor="glyph")
    verdict = Verdict(passed=True, reasons=(), metrics={"fid": measure}, synthetic_digest=synthetic.digest, real_digest=real.digest)
    path.write_bytes(dump_document(verdict))
    return path


def _modes(shares: Mapping[str, float], count: int, rng: np.random.Generator | None) -> list[str]:
    names, weights = list(shares), np.array(list(shares.values()))
    if rng is not None:
        return [names[i] for i in rng.choice(len(names), count, p=weights)]
    ends = np.rint(weights.cumsum() * count).astype(int)
    return [names[int(np.searchsorted(ends, i, side="right"))] for i in range(count)]

"""Images per second of our loader and of our training loop against timm's on the same images, model and batch.

python benchmarks/classify.py --out classify.json

Loader: uint8 images resident in memory with batched augmentation, against timm's `ImageDataset` over a folder of PNG files read by
PIL, with the same pad-and-crop per image, in one process and with a worker. Training: `train_classifier` against timm's own parts put
together as in its `train.py` - `create_loader`, `create_optimizer_v2`, `create_scheduler_v2`, cross-entropy with label smoothing - on
the same network, seed and number of steps; the inputs of both are ready before the clock starts. One thread each.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gda.runtime.torch_rng import torch_stream

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import ImageDataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.utils.data import DataLoader
from torchvision import transforms

from gda.config.load import Config
from gda.config.sections import ClassifyConfig
from gda.training.loop.classifier import TrainRecipe, predict_logits, top1, train_classifier
from gda.training.loop.mixed_batches import MixedBatches, TrainingSource
from gda.training.recipes.augment import augment

SIDE, CLASSES = 32, 10
MEAN = (0.5, 0.5, 0.5)
CONFIG = Config(classify=ClassifyConfig(image_size=SIDE, batch_size=64)).classify


def pictures(count: int, seed: int) -> TrainingSource:
    """Crops of two photographs; the class is the tenth of the brightness range that a crop falls into, so it can be learned."""
    rng, photographs = np.random.default_rng(seed), load_sample_images().images
    crops = []
    for _ in range(count):
        photograph = photographs[rng.integers(len(photographs))]
        top, left = (rng.integers(0, length - SIDE) for length in photograph.shape[:2])
        crops.append(photograph[top : top + SIDE, left : left + SIDE])
    images = np.stack(crops)
    brightness = images.mean(axis=(1, 2, 3))
    labels = np.digitize(brightness, np.quantile(brightness, np.linspace(0, 1, CLASSES + 1)[1:-1]))
    return TrainingSource(images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels=torch.from_numpy(labels))


def write_folder(source: TrainingSource, folder: Path) -> None:
    """As class folders of PNG files."""
    for i, (image, label) in enumerate(zip(source.images, source.labels.tolist(), strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / str(label) / f"{i:06d}.png")


def timm_loader(folder: Path, *, workers: int) -> DataLoader:
    """timm's data set and loader with the same pad-and-crop as ours, by torchvision on PIL images."""
    pad = max(1, round(SIDE / 14))
    dataset = ImageDataset(str(folder))
    loader = create_loader(
        dataset,
        input_size=(3, SIDE, SIDE),
        batch_size=CONFIG.batch_size,
        is_training=True,
        use_prefetcher=False,
        no_aug=True,
        mean=MEAN,
        std=MEAN,
        num_workers=workers,
        persistent_workers=False,
        pin_memory=False,
        device=torch.device("cpu"),
    )
    dataset.transform = transforms.Compose(
        [
            transforms.RandomCrop(SIDE, padding=pad, padding_mode="edge"),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, MEAN),
        ]
    )
    return loader


def load_ours(source: TrainingSource) -> int:
    """One epoch of augmented, normalised batches."""
    batches, generator = MixedBatches([source], CONFIG.batch_size, 0), torch_stream(0, "augment")
    count = 0
    while count + CONFIG.batch_size <= len(source.images):
        count += len(augment(batches.next().images, "standard", generator))
    return count


def load_timm(folder: Path, *, workers: int) -> int:
    """The same by timm."""
    return sum(len(images) for images, _ in timm_loader(folder, workers=workers))


def recipe(updates: int) -> TrainRecipe:
    return TrainRecipe.from_config(CONFIG, num_train_steps=updates)


def train_ours(source: TrainingSource, updates: int) -> torch.nn.Module:
    model, _ = train_classifier([source], recipe(updates), num_classes=CLASSES, seed=0)
    return model


def train_timm(folder: Path, updates: int, *, channels_last: bool, workers: int) -> torch.nn.Module:
    """timm's parts in the order of its training script."""
    torch.manual_seed(0)
    settings = recipe(updates)
    model = timm.create_model(settings.model, num_classes=CLASSES, **settings.model_args).train()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=memory_format)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=updates,
        warmup_epochs=settings.warmup_steps,
        warmup_lr=settings.learning_rate * 1e-2,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    loss_of = LabelSmoothingCrossEntropy(settings.label_smoothing)
    loader = timm_loader(folder, workers=workers)
    update = 0
    while update < updates:
        for images, labels in loader:
            schedule.step_update(update)
            loss = loss_of(model(images.contiguous(memory_format=memory_format)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            update += 1
            if update == updates:
                break
    return model


def stall_share(source: TrainingSource, updates: int) -> float:
    """Share of our training in which the network waits for data: batches and augmentation alone against the whole."""
    start = time.perf_counter()
    train_ours(source, updates)
    whole = time.perf_counter() - start
    batches, generator = MixedBatches([source], CONFIG.batch_size, 0), torch_stream(0, "augment")
    start = time.perf_counter()
    for _ in range(updates):
        augment(batches.next().images, "standard", generator)
    return (time.perf_counter() - start) / whole


def interleaved(ways: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of every way in every repetition; the first, which warms up, is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if repetition:
                seconds[name].append(time.perf_counter() - start)
        print(f"repetition {repetition} of {repetitions}", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=5000, help="images")
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, held_out = pictures(args.count, 0), pictures(1000, 1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(train, folder)
        loaded = {
            "ours": lambda: load_ours(train),
            "timm": lambda: load_timm(folder, workers=0),
            "timm, one worker": lambda: load_timm(folder, workers=1),
        }
        trained = {
            "ours": lambda: train_ours(train, args.updates),
            "timm": lambda: train_timm(folder, args.updates, channels_last=False, workers=0),
            "timm, channels last": lambda: train_timm(folder, args.updates, channels_last=True, workers=0),
            "timm, channels last, one worker": lambda: train_timm(folder, args.updates, channels_last=True, workers=1),
        }
        loading, training = interleaved(loaded, args.repetitions), interleaved(trained, args.repetitions)
        quality = {
            "ours": top1(predict_logits(train_ours(train, 300), held_out.images, image_size=SIDE), held_out.labels),
            "timm": top1(
                predict_logits(train_timm(folder, 300, channels_last=True, workers=0), held_out.images, image_size=SIDE), held_out.labels
            ),
        }
    images = {"loading": len(train.images) // CONFIG.batch_size * CONFIG.batch_size, "training": args.updates * CONFIG.batch_size}
    result: dict[str, Any] = {
        "machine": {
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "load": os.getloadavg(),
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
        "images_per_second": {},
        "ratios": {},
        "stall_share": stall_share(train, args.updates),
        "accuracy_after_300_updates": quality,
    }
    for kind, seconds in (("loading", loading), ("training", training)):
        for way, taken in seconds.items():
            rates = sorted(images[kind] / each for each in taken)
            result["images_per_second"][f"{kind}, {way}"] = {"median": statistics.median(rates), "lowest": rates[0]}
            pairs = [other / own for own, other in zip(seconds["ours"], taken, strict=True)]
            result["ratios"][f"{kind}, ours against {way}"] = {
                "median": statistics.median(taken) / statistics.median(seconds["ours"]),
                "worst pair": min(pairs),
            }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

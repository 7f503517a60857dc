"""Images per second of `gda sample` against loops over a diffusers pipeline, on the same model, steps and noise.

python benchmarks/sampling.py --out sampling.json
python benchmarks/sampling.py --device cuda --sd15 --out sampling-sd15.json

Peers: the pipeline called once per prompt, each image saved as PNG, and the same in batches. Ours samples whole shards as the stage does:
encoded, hashed, written with metadata, synced and committed. All use one thread, the same scheduler and one generator per image, so that
images can be compared one by one. Compilation happens before the clock starts and is reported separately.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from small_sd15 import build_sd15
from transformers.utils import logging as transformers_logging

from gda.artifacts.snapshot import ClassInfo
from gda.artifacts.tuning import SamplingSettings
from gda.data.images.codecs import PNG, decode, to_array
from gda.generator.planning.cost import estimate_cost
from gda.generator.planning.plan import ImagePlan, equal_quotas, make_plan
from gda.generator.sampling import sample_shards
from gda.generator.sampling.sample_shards import SamplingContext, ShardJob, resample_batch, sample_shard
from gda.generator.sampling.speed import Speed
from gda.generator.weights.directory import read_card
from gda.io.shards import read_shard
from gda.runtime.parallel import run_parallel

CLASSES = ("a bird", "a house", "a red boat on a lake", "a tree")
TARGETS = {
    "fp32 against one prompt at a time": 1.9,
    "fp32 against batches": 1.05,
    "bf16 against one prompt at a time": 3.5,
    "bf16 against batches": 2.0,
    "two workers against one": 1.8,
}


SPEEDS = {
    "fp32": Speed(),
    "bf16": Speed(precision="bf16"),
    "fp32 compiled": Speed(compile=True),
    "bf16 compiled": Speed(precision="bf16", compile=True),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is sampled: `num_images` in batches; widths of Stable Diffusion 1.5 are divided by `width_divisor`."""

    width_divisor: int
    image_size: int
    batch_size: int
    num_images: int
    num_inference_steps: int
    device: str
    compiled: bool
    guidance_scale: float = 3.0


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """A model on disk, the plan, and what all shards share."""

    base: Path
    plan: ImagePlan
    context: SamplingContext

    def at(self, folder: Path, speed: Speed) -> list[ShardJob]:
        """The plan's shards, to be sampled into `folder` at `speed`."""
        (folder / "out").mkdir(parents=True)
        shared = replace(self.context, folder=folder / "out", speed=speed)
        return [ShardJob(context=shared, shard=shard) for shard in self.plan.shards]


def make_world(folder: Path, setting: Setting) -> ProcessGroup:
    """Build the model and the plan; a shard holds half of the images, so that two workers have one each."""
    base = build_sd15(folder / "base", width_divisor=setting.width_divisor, image_size=setting.image_size)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    scheduler.save_pretrained(base / "scheduler")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "DDIMScheduler"]}))
    quotas = equal_quotas(CLASSES, setting.num_images // len(CLASSES))
    plan = make_plan(quotas, seed=0, shard_size=setting.num_images // 2, batch_size=setting.batch_size)
    shared = SamplingContext(
        generator=str(base),
        generator_digest=read_card(str(base)).digest,
        classes=tuple(ClassInfo(name=name, prompt_name=name) for name in CLASSES),
        prompts=CLASSES,
        settings=SamplingSettings(guidance_scale=setting.guidance_scale, num_inference_steps=setting.num_inference_steps),
        speed=Speed(),
        codec=PNG,
        sources=None,
        device=setting.device,
        folder=Path(),
    )
    return ProcessGroup(base=base, plan=plan, context=shared)


class Peer:
    """The pipeline as its users call it."""

    def __init__(self, world: ProcessGroup, setting: Setting) -> None:
        self._pipeline = StableDiffusionPipeline.from_pretrained(world.base, safety_checker=None).to(setting.device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._setting = setting
        self._images = [image for shard in world.plan.shards for image in shard.images]

    def sample(self, folder: Path, *, batch_size: int) -> None:
        """Every image of the plan as a PNG file."""
        folder.mkdir()
        for start in range(0, len(self._images), batch_size):
            batch = self._images[start : start + batch_size]
            sampled = self._pipeline(
                [CLASSES[image.label] for image in batch],
                guidance_scale=self._setting.guidance_scale,
                num_inference_steps=self._setting.num_inference_steps,
                generator=[torch.Generator().manual_seed(image.seed) for image in batch],
            ).images
            for image, picture in zip(batch, sampled, strict=True):
                picture.save(folder / f"{image.key}.png")


def ours(jobs: list[ShardJob], *, workers: int = 1) -> None:
    """All shards, sampled and committed."""
    run_parallel(sample_shard, jobs, workers=workers)


def thrown_away(jobs: list[ShardJob]) -> None:
    """All batches sampled, none kept."""
    for job in jobs:
        for batch in job.shard.batches:
            resample_batch(job.context, batch)


def clocked(work: Callable[[], Any], device: str) -> dict[str, float]:
    """Wall and processor seconds of `work`."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def pictures(jobs: list[ShardJob]) -> dict[str, np.ndarray]:
    """What the shards hold, by key."""
    return {record.key: to_array(decode(record.image, name=record.key)) for job in jobs for record in read_shard(job.path)}


def compare(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest difference in grey levels, and the lowest peak signal-to-noise ratio of an image in dB."""
    errors = {key: one[key].astype(np.float64) - two[key] for key in two}
    largest = max(float(np.abs(error).max()) for error in errors.values())
    psnr = min(10 * np.log10(255**2 / max(float(np.square(error).mean()), 1e-12)) for error in errors.values())
    return {"largest_difference": largest, "lowest_psnr": min(psnr, 99.0)}


def measure(setting: Setting, repetitions: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Interleaved runs of every way to sample, after one of each that is not counted; see the module."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        world, runs = make_world(folder, setting), {}
        peer = Peer(world, setting)
        speeds = {kind: speed for kind, speed in SPEEDS.items() if setting.compiled or not speed.compile}
        kept, compiling = _samplers(world, speeds, folder, setting, say)
        first: dict[str, dict[str, np.ndarray]] = {}
        for repetition in range(repetitions):
            place = folder / f"run{repetition}"
            place.mkdir()
            for kind, size in (("one prompt at a time", 1), ("batches", setting.batch_size)):
                runs.setdefault(kind, []).append(clocked(lambda f=place / kind, n=size: peer.sample(f, batch_size=n), setting.device))
            for kind, speed in speeds.items():
                sample_shards._sampler_of = lambda _context, k=kind: kept[k]  # loaded and compiled before the clock starts
                jobs = world.at(place / f"ours {kind}", speed)
                runs.setdefault(kind, []).append(clocked(lambda j=jobs: ours(j), setting.device))
                first.setdefault(kind, pictures(jobs))
            sample_shards._sampler_of = lambda _context: kept["fp32"]
            runs.setdefault("thrown away", []).append(clocked(lambda j=jobs: thrown_away(j), setting.device))
            if setting.device == "cpu":
                pair = world.at(place / "two workers", Speed())
                runs.setdefault("two workers", []).append(clocked(lambda j=pair: ours(j, workers=2), setting.device))
            again = world.at(place / "again", Speed())
            ours(again)
            runs.setdefault("nothing to do", []).append(clocked(lambda j=again: ours(j), setting.device))
            if repetition == 0:
                saved = {path.stem: np.asarray(Image.open(path)) for path in (place / "one prompt at a time").glob("*.png")}
            say(f"repetition {repetition + 1} of {repetitions}")
        close = {kind: compare(saved, images) for kind, images in first.items()}
    return _summary(setting, runs, close, compiling, estimate_flops(world, setting))


def estimate_flops(world: ProcessGroup, setting: Setting) -> float | None:
    """FLOPs per image; the model's folder is removed by then, so it is built again."""
    with TemporaryDirectory() as name:
        base = build_sd15(Path(name) / "base", width_divisor=setting.width_divisor, image_size=setting.image_size)
        return float(estimate_cost(str(base), world.context.settings, world.plan).flops_per_image)


def _samplers(
    world: ProcessGroup, speeds: dict[str, Speed], folder: Path, setting: Setting, say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, float]]:
    """A loaded sampler of each speed, after one batch; how long that took, compilation included."""
    kept, seconds = {}, {}
    original = sample_shards._sampler_of
    for kind, speed in speeds.items():
        shared = replace(world.context, speed=speed, folder=folder)
        sample_shards._sampler.cache_clear()
        kept[kind] = original(shared)
        sample_shards._sampler_of = lambda _context, k=kind: kept[k]
        seconds[kind] = clocked(lambda s=shared: resample_batch(s, world.plan.shards[0].batches[0]), setting.device)["wall"]
        sample_shards._sampler_of = original
        say(f"{kind}: first batch {seconds[kind]:.1f} s")
    return kept, seconds


def _summary(
    setting: Setting, runs: dict[str, list[dict[str, float]]], close: dict[str, Any], compiling: dict[str, float], flops: float | None
) -> dict[str, Any]:
    rates = {kind: _spread([setting.num_images / run["wall"] for run in each]) for kind, each in runs.items()}
    walls = {kind: [run["wall"] for run in each] for kind, each in runs.items()}
    cpus = {kind: [run["cpu"] for run in each] for kind, each in runs.items()}
    ratios = {}
    for kind in [kind for kind in SPEEDS if kind in walls]:
        for peer in ("one prompt at a time", "batches"):
            ratios[f"{kind} against {peer}"] = {"wall": _ratio(walls[peer], walls[kind]), "cpu": _ratio(cpus[peer], cpus[kind])}
    ratios["kept against thrown away"] = {"wall": _ratio(walls["fp32"], walls["thrown away"])}
    if "two workers" in walls:
        ratios["two workers against one"] = {"wall": _ratio(walls["fp32"], walls["two workers"])}
    return {
        "setting": asdict(setting),
        "machine": _machine(setting.device),
        "images_per_second": rates,
        "ratios": ratios,
        "targets": TARGETS,
        "closeness": close,
        "seconds_of_first_batch": compiling,
        "seconds_of_nothing_to_do": _spread(walls["nothing to do"]),
        "gflop_per_image": None if flops is None else flops / 1e9,
        "repetitions": len(runs["fp32"]),
        "runs": runs,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def _ratio(peer: list[float], ours: list[float]) -> float:
    return statistics.median(peer) / max(statistics.median(ours), 1e-9)


def memory(setting: Setting, say: Callable[[str], None]) -> dict[int, float]:
    """Peak MiB of a process that samples few and four times as many images in as many shards of the same size."""
    peaks = {}
    for times in (1, 4):
        number = setting.num_images * times
        child = os.fork()
        if child == 0:
            _sample_many(replace(setting, num_images=number, num_inference_steps=1))
            os._exit(0)
        _, status, usage = os.wait4(child, 0)
        assert status == 0
        peaks[number] = usage.ru_maxrss / 1024
        say(f"{number} images: peak {peaks[number]:.0f} MiB")
    return peaks


def _sample_many(setting: Setting) -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        world = make_world(Path(name), setting)
        size = 2 * setting.batch_size
        plan = make_plan(equal_quotas(CLASSES, setting.num_images // len(CLASSES)), seed=0, shard_size=size, batch_size=setting.batch_size)
        ours(replace(world, plan=plan).at(Path(name) / "many", Speed()))


def _machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name(0) if device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }


def table(report: dict[str, Any]) -> str:
    """The report as lines for the terminal."""
    lines = [f"{kind:<24}{rate['median']:8.2f} images/s ({rate['lowest']:.2f})" for kind, rate in report["images_per_second"].items()]
    lines += [f"{name:<42}" + ", ".join(f"{kind} {value:.2f}" for kind, value in of.items()) for name, of in report["ratios"].items()]
    lines += [
        f"{kind:<24}differs by {of['largest_difference']:.0f}, PSNR {of['lowest_psnr']:.1f} dB" for kind, of in report["closeness"].items()
    ]
    lines += [f"first batch {kind}: {seconds:.1f} s" for kind, seconds in report["seconds_of_first_batch"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sd15", action="store_true", help="the full width at 512 px, for a GPU")
    parser.add_argument("--width-divisor", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--num-images", type=int, default=16)
    parser.add_argument("--num-inference-steps", type=int, default=10)
    parser.add_argument("--no-compile", action="store_true", help="leave out compiled sampling, because compilation takes minutes")
    given = parser.parse_args()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    setting = Setting(
        width_divisor=1 if given.sd15 else given.width_divisor,
        image_size=512 if given.sd15 else given.image_size,
        batch_size=8,
        num_images=given.num_images,
        num_inference_steps=30 if given.sd15 else given.num_inference_steps,
        device=given.device,
        compiled=not given.no_compile,
    )
    peaks = memory(setting, print) if given.device == "cpu" else None  # before this process runs anything: it forks
    report = measure(setting, given.repetitions, print) | {"peak_mib": peaks}
    given.out.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()

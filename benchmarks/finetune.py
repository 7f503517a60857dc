"""Images per second of gda's fine-tuning loop against the loop of diffusers' `train_text_to_image.py` example, on the same small model.

python benchmarks/finetune.py --out finetune.json
python benchmarks/finetune.py --device cuda --sd15 --out finetune-sd15.json     (not run yet, for lack of a GPU)

The model is Stable Diffusion 1.5 with every width divided by `--width-divisor` and random weights. The peer encodes images and prompts
at every step, as the example does; gda encodes each image and each prompt once, which its clock counts. Both see the same images in the
same order, with the same noise, times and dropped prompts, so that their losses can be compared step by step. In the peer's favour:
its random numbers, tokens and normalised images are ready before its clock starts, its EMA runs in foreach mode, nothing is logged.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import logging as diffusers_logging
from small_sd15 import build_sd15
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging as transformers_logging

from gda.config.sections import FinetuneConfig
from gda.generator.families.diffusers_pipeline import load_pipeline
from gda.generator.finetuning.order import Order
from gda.generator.finetuning.prepared import Prepared, PreparedSource, Texts, unit
from gda.generator.finetuning.train import StageJob, _Loop, step_streams
from gda.runtime.process_group import ProcessGroup

STAGE = "unet"
TARGET_RATIO, TARGET_LOSS, TARGET_BOUND = 1.6, 1e-4, 0.85
_CLASSES = ("a bird", "a house", "a red boat on a lake", "a tree")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained and for how long; `num_images` are seen again and again, `steps * batch_size / num_images` times each."""

    width_divisor: int
    layers_per_block: int
    image_size: int
    batch_size: int
    num_images: int
    steps: int
    device: str
    mixed_precision: str
    learning_rate: float = 1e-5
    ema_decay: float = 0.9999
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    prompt_dropout: float = 0.1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One loop, once: seconds from loaded weights to the last loss, those before the first step, and the loss of every step.

    `cpu_seconds` leaves out what other processes took from this one, though not what they did to its caches.
    """

    seconds: float
    cpu_seconds: float
    preparing: float
    losses: list[float]
    peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of both loops, counted by `FlopCounterMode`: of a step, and of the work before the first step."""

    peer_step: int
    our_step: int
    our_preparation: int

    def bound(self, steps: int) -> float:
        """How much faster the same FLOP rate would make our loop over `steps` steps."""
        return self.peer_step * steps / self.our_total(steps)

    def our_total(self, steps: int) -> int:
        return self.our_step * steps + self.our_preparation


class _ClockedLoop(_Loop):
    """gda's loop; its clock starts when weights are loaded, before the first image is encoded."""

    started = started_cpu = encoded = 0.0

    def _prepare(self) -> tuple[Prepared, Texts | None]:
        self.started, self.started_cpu = time.perf_counter(), time.process_time()
        found = super()._prepare()
        self.encoded = time.perf_counter()
        return found


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The input of one step of the peer, on the device: pixels in [-1, 1], token ids and the random numbers that gda samples there."""

    pixels: torch.Tensor
    ids: torch.Tensor
    latent_noise: torch.Tensor
    times: torch.Tensor
    noise: torch.Tensor


class Peer:
    """The loop of diffusers' example as its documentation describes it: everything is encoded at every step."""

    def __init__(self, base: Path, setting: Setting) -> None:
        _, _, pipeline = load_pipeline(str(base))
        pipeline.to(setting.device)
        self.setting, self.tokenizer = setting, pipeline.tokenizer
        # With mixed precision the example keeps frozen parts in the low precision altogether.
        self.dtype = torch.bfloat16 if setting.mixed_precision == "bf16" else torch.float32
        self.vae, self.text_encoder = pipeline.vae, pipeline.text_encoder
        if self.dtype != torch.float32:
            self.vae.to(self.dtype), self.text_encoder.to(self.dtype)
        self.schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.unet = pipeline.unet.requires_grad_(True).train()

    def start(self) -> None:
        """Make optimizer, schedule of the learning rate and averages."""
        setting, parameters = self.setting, self.unet.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=setting.learning_rate, weight_decay=setting.weight_decay)
        self.rates = get_scheduler("constant", self.optimizer)
        self.ema = EMAModel(self.unet.parameters(), decay=setting.ema_decay, foreach=True)

    def step(self, batch: Batch) -> float:
        """One optimizer step; its loss."""
        with torch.no_grad():
            moments = self.vae.encode(batch.pixels.to(self.dtype)).latent_dist
            latents = (moments.mean + moments.std * batch.latent_noise.to(self.dtype)) * self.vae.config.scaling_factor
            states = self.text_encoder(batch.ids)[0]
        noisy = self.schedule.add_noise(latents, batch.noise.to(self.dtype), batch.times)
        with torch.autocast(batch.pixels.device.type, torch.bfloat16, self.dtype == torch.bfloat16):
            predicted = self.unet(noisy, batch.times, states, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), self._target(latents, batch).float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), self.setting.max_grad_norm)
        self.optimizer.step()
        self.rates.step()
        self.optimizer.zero_grad()
        self.ema.step(self.unet.parameters())
        return loss.item()

    def _target(self, latents: torch.Tensor, batch: Batch) -> torch.Tensor:
        if self.schedule.config.prediction_type == "v_prediction":
            return self.schedule.get_velocity(latents, batch.noise.to(self.dtype), batch.times)
        return batch.noise


def make_job(base: Path, work: Path, setting: Setting) -> StageJob:
    """The job of our loop: jitter and disk cache off, and no checkpoint within the steps that are timed."""
    generator = torch.Generator().manual_seed(setting.seed)
    side = setting.image_size
    images = torch.randint(0, 256, (setting.num_images, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.arange(setting.num_images) % len(_CLASSES)
    config = FinetuneConfig(
        num_train_steps=setting.steps + 1,
        batch_size=setting.batch_size,
        checkpointing_steps=setting.steps + 1,
        learning_rate=setting.learning_rate,
        lr_scheduler="constant",
        warmup_steps=0,
        weight_decay=setting.weight_decay,
        max_grad_norm=setting.max_grad_norm,
        ema_decay=setting.ema_decay,
        prompt_dropout=setting.prompt_dropout,
        mixed_precision="bf16" if setting.mixed_precision == "bf16" else "no",
        jitter=0.0,
    )
    return StageJob(
        stage=STAGE,
        base=str(base),
        source=PreparedSource(images=images, digest="benchmark", cache=None),
        labels=labels,
        prompts=tuple(_CLASSES[label] for label in labels.tolist()),
        keys=tuple(f"image-{i}" for i in range(setting.num_images)),
        config=config,
        num_train_steps=setting.steps + 1,
        seed=setting.seed,
        work=work,
    )


def make_batches(peer: Peer, job: StageJob, setting: Setting) -> list[Batch]:
    """The images and random numbers of our loop's steps, in its order of sampling, ready on the device."""
    order = Order(job.labels, seed=job.seed)
    shape = (4, setting.image_size // 8, setting.image_size // 8)
    batches = []
    for step in range(setting.steps):
        chosen = order.indices(step * setting.batch_size, setting.batch_size)
        streams = step_streams(job.seed, job.stage, step, slice(0, setting.batch_size), setting.device)
        dropped = (streams.uniform() < setting.prompt_dropout).tolist()
        prompts = ["" if drop else job.prompts[i] for i, drop in zip(chosen.tolist(), dropped)]
        batches.append(
            Batch(
                pixels=unit(job.source.images[chosen]).to(setting.device),
                ids=peer.tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids.to(setting.device),
                latent_noise=streams.normal(*shape),
                times=streams.integers(int(peer.schedule.config.num_train_timesteps)),
                noise=streams.normal(*shape),
            )
        )
    return batches


def time_ours(job: StageJob, setting: Setting) -> Timing:
    """Encoding of all images and prompts, and the steps, as `finetune_stage` does them."""
    _reset_peak(setting)
    loop = _ClockedLoop(job, _world(setting))
    for _ in range(setting.steps):
        loop.advance()
    _wait(setting)
    return Timing(
        seconds=time.perf_counter() - loop.started,
        cpu_seconds=time.process_time() - loop.started_cpu,
        preparing=loop.encoded - loop.started,
        losses=loop.run.losses,
        peak_bytes=_peak(setting),
    )


def time_peer(base: Path, job: StageJob, setting: Setting) -> Timing:
    """The same steps of the peer."""
    _reset_peak(setting)
    peer = Peer(base, setting)
    batches = make_batches(peer, job, setting)
    _wait(setting)
    started, started_cpu = time.perf_counter(), time.process_time()
    peer.start()
    losses = [peer.step(batch) for batch in batches]
    _wait(setting)
    return Timing(
        seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time() - started_cpu,
        preparing=0.0,
        losses=losses,
        peak_bytes=_peak(setting),
    )


def count_flops(base: Path, job: StageJob, setting: Setting) -> Flops:
    """One step of each loop, and our preparation, under the counter."""
    with FlopCounterMode(display=False) as preparation:
        loop = _ClockedLoop(job, _world(setting))
    with FlopCounterMode(display=False) as ours:
        loop.advance()
    del loop
    peer = Peer(base, setting)
    peer.start()
    batch = make_batches(peer, job, replace(setting, steps=1))[0]
    with FlopCounterMode(display=False) as peer_flops:
        peer.step(batch)
    return Flops(peer_step=peer_flops.get_total_flops(), our_step=ours.get_total_flops(), our_preparation=preparation.get_total_flops())


def matmul_rate(setting: Setting) -> float:
    """FLOP/s of the best of some large square products in the precision of the passes."""
    side = 8192 if setting.device == "cuda" else 2048
    dtype = torch.bfloat16 if setting.mixed_precision == "bf16" else torch.float32
    a = torch.randn(side, side, device=setting.device, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        _wait(setting)
        started = time.perf_counter()
        torch.mm(a, a)
        _wait(setting)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def measure(setting: Setting, repetitions: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that is reported, as plain JSON."""
    machine = _machine(setting)
    with TemporaryDirectory() as folder:
        base = build_sd15(
            Path(folder) / "base",
            width_divisor=setting.width_divisor,
            image_size=setting.image_size,
            layers_per_block=setting.layers_per_block,
            seed=setting.seed,
        )
        job = make_job(base, Path(folder) / "work", setting)
        flops = count_flops(base, job, setting)
        say(f"FLOP bound {flops.bound(setting.steps):.3f}")
        short = replace(setting, steps=2)
        time_ours(job, short), time_peer(base, job, short)  # caches and allocators are warm for both
        rates, ours, peers = [matmul_rate(setting)], [], []
        for index in range(repetitions):
            ours.append(time_ours(job, setting))
            peers.append(time_peer(base, job, setting))
            rates.append(matmul_rate(setting))
            say(f"repetition {index + 1}: ours {ours[-1].seconds:.2f} s, peer {peers[-1].seconds:.2f} s")
    report = {
        "setting": asdict(setting),
        "machine": machine | {"load_after": _load()},
        "flops": asdict(flops),
        "matmul_flop_per_second": rates,
        "ours": [asdict(run) for run in ours],
        "peer": [asdict(run) for run in peers],
    }
    return report | {"summary": summarise(setting, flops, rates, ours, peers)}


def summarise(setting: Setting, flops: Flops, rates: list[float], ours: list[Timing], peers: list[Timing]) -> dict[str, Any]:
    """Ratios of medians; `lowest_ratio` is that of the worst pair of neighbouring runs."""
    images, steps, peak = setting.steps * setting.batch_size, setting.steps, max(rates)
    our_seconds, peer_seconds = statistics.median(run.seconds for run in ours), statistics.median(run.seconds for run in peers)
    return {
        "our_images_per_second": images / our_seconds,
        "our_images_per_second_lowest": images / max(run.seconds for run in ours),
        "peer_images_per_second": images / peer_seconds,
        "peer_images_per_second_lowest": images / max(run.seconds for run in peers),
        "ratio": peer_seconds / our_seconds,
        "cpu_time_ratio": statistics.median(run.cpu_seconds for run in peers) / statistics.median(run.cpu_seconds for run in ours),
        "lowest_ratio": min(b.seconds / a.seconds for a, b in zip(ours, peers)),
        "flop_bound": flops.bound(steps),
        "ratio_over_bound": peer_seconds / our_seconds / flops.bound(steps),
        "largest_loss_difference": _largest_difference(ours, peers),
        "our_preparation_share": statistics.median(run.preparing / run.seconds for run in ours),
        "our_share_of_matmul_rate": flops.our_total(steps) / our_seconds / peak,
        "peer_share_of_matmul_rate": flops.peer_step * steps / peer_seconds / peak,
        "our_peak_gib": _gib(ours),
        "peer_peak_gib": _gib(peers),
    }


def _largest_difference(ours: list[Timing], peers: list[Timing]) -> float:
    """Over all steps of all repetitions; nan where a loss is."""
    return float((torch.tensor([run.losses for run in ours]) - torch.tensor([run.losses for run in peers])).abs().max())


def table(report: dict[str, Any]) -> str:
    """The summary as Markdown."""
    found, setting, flops = report["summary"], report["setting"], report["flops"]
    epochs = setting["steps"] * setting["batch_size"] / setting["num_images"]
    counted = {name: f"{count / 1e9:.1f}" for name, count in flops.items()}
    claimed = TARGET_LOSS if setting["mixed_precision"] == "no" else "no claim"
    load = report["machine"]["load_before"][0], report["machine"]["load_after"][0]
    lines = [
        f"SD 1.5 with widths / {setting['width_divisor']}, {setting['layers_per_block']} layers per block, {setting['image_size']} px, "
        f"batch {setting['batch_size']}, {setting['steps']} steps, {epochs:g} epochs, precision {setting['mixed_precision']}; "
        f"{setting['device']}, load {load[0]} before, {load[1]} after. GFLOP: peer's step {counted['peer_step']}, "
        f"our step {counted['our_step']}, our preparation {counted['our_preparation']}.",
        "",
        "| What | Target | Ours | Peer |",
        "|---|---|---|---|",
        f"| images/s, median | | {found['our_images_per_second']:.2f} | {found['peer_images_per_second']:.2f} |",
        f"| images/s, lowest | | {found['our_images_per_second_lowest']:.2f} | {found['peer_images_per_second_lowest']:.2f} |",
        f"| ratio of medians (worst pair) | {TARGET_RATIO} | {found['ratio']:.3f} ({found['lowest_ratio']:.3f}) | 1 |",
        f"| bound of that ratio by FLOPs | | {found['flop_bound']:.3f} | |",
        f"| ratio / bound | {TARGET_BOUND} | {found['ratio_over_bound']:.3f} | |",
        f"| largest difference of losses | {claimed} | {found['largest_loss_difference']:.1e} | |",
        f"| share of the matmul rate, {max(report['matmul_flop_per_second']) / 1e9:.1f} GFLOP/s | "
        f"| {found['our_share_of_matmul_rate']:.1%} | {found['peer_share_of_matmul_rate']:.1%} |",
        f"| seconds before the first step | | {found['our_preparation_share']:.1%} | |",
    ]
    if setting["device"] == "cpu":
        lines.append(f"| ratio of medians of CPU time | | {found['cpu_time_ratio']:.3f} | 1 |")
    if found["our_peak_gib"] is not None:
        lines.append(f"| peak device memory, GiB | | {found['our_peak_gib']:.2f} | {found['peer_peak_gib']:.2f} |")
    return "\n".join(lines)


def _world(setting: Setting) -> ProcessGroup:
    return ProcessGroup(rank=0, size=1, device=torch.device(setting.device))


def _wait(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.synchronize()


def _reset_peak(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(setting: Setting) -> int | None:
    return torch.cuda.max_memory_allocated() if setting.device == "cuda" else None


def _gib(runs: list[Timing]) -> float | None:
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    return max(peaks) / 2**30 if peaks else None


def _machine(setting: Setting) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if setting.device == "cuda" else platform.machine()
    return {
        "device": device,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_before": _load(),
    }


def _load() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]


def _setting(given: argparse.Namespace) -> Setting:
    default: dict[str, Any] = {
        "width_divisor": 8,
        "image_size": 192,
        "batch_size": 4,
        "num_images": 8,
        "steps": 40,
        "mixed_precision": "no",
    }
    if given.sd15:
        default |= {"width_divisor": 1, "image_size": 512, "batch_size": 8, "num_images": 32, "mixed_precision": "bf16"}
    chosen = {name: value if getattr(given, name) is None else getattr(given, name) for name, value in default.items()}
    return Setting(device=given.device, layers_per_block=given.layers_per_block, **chosen)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sd15", action="store_true", help="the widths of Stable Diffusion 1.5 itself, 512 px, bf16; needs a GPU of 40 GB")
    parser.add_argument("--width-divisor", type=int, choices=(1, 2, 4, 8), help="default 8")
    parser.add_argument("--layers-per-block", type=int, choices=(1, 2), default=2, help="of the UNet; distilled ones have 1")
    parser.add_argument("--image-size", type=int, help="a multiple of 64, default 192")
    parser.add_argument("--batch-size", type=int, help="default 4")
    parser.add_argument("--num-images", type=int, help="default 8")
    parser.add_argument("--steps", type=int, help="default 40")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    given = _arguments(argv)
    torch.set_num_threads(given.threads)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    report = measure(_setting(given), given.repetitions, lambda line: print(line, file=sys.stderr, flush=True))
    given.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(table(report))


if __name__ == "__main__":
    main()

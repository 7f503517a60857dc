"""Images per second into and out of tar shards, against webdataset's ShardWriter and WebDataset; and what the image codecs cost.

python benchmarks/containers.py --out containers.json

Both write the same PNGs, encoded beforehand, with the same labels and metadata, into shards of the same size: webdataset as its
documentation does, gda with a checksum of the shard, one fsync per shard and a create-only rename, none of which webdataset has. A second
figure of ours adds the rest of what `gda sample` writes: a checksum per image and its manifest rows. Both then read the same shards, ours,
to the same arrays, labels and metadata; gda checks headers, padding, order and end of each shard on the way. The files are in the
page cache. Peak memory is the growth of a forked process; decoded images are discarded at once.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import PIL
import webdataset
from PIL import Image
from sklearn.datasets import load_sample_images

from gda.data.images.codecs import PNG, Codec, Rgb, decode, encode, encode_png, pixel_digest, to_array
from gda.data.store.writer import EncodedRecord, shard_name, write_encoded_shard
from gda.io.shards import ShardRecord, iterate_shard, write_shard

WRITE_TARGET, READ_TARGET = 4.0, 1.6
Decoded = tuple[str, Rgb, int, dict[str, Any]]  # key, pixels, label, metadata


@dataclass(frozen=True, kw_only=True)
class Setting:
    """`count` square images of `side` pixels in shards of `shard_size`."""

    count: int
    side: int
    shard_size: int


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One pass: seconds by the clock and of this process."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Material:
    """The input of both, ready in memory."""

    setting: Setting
    images: list[EncodedRecord]

    def shards(self) -> Iterator[tuple[str, list[EncodedRecord]]]:
        """Shard names with their images."""
        for number, start in enumerate(range(0, len(self.images), self.setting.shard_size)):
            yield shard_name("train", number), self.images[start : start + self.setting.shard_size]


def make_material(setting: Setting) -> Material:
    """Coloured blobs under a little noise, so a PNG takes about two thirds of its pixels' bytes, and metadata like a sampled image's."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(setting.count):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((setting.side,) * 2, Image.Resampling.BICUBIC)
        rgb = np.clip(np.asarray(coarse).astype(int) + rng.integers(-4, 5, (setting.side, setting.side, 3)), 0, 255).astype(np.uint8)
        images.append(
            EncodedRecord(
                key=f"s{number % 10:04d}-{number // 10:07d}",
                image=encode_png(rgb),
                label=number % 10,
                class_name=str(number % 10),
                pixel_sha256=pixel_digest(rgb),
                width=setting.side,
                height=setting.side,
                meta=_meta(int(rng.integers(1 << 62))),
            )
        )
    return Material(setting, images)


def _meta(seed: int) -> dict[str, Any]:
    metadata = {
        "prompt": "a photo of a boat",
        "negative_prompt": "",
        "scheduler": "ddim",
        "source_image": "",
        "generator_digest": "ab" * 32,
    }
    return metadata | {"seed": seed, "guidance_scale": 1.5, "num_inference_steps": 16}


def write_ours(material: Material, folder: Path) -> None:
    """The tars alone, which is what webdataset writes."""
    for name, images in material.shards():
        write_shard(
            folder / name, (ShardRecord(key=r.key, extension="png", image=r.image, label=r.label, meta=dict(r.meta)) for r in images)
        )


def write_ours_with_rows(material: Material, folder: Path) -> None:
    """The tars with a checksum per image and the rows of the manifest."""
    for name, images in material.shards():
        write_encoded_shard(folder, name=name, split="train", records=images)


def write_peer(material: Material, folder: Path) -> None:
    """webdataset's writer."""
    with webdataset.ShardWriter(str(folder / "train-%06d.tar"), maxcount=material.setting.shard_size, verbose=0) as writer:
        for r in material.images:
            writer.write({"__key__": r.key, "png": r.image, "cls": r.label, "json": r.meta})


def read_ours(paths: list[Path]) -> Iterator[Decoded]:
    """As every reader in gda does."""
    for path in paths:
        for _, record in iterate_shard(path):
            yield record.key, to_array(decode(record.image, name=record.key)), record.label, record.meta


def read_peer(paths: list[Path]) -> Iterable[Decoded]:
    """webdataset's reader, decoding to arrays."""
    return webdataset.WebDataset([str(path) for path in paths], shardshuffle=False).decode("rgb8").to_tuple("__key__", "png", "cls", "json")


def timed(work: Callable[[], object]) -> Timing:
    """Run it once."""
    started, started_cpu = time.perf_counter(), time.process_time()
    work()
    return Timing(seconds=time.perf_counter() - started, cpu_seconds=time.process_time() - started_cpu)


def timed_write(write: Callable[[Material, Path], None], material: Material, folder: Path) -> Timing:
    """Write into an empty folder; before the clock starts, earlier files are removed and the disk is synced."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()
    return timed(lambda: write(material, folder))


def _tars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def content_digest(records: Iterable[Decoded]) -> str:
    """sha256 over keys, pixels, labels and metadata in order."""
    hasher = hashlib.sha256()
    for key, rgb, label, meta in records:
        hasher.update(f"{key} {pixel_digest(rgb)} {label} {json.dumps(meta, sort_keys=True)}\n".encode())
    return hasher.hexdigest()


def growth(work: Callable[[], object]) -> int:
    """The most bytes by which a forked process grew while it did this."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
        before = _status("VmRSS")
        work()
        sender.send(_status("VmHWM") - before)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return receiver.recv() if receiver.poll() else -1


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(setting: Setting, repetitions: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that is reported, as plain JSON."""
    material = make_material(setting)
    writers = {"ours": write_ours, "ours_with_rows": write_ours_with_rows, "peer": write_peer}
    readers = {"ours": read_ours, "peer": read_peer}
    with TemporaryDirectory() as root:
        folders = {name: Path(root) / name for name in writers}
        memory = _memory(material, writers, readers, folders)
        for name, write in writers.items():  # warm
            timed_write(write, material, folders[name])
        shards = _tars(folders["ours"])
        digests = {f"{name} by webdataset": content_digest(read_peer(_tars(folder))) for name, folder in folders.items()}
        digests |= {f"{name} by gda": content_digest(read_ours(_tars(folders[name]))) for name in ("ours", "ours_with_rows")}
        writes: dict[str, list[Timing]] = {name: [] for name in writers}
        reads: dict[str, list[Timing]] = {name: [] for name in readers}
        for index in range(repetitions):
            for name, write in writers.items():
                writes[name].append(timed_write(write, material, folders[name]))
            for name, read in readers.items():
                reads[name].append(timed(partial(_read_all, read, shards)))
            say(f"repetition {index + 1}: writes {_last(writes)}, reads {_last(reads)}")
    return {
        "setting": asdict(setting),
        "machine": _machine(),
        "bytes_an_image": statistics.mean(len(record.image) for record in material.images),
        "content_digests": digests,
        "growth_bytes": memory,
        "writes": {name: [asdict(run) for run in runs] for name, runs in writes.items()},
        "reads": {name: [asdict(run) for run in runs] for name, runs in reads.items()},
        "write": summarise(setting, writes),
        "read": summarise(setting, reads),
        "codecs": measure_codecs(),
    }


def _memory(material: Material, writers: dict[str, Any], readers: dict[str, Any], folders: dict[str, Path]) -> dict[str, list[int]]:
    """For a tenth of the images and for all: a writer or reader whose memory grows with the set shows here."""
    found: dict[str, list[int]] = {}
    for images in (material.images[: len(material.images) // 10], material.images):
        part = Material(material.setting, images)
        for name, write in writers.items():
            found.setdefault(f"write {name}", []).append(growth(partial(timed_write, write, part, folders[name])))
        for name, read in readers.items():
            found.setdefault(f"read {name}", []).append(growth(partial(_read_all, read, _tars(folders["ours"]))))
    return found


def _read_all(read: Callable[[list[Path]], Iterable[Decoded]], paths: list[Path]) -> None:
    """Read everything and discard it."""
    for _ in read(paths):
        pass


def summarise(setting: Setting, runs: dict[str, list[Timing]]) -> dict[str, Any]:
    """Images per second, and ratios to the peer of the medians, of the worst pair of neighbouring runs and of processor time."""
    peer, found = runs["peer"], {}
    for name, own in runs.items():
        median = statistics.median(run.seconds for run in own)
        found[name] = {
            "images_per_second": setting.count / median,
            "images_per_second_lowest": setting.count / max(run.seconds for run in own),
            "images_per_second_highest": setting.count / min(run.seconds for run in own),
            "ratio": statistics.median(run.seconds for run in peer) / median,
            "lowest_ratio": min(reference.seconds / ours.seconds for reference, ours in zip(peer, own)),
            "cpu_time_ratio": statistics.median(run.cpu_seconds for run in peer) / statistics.median(run.cpu_seconds for run in own),
        }
    return found


def measure_codecs() -> dict[str, dict[str, list[float]]]:
    """Microseconds to encode and to decode and bytes, by codec and side: crops of the two photographs of scikit-learn, best of nine."""
    codecs = {"png": PNG, "webp": Codec("webp"), "jpeg 95": Codec("jpeg", 95)}
    encoders: dict[str, Callable[[Rgb], bytes]] = {
        "Pillow's png": _pillow_png,
        **{name: lambda rgb, codec=codec: encode(rgb, codec) for name, codec in codecs.items()},
    }
    found: dict[str, dict[str, list[float]]] = {name: {} for name in encoders}
    for side, count in ((32, 200), (64, 100), (256, 16), (512, 6)):
        crops = _crops(side, count)
        for name, encoder in encoders.items():
            encoded = [encoder(rgb) for rgb in crops]
            into, out = _best(encoder, crops) / count, _best(_decode, encoded) / count
            found[name][str(side)] = [into * 1e6, out * 1e6, statistics.mean(map(len, encoded))]
    return found


def _best(work: Callable[[Any], object], items: list[Any]) -> float:
    return min(timed(lambda: [work(item) for item in items]).cpu_seconds for _ in range(9))


def _decode(data: bytes) -> Rgb:
    return to_array(decode(data, name="benchmark"))


def _pillow_png(rgb: Rgb) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return buffer.getvalue()


def _crops(side: int, count: int) -> list[Rgb]:
    """Squares of up to twice the side at random places, halved, so that they are as sharp as photographs of that size."""
    photographs, rng = [Image.fromarray(array) for array in load_sample_images().images], np.random.default_rng(0)
    crops = []
    for number in range(count):
        image = photographs[number % len(photographs)]
        reach = min(2 * side, image.height)
        left, top = rng.integers(0, image.width - reach + 1), rng.integers(0, image.height - reach + 1)
        crops.append(np.asarray(image.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + reach, top + reach))))
    return crops


def table(report: dict[str, Any]) -> str:
    """The figures as Markdown."""
    setting, memory, machine = report["setting"], report["growth_bytes"], report["machine"]
    versions = f"webdataset {machine['webdataset']}, Pillow {machine['pillow']}"
    same = "the same" if len(set(report["content_digests"].values())) == 1 else "NOT THE SAME"
    lines = [
        f"{setting['count']} PNGs of {setting['side']} px, {report['bytes_an_image']:.0f} bytes each, shards of {setting['shard_size']}; "
        f"{machine['cpus']} CPUs {machine['device']}, load {machine['load'][0]}, {versions}. "
        f"Content of all shards by both readers: {same}.",
        "",
        "| What | Target | Images/s, median (lowest to highest) | Ratio of medians (worst pair) | Of processor time | Peak growth, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for verb, target in (("write", WRITE_TARGET), ("read", READ_TARGET)):
        for name, run in report[verb].items():
            grown = " then ".join(f"{size / 2**20:.1f}" for size in memory[f"{verb} {name}"])
            rates = f"{run['images_per_second']:,.0f} ({run['images_per_second_lowest']:,.0f} to {run['images_per_second_highest']:,.0f})"
            ratios = f"{run['ratio']:.2f} ({run['lowest_ratio']:.2f}) | {run['cpu_time_ratio']:.2f}" if name != "peer" else "1 | 1"
            wanted = target if name == "ours" else ""
            lines.append(f"| {verb}, {name.replace('_', ' ')} | {wanted} | {rates} | {ratios} | {grown} |")
    lines += ["", "| Codec | " + " | ".join(f"{side} px: µs in, µs out, bytes" for side in next(iter(report["codecs"].values()))) + " |"]
    lines.append("|---" * (1 + len(next(iter(report["codecs"].values())))) + "|")
    for name, sides in report["codecs"].items():
        lines.append(f"| {name} | " + " | ".join(f"{a:,.0f}, {b:,.0f}, {size:,.0f}" for a, b, size in sides.values()) + " |")
    return "\n".join(lines)


def _last(runs: dict[str, list[Timing]]) -> str:
    return ", ".join(f"{name} {timings[-1].seconds:.2f} s" for name, timings in runs.items())


def _machine() -> dict[str, Any]:
    return {
        "device": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "webdataset": webdataset.__version__,
        "pillow": PIL.__version__,
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=32, help="pixels")
    parser.add_argument("--shard-size", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=7)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    given = _arguments(argv)
    setting = Setting(count=given.count, side=given.side, shard_size=given.shard_size)
    report = measure(setting, given.repetitions, lambda line: print(line, file=sys.stderr, flush=True))
    given.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(table(report))


if __name__ == "__main__":
    main()

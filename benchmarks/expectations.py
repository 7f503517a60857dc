"""Seconds and memory for the expectations of a manifest of a million records and more, without any images.

python benchmarks/expectations.py --out expectations.json

The rows are made up: as many classes as ImageNet, 63-bit seeds, hashes of 64 hex digits, shards of 1,000. Each repetition is a process of
its own, whose peak resident memory is that of everything: libraries, the manifest as `gda validate` opens it, and Great Expectations.
Opening checks the manifest's checksum, its classes, counts and hashes. What decoding the images would add to the table is made up as well.
"whole table" gives the library the table as it is instead of the columns in use.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from gda.artifacts.document import dump_document
from gda.artifacts.snapshot import ClassInfo, ShardInfo, SnapshotIndex
from gda.data.store.snapshot import INDEX_FILE, Snapshot, count_rows
from gda.gate import expectations
from gda.gate.expectations import ExpectedSet, check_structure
from gda.io.manifest import write_manifest

TARGET_SECONDS, TARGET_BYTES = 10.0, 2 * 2**30
SHARD = 1000
GENERATOR = "ab" * 32


def make_rows(count: int, classes: int) -> pd.DataFrame:
    """A manifest of `count` sound records."""
    rng, labels = np.random.default_rng(0), np.arange(count) % classes
    names = [f"class {label}" for label in range(classes)]
    hashes = [rng.bytes(32).hex() for _ in range(count)]
    return pd.DataFrame(
        {
            "key": [f"s{label:04d}-{i // classes:07d}-{i * 2654435761 % 2**32:08x}" for i, label in enumerate(labels)],
            "split": "train",
            "label": labels,
            "class": [names[label] for label in labels],
            "sha256": hashes,
            "pixel_sha256": hashes,
            "width": 256,
            "height": 256,
            "shard": [f"train-{i // SHARD:06d}.tar" for i in range(count)],
            "offset": np.arange(count) % SHARD * 4096,
            "seed": rng.choice(2**62, count) if count < 1000 else np.unique(rng.integers(0, 2**62, count + count // 100))[:count],
            "prompt": [f"a photo of a {names[label]}" for label in labels],
            "negative_prompt": "",
            "guidance_scale": 1.5,
            "num_inference_steps": 50,
            "scheduler": "dpmsolver++",
            "source_image": "",
            "generator_digest": GENERATOR,
        }
    )


def make_snapshot(folder: Path, count: int, classes: int) -> None:
    """A snapshot of made-up records, whose shards are empty files."""
    rows = make_rows(count, classes)
    infos = tuple(ClassInfo(name=f"class {label}", prompt_name=f"class {label}") for label in range(classes))
    shards = tuple(
        ShardInfo(name=str(name), split="train", count=int(n), sha256="0" * 64) for name, n in rows.groupby("shard").size().items()
    )
    for shard in shards:
        (folder / shard.name).touch()
    index = SnapshotIndex(
        kind="synthetic",
        classes=infos,
        counts=count_rows(rows, infos),
        shards=shards,
        manifest_sha256=write_manifest(folder, rows, synthetic=True),
        digest="0" * 64,
    )
    (folder / INDEX_FILE).write_bytes(dump_document(index))


def check(folder: Path, *, whole: bool) -> dict[str, float]:
    """Open the snapshot and compare it with its plan; seconds of each step and the peak of this process, bytes."""
    seconds: dict[str, float] = {}
    with _timed(seconds, "open"):
        snapshot = Snapshot.open(folder)
    table = snapshot.manifest().assign(
        decoded=1, as_recorded=1, size_as_recorded=1, decoded_mode="RGB", decoded_width=256, decoded_height=256
    )
    table["decoded_pixel_sha256"] = table["pixel_sha256"]
    names = tuple(info.name for info in snapshot.classes)
    plan = ExpectedSet(
        count=len(table),
        classes=names,
        counts=tuple(snapshot.index.counts["train"][name] for name in names),
        prompts=tuple(f"a photo of a {name}" for name in names),
        size=(256, 256),
        generator_digest=GENERATOR,
        strengths=(0.0,),
    )
    if whole:
        narrow = expectations.checked_table
        expectations.checked_table = lambda given, plan: given.join(
            narrow(given, plan)[[expectations._GAPS, expectations._PROMPT, expectations._NOISED]]
        )
    with _timed(seconds, "expectations"):
        found = check_structure(table, plan)
    assert not found.failures, found.failures[:3]
    return seconds | {"count": len(found.results), "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start, spent = time.perf_counter(), time.process_time()
    yield
    seconds[name] = time.perf_counter() - start
    seconds[f"{name} cpu"] = time.process_time() - spent


def measure(count: int, classes: int, repetitions: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Both ways in turn, each in a process of its own."""
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "whole table": []}
    with TemporaryDirectory() as folder:
        make_snapshot(Path(folder), count, classes)
        say(f"made {count:,} records of {classes:,} classes")
        for _ in range(repetitions):
            for name, found in runs.items():
                command = [sys.executable, __file__, "--check", folder] + (["--whole"] if name != "ours" else [])
                found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
                say(f"{name}: {found[-1]}")
    return {"count": count, "classes": classes, "machine": _machine(), "runs": runs}


def table_of(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"{report['count']:,} records of {report['classes']:,} classes; {report['machine']}.",
        "",
        "| | Target | Seconds, median (longest) | of which opening | Processor seconds, median | Peak, GiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in report["runs"].items():
        totals = [run["open"] + run["expectations"] for run in runs]
        spent = statistics.median(run["open cpu"] + run["expectations cpu"] for run in runs)
        opening, peak = statistics.median(run["open"] for run in runs), max(run["peak"] for run in runs)
        target = f"{TARGET_SECONDS:g} s, {TARGET_BYTES / 2**30:g} GiB" if name == "ours" else ""
        what = f"{runs[0]['count']} expectations, {name}"
        wall = f"{statistics.median(totals):.1f} ({max(totals):.1f}) | {opening:.1f}"
        lines.append(f"| {what} | {target} | {wall} | {spent:.1f} | {peak / 2**30:.2f} |")
    return "\n".join(lines)


def _machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("great-expectations", "pandas", "pyarrow"))
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} CPUs {platform.machine()}, load {load:.2f}, Python {platform.python_version()}, {libraries}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--count", type=int, default=1_200_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--check", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.check is not None:
        print(json.dumps(check(given.check, whole=given.whole)))
        return
    report = measure(given.count, given.classes, given.repetitions, lambda line: print(line, file=sys.stderr, flush=True))
    if given.out is not None:
        given.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(table_of(report))


if __name__ == "__main__":
    main()

"""Every format that a user can hand in: files that are valid, how they are mutated, and the product's reader."""

import hashlib
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fuzz_mutations as m
import numpy as np
from imagenet_formats import label_files, reader
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
_FIXTURES = ROOT / "tests/contract/fixtures"


@dataclass(frozen=True, kw_only=True)
class Format:
    """`read` is given a folder in which the mutated bytes lie as `file`; `world` fills that folder once with what stays as it is."""

    name: str
    file: str
    seeds: tuple[bytes, ...]
    harsh: tuple[m.Mutation, ...]
    gentle: tuple[m.Mutation, ...]
    read: Callable[[Path], Any]
    world: Callable[[Path], None] = lambda folder: None


def quick_formats() -> list[Format]:
    """Those of which a file is read in a few milliseconds."""
    return [*_documents(), *_texts(), *_snapshots(), *_arrays(), *_sources(), *_imagenet(), *_classifiers()]


def formats() -> list[Format]:
    """All of them, also those whose reader builds the networks of a generator."""
    return [*quick_formats(), *_models()]


def _dump(content: Any) -> bytes:
    return json.dumps(content, indent=2, sort_keys=True).encode()


def _document(name: str, file: str, seeds: tuple[bytes, ...], read: Callable[[Path], Any]) -> Format:
    return Format(name=name, file=file, seeds=seeds, harsh=m.JSON, gentle=(m.json_gentle, m.same), read=read)


def _documents() -> list[Format]:
    from gda.artifacts.cards import ClassifierCard, GeneratorCard
    from gda.artifacts.document import dump_document, read_document
    from gda.artifacts.evaluation import Metrics
    from gda.artifacts.fingerprint import Fingerprint
    from gda.artifacts.snapshot import SnapshotIndex
    from gda.artifacts.verdict import Verdict
    from gda.io.up_to_date import read_fingerprint

    def document(kind: Any, file: str) -> Callable[[Path], Any]:
        return lambda folder: dump_document(read_document(folder / file, kind))

    fingerprint = {
        "stage": "snapshot",
        "config": {"seed": 0, "size": None, "codec": {"name": "png"}},
        "inputs": {"a": "0"},
        "environment": {},
    }

    def fingerprint_of(folder: Path) -> Any:
        found = read_fingerprint(folder)
        return found.digest, found.difference(Fingerprint(**fingerprint))

    fixtures = {kind: tuple(path.read_bytes() for path in sorted(_FIXTURES.glob(f"{kind}.*.json"))) for kind in ("verdict", "metrics")}
    return [
        _document("fingerprint", "fingerprint.json", (_dump(fingerprint),), fingerprint_of),
        _document("classifier card", "classifier.json", (_dump(_classifier_card()),), document(ClassifierCard, "classifier.json")),
        _document(
            "generator card",
            "generator.json",
            ((ROOT / "gda/assets/demo_base/generator.json").read_bytes(),),
            document(GeneratorCard, "generator.json"),
        ),
        _document("verdict", "verdict.json", fixtures["verdict"], document(Verdict, "verdict.json")),
        _document("metrics", "metrics.json", fixtures["metrics"], document(Metrics, "metrics.json")),
        _document("snapshot.json", "snapshot.json", (_dump(_index("0" * 64)),), document(SnapshotIndex, "snapshot.json")),
    ]


def _classifier_card() -> dict[str, Any]:
    return {
        "schema_version": 1, "arm": "real", "seed": 0, "model": "test_resnet", "image_size": 16, "classes": ["blue", "red"],
        "num_train_steps": 3, "val_top1": 0.5, "digest": "0" * 64, "snapshot_digest": "1" * 64,
    }  # fmt: skip


def _texts() -> list[Format]:
    from gda.config.load import dump_config, load_config
    from gda.data.ingest.held_out_sets import read_class_map
    from gda.generator.planning.class_files import read_by_class, read_table

    whole = (ROOT / "params.yaml").read_bytes()
    small = b"seed: 3\nsnapshot:\n  image_size: 32\nclassify: {seeds: [0, 1], num_train_steps: 10}\n"
    names = ("cat", "dog")
    gentle = (m.yaml_gentle, m.same)
    return [
        Format(
            name="params YAML", file="params.yaml", seeds=(small, small, whole), harsh=m.YAML, gentle=gentle,
            read=lambda folder: dump_config(load_config(folder / "params.yaml", ())),
        ),
        Format(
            name="prompts YAML", file="p.yaml", seeds=(b"cat: a cat\ndog: [a dog, another]\n",), harsh=m.YAML, gentle=gentle,
            read=lambda folder: read_by_class(folder / "p.yaml", names, where="finetune.prompt_file", what="prompt"),
        ),
        _document("class map JSON", "map.json", (b'{"n01": "cat", "n02": null}',), lambda folder: read_class_map(folder / "map.json")),
        Format(
            name="class map CSV", file="map.csv", seeds=(b"folder,class\nn01,cat\nn02,\n",), harsh=m.TEXT, gentle=(_csv_gentle, m.same),
            read=lambda folder: read_class_map(folder / "map.csv"),
        ),
        Format(
            name="quota CSV", file="q.csv", seeds=(b"class,images\ncat,3\ndog,4\n",), harsh=m.TEXT, gentle=(m.same,),
            read=lambda folder: read_table(folder / "q.csv", names, columns=("class", "images"), where="sample.quota_file"),
        ),
    ]  # fmt: skip


def _csv_gentle(data: bytes, rng: random.Random) -> bytes:
    return data + f"n{rng.randrange(10, 99)}{rng.randrange(10**6)},{rng.choice(('cat', 'dog', ''))}\n".encode()


def _rows() -> Any:
    import pandas as pd

    return pd.DataFrame(
        [
            {"key": f"k{i}", "split": "train", "label": i % 2, "class": ("blue", "red")[i % 2], "sha256": f"{i:064x}",
             "pixel_sha256": f"{i:064x}", "width": 8, "height": 8, "shard": "train-000000.tar", "offset": 512 * i}
            for i in range(4)
        ]
    )  # fmt: skip


def _index(manifest: str) -> dict[str, Any]:
    return {
        "schema_version": 1, "kind": "real", "classes": [{"name": "blue", "prompt_name": "blue"}, {"name": "red", "prompt_name": "red"}],
        "counts": {"train": {"blue": 2, "red": 2}},
        "shards": [{"name": "train-000000.tar", "split": "train", "count": 4, "sha256": "2" * 64}],
        "manifest_sha256": manifest, "digest": "3" * 64, "plan_digest": None, "provenance": {}, "licence": "x", "quarantined": [],
    }  # fmt: skip


def _snapshots() -> list[Format]:
    from gda.artifacts.snapshot import SnapshotIndex
    from gda.data.store.snapshot import Snapshot, digest_rows, manifest_problems
    from gda.errors import DataError
    from gda.io.manifest import MANIFEST_FILE, read_manifest, write_manifest

    def world(folder: Path) -> None:
        (folder / "train-000000.tar").write_bytes(b"")
        digest = write_manifest(folder, _rows(), synthetic=False)
        (folder / "snapshot.json").write_bytes(_dump(_index(digest)))

    def opened(folder: Path) -> Any:
        content = _index(hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest())
        index = SnapshotIndex.model_validate_json(_dump(content))
        rows = read_manifest(folder, index.manifest_sha256)
        if problems := manifest_problems(index, rows):
            raise DataError(problems[0])
        # As anyone who forges a manifest would: the index names its digest too.
        (folder / "snapshot.json").write_bytes(_dump(content | {"digest": digest_rows(rows, index.classes)}))
        return Snapshot.open(folder).split_digest("train")

    def table(data: bytes, change: Callable[[Any], Any] = lambda rows: rows, **how: Any) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        found, buffer = change(pq.read_table(pa.BufferReader(data))), io.BytesIO()
        pq.write_table(found, buffer, **how)
        return buffer.getvalue()

    def otherwise(data: bytes, rng: random.Random) -> bytes:
        how: dict[str, Any] = {"compression": rng.choice(("zstd", "snappy", "none", "gzip")), "row_group_size": rng.choice((1, 2, 4))}
        return table(data, use_dictionary=rng.random() < 0.5, **how)

    def column(data: bytes, rng: random.Random) -> bytes:
        import pyarrow as pa

        def change(rows: Any) -> Any:
            at, n = rng.randrange(rows.num_columns), rows.num_rows
            value: Any = rng.choice((None, 2**62, -1, "\x00", 1.5, [1], {"a": 1}, b"\xff", True, "a" * 9999))
            values = [value] * n
            if rng.random() < 0.3:
                return rows.remove_column(at)
            return rows.set_column(at, rows.column_names[at], pa.array(values))

        return table(data, change)

    folder = Path(_scratch("manifest"))
    write_manifest(folder, _rows(), synthetic=False)
    seeds = ((folder / MANIFEST_FILE).read_bytes(),)
    return [
        Format(
            name="manifest parquet", file=MANIFEST_FILE, seeds=seeds, harsh=(*m.BINARY, column, column), gentle=(otherwise, m.same),
            read=opened, world=world,
        ),
    ]  # fmt: skip


def _scratch(name: str) -> str:
    import tempfile

    return tempfile.mkdtemp(prefix=f"fuzz-{name}-")


def _arrays() -> list[Format]:
    from gda.config.sections import Arm
    from gda.data.store.predictions import Predictions, read_predictions, write_predictions
    from gda.fidelity.frechet import Statistics
    from gda.fidelity.statistics_file import read_statistics_file, statistics_bytes

    labels = np.arange(6, dtype=np.int32) % 2
    top = {(Arm.REAL, 0): np.stack([labels, 1 - labels], axis=1)}
    path = Path(_scratch("predictions")) / "p.safetensors"
    write_predictions(path, Predictions(labels=labels, top=top, test_digest="0" * 64))
    statistics = statistics_bytes(Statistics(mean=np.zeros(3), cov=np.eye(3), n=None))

    def opened(folder: Path) -> Any:
        found = read_predictions(folder / "p.safetensors")
        return [found.correct(arm, [seed], within=5).mean() for arm, seed in found.top]

    def compressed(data: bytes, rng: random.Random) -> bytes:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, mu=np.full(3, rng.random()), sigma=np.eye(3) * rng.random())
        return buffer.getvalue()

    return [
        Format(name="predictions", file="p.safetensors", seeds=(path.read_bytes(),), harsh=m.BINARY, gentle=(m.same,), read=opened),
        Format(
            name="statistics npz", file="s.npz", seeds=(statistics,), harsh=m.BINARY, gentle=(compressed, m.same),
            read=lambda folder: read_statistics_file(folder / "s.npz", dim=3, extractor="glyph"),
        ),
    ]  # fmt: skip


def _png(value: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8), value if mode != "RGB" else (value, 30, 60)).save(buffer, kind)
    return buffer.getvalue()


def _tar(kind: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for i in range(3):
            for suffix, data in (("png", _png(i)), ("cls", str(i % 2).encode()), ("json", b'{"a": 1}')):
                info = tarfile.TarInfo(f"{'long' * 30 if i == 2 and kind != tarfile.USTAR_FORMAT else 'k'}{i}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _sources() -> list[Format]:
    from gda.data.images.codecs import decode, to_array
    from gda.data.sources.archives import read_npz_source, read_tars
    from gda.data.sources.source import Columns
    from gda.data.store.writer import ImageRecord, write_image_shard
    from gda.io.shards import read_shard

    shard = Path(_scratch("shard"))
    records = [ImageRecord(key=f"k{i}", rgb=np.full((8, 8, 3), i, np.uint8), label=i, class_name="c", meta={}) for i in range(3)]
    write_image_shard(shard, name="train-000000.tar", split="train", records=records)
    arrays = io.BytesIO()
    np.savez(arrays, arr_0=np.zeros((4, 8, 8, 3), np.uint8), arr_1=np.arange(4) % 2)
    images = (_png(1), _png(9, "JPEG"), _png(7, "WEBP"), _png(300, "PNG", "I;16"), _png(1, "TIFF"), _png(3, "BMP"))
    tars = (_tar(), _tar(tarfile.PAX_FORMAT), _tar(tarfile.GNU_FORMAT))
    return [
        Format(
            name="own shards", file="train-000000.tar",
            seeds=((shard / "train-000000.tar").read_bytes(),), harsh=m.BINARY, gentle=(m.same,),
            read=lambda folder: list(read_shard(folder / "train-000000.tar")),
        ),
        Format(
            name="image files", file="i.png", seeds=images, harsh=m.BINARY, gentle=(m.same,),
            read=lambda folder: to_array(decode((folder / "i.png").read_bytes(), name="i.png", pixel_range=(0, 65535))),
        ),
        Format(
            name="foreign tars", file="t.tar", seeds=tars, harsh=m.BINARY, gentle=(m.same,),
            read=lambda folder: read_tars([folder / "t.tar"], Columns(), strict=True, progress=False),
        ),
        Format(
            name="source npz", file="a.npz", seeds=(arrays.getvalue(),), harsh=m.BINARY, gentle=(m.same,),
            read=lambda folder: read_npz_source(folder / "a.npz", Columns()),
        ),
    ]  # fmt: skip


def _imagenet() -> list[Format]:
    read = reader()
    return [
        Format(name=name, file=form.file, seeds=form.seeds, harsh=form.harsh, gentle=(m.same,), read=read, world=form.write_companions)
        for name, form in label_files().items()
    ]


def _classifiers() -> list[Format]:
    import timm
    from safetensors.torch import save

    from gda.training.networks.export import load_classifier

    args = {"channels": [8, 8, 8, 16], "stem_width": 4}
    network = timm.create_model("test_resnet", num_classes=2, **args)
    config = {
        "architecture": "test_resnet", "num_classes": 2, "model_args": args, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }  # fmt: skip
    weights = save({name: value.contiguous() for name, value in network.state_dict().items()})
    form = _document("timm config", "config.json", (_dump(config),), load_classifier)
    return [replace(form, world=lambda folder: _write(folder / "model.safetensors", weights))]


def _models() -> list[Format]:
    from gda.generator.families.opening import load_model

    base = ROOT / "gda/assets/demo_base"
    load_model(str(base))  # imports take seconds, in this process once

    def copy(folder: Path) -> None:
        shutil.copytree(base, folder / "m", dirs_exist_ok=True)

    parts = ("base/unet/config.json", "base/scheduler/scheduler_config.json", "base/model_index.json", "base/text_encoder/config.json")
    forms = [
        _document(f"model {part}", f"m/{part}", ((base / part).read_bytes(),), lambda folder: load_model(str(folder / "m")))
        for part in parts
    ]
    return [replace(form, world=copy) for form in forms]


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)

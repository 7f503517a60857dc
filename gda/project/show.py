"""`gda show`: a page of the images of a snapshot, class by class, suspects first; test images are never on it."""

import base64
import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from gda.data.images.codecs import decode
from gda.data.sources.source import path_key
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError
from gda.io.shards import read_record
from gda.runtime.rng import shuffled

PER_CLASS = 24
_OPEN = ("train", "val")
_LARGEST = 224  # pixels of the shorter side on the page
_ENLARGED = 96  # pixels: smaller images are shown with hard pixels


def read_suspects(table: Path) -> dict[str, str]:
    """Reason by key, from `suspects.csv` of `gda init` (which names files) or of `gda validate` (which names keys).

    Raises `DataError` for another table.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(table.read_text("utf-8"))))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read ({error})") from None
    found: dict[str, str] = {}
    for row in rows:
        key = row.get("key") or path_key(row.get("file") or "")
        reason = row.get("reason") or (f"looks like {row['seen_as']}" if row.get("seen_as") else "")
        if not (row.get("key") or row.get("file")) or not reason:
            raise DataError(f"{table}: expected columns file and reason, as gda init writes them, or key and seen_as, as gda validate does")
        found.setdefault(key, reason)
    return found


def render_images(snapshot: Snapshot, *, per_class: int = PER_CLASS, suspects: Mapping[str, str] | None = None) -> str:
    """One HTML page without scripts: up to `per_class` images of each class and all its suspects, those first.

    Images are chosen by a hash. Those of the test split stay closed: looking at them would be an opening.
    """
    rows, known = snapshot.manifest(), suspects or {}
    splits = [split for split in snapshot.splits if split in _OPEN]
    classes = [_class(snapshot, rows[rows["label"] == label], info.name, per_class, known) for label, info in enumerate(snapshot.classes)]
    shown = [image for group in classes for image in group["images"]]
    smallest = min((image["side"] for image in shown), default=_LARGEST)
    hidden = sum(shard.count for shard in snapshot.index.shards if shard.split == "test")
    about = f"{snapshot.index.kind} images, {len(rows):,} in {len(snapshot.classes):,} classes; digest {snapshot.digest[:12]}"
    about += f"; {hidden:,} test images are not shown: looking at them would count as an opening" if hidden else ""
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("gda.project"), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    ).get_template("show.html.j2")
    return template.render(
        title=f"Images of {snapshot.path}",
        about=about,
        splits=splits,
        classes=classes,
        num_suspects=sum(bool(image["reason"]) for image in shown),
        rendering="pixelated" if smallest < _ENLARGED else "auto",
    )


def _class(snapshot: Snapshot, rows: pd.DataFrame, name: str, per_class: int, suspects: Mapping[str, str]) -> dict[str, Any]:
    open_rows = rows[rows["split"].isin(_OPEN)]
    keys = open_rows["key"].tolist()
    first = [key for key in suspects if key in set(keys)]
    chosen = [*first, *shuffled(set(keys) - set(first), "show", key=str)[:per_class]]
    by_key = open_rows.set_index("key")
    counts = rows["split"].value_counts()
    return {
        "name": name,
        "counts": ", ".join(f"{split} {counts[split]:,}" for split in snapshot.splits if split in counts) or "no images",
        "left_out": len(keys) - len(chosen),
        "images": [_image(snapshot, key, by_key.loc[key], suspects.get(key, "")) for key in chosen],
    }


def _image(snapshot: Snapshot, key: str, row: "pd.Series[Any]", reason: str) -> dict[str, Any]:
    path = snapshot.path / str(row["shard"])
    stored = read_record(path, int(row["offset"])).image
    image = decode(stored, name=f"{path}: {key}")
    side = min(image.size)
    if side > _LARGEST:
        scale = _LARGEST / side
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    kind = "png" if side < _ENLARGED else "webp"
    image.save(buffer, kind.upper(), **({} if kind == "png" else {"quality": 85}))
    return {
        "key": key,
        "split": row["split"],
        "reason": reason,
        "side": side,
        "kind": kind,
        "data": base64.b64encode(buffer.getvalue()).decode(),
    }

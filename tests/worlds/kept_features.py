"""Features next to a set, as sampling would have kept them: of sets that no generator sampled."""

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gda.artifacts.fingerprint import canonical_json
from gda.data.images.codecs import decode, to_array
from gda.data.store.snapshot import Snapshot
from gda.fidelity.accumulated import FeatureObserver, FeaturesIndex, features_path
from gda.fidelity.extractors import get_extractor
from gda.io.shards import read_shard
from gda.io.tensors import tensors_digest


def observer_of(kept, size=28, extractor="glyph"):
    """An observer that keeps `kept` of images of `size` pixels."""
    digest = get_extractor(extractor).digest
    return FeatureObserver(index=FeaturesIndex(kept=kept, extractor=extractor, extractor_digest=digest, image_size=size))


def keep_features(path: Path, kept, size=28, batch=7):
    """Write `features/` of the snapshot at `path`, showing the observer `batch` images at a time."""
    observer, rows = observer_of(kept, size), Snapshot.open(path).manifest()
    for shard, part in rows.groupby("shard"):
        seen = observer.begin(path / shard)
        images = [to_array(decode(record.image, name=record.key)) for record in read_shard(path / shard)]
        for start in range(0, len(images), batch):
            seen.add(images[start : start + batch])
        seen.commit(part)
    observer.finish(path, rows)


def forge(shard: Path, change):
    """Pass the kept features of a shard through `change`, with a checksum that is right again."""
    path = features_path(shard)
    with safe_open(path, framework="numpy") as file:
        fields = json.loads(file.metadata()["gda"])
    tensors = load_file(path)
    tensors["features"] = change(tensors["features"]).astype(np.float32)
    save_file(tensors, path, metadata={"gda": canonical_json(fields | {"content": tensors_digest(tensors)}).decode()})

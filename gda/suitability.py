"""Whether a base model and a feature network suit the images: those of the demo know characters of 28 pixels, and nothing else.

Used on photographs they give coloured noise and meaningless distances without an error, so they are refused, unless forced by name.
"""

import itertools
from functools import lru_cache
from pathlib import Path

from gda.config.load import Config
from gda.data.images.codecs import decode, to_array
from gda.data.images.looks import Looks, looks_of
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError
from gda.generator.weights.directory import DEMO_BASE
from gda.io.shards import iterate_shard

GLYPH_EXTRACTOR = "glyph"
_LOOKED_AT = 32
BASE_ADVICE = "give a text-to-image model that knows such images as finetune.base (manual: bases)"
EXTRACTOR_ADVICE = "set validate.extractor to inception-v3-compat, dinov2-vit-l-14 or clip-vit-l-14, with its weights (manual: validation)"


def require_suitable_base(config: Config, base: str, real: Snapshot) -> None:
    """Raise `DataError` for the demo's base and images that it cannot know; `finetune.force_base` may name it all the same."""
    if base == DEMO_BASE and config.finetune.force_base != base and (looks := snapshot_looks(real.path, real.digest)).photographs:
        raise DataError(
            f"{base}: knows characters of 28 px, but the images of {real.path} are {looks.text}: what it generates would be noise; "
            f"{BASE_ADVICE}, or force it with finetune.force_base={base}"
        )


def require_suitable_extractor(config: Config, real: Snapshot) -> None:
    """Raise `DataError` for the extractor glyph and images that it cannot tell apart; `validate.force_extractor` may name it."""
    name = config.validate_.extractor
    if name != GLYPH_EXTRACTOR or config.validate_.force_extractor == name:
        return
    if (looks := snapshot_looks(real.path, real.digest)).photographs:
        raise DataError(
            f"validate.extractor: {name} knows characters of 28 px, but the images of {real.path} are {looks.text}: its distances "
            f"would mean nothing; {EXTRACTOR_ADVICE}, or force it with validate.force_extractor={name}"
        )


@lru_cache(maxsize=8)
def snapshot_looks(path: Path, digest: str) -> Looks:
    """The looks of the first training images of a snapshot. Raises `DataError` for a damaged one."""
    shard = next((shard.name for shard in Snapshot.open(path).index.shards if shard.split == "train"), None)
    if shard is None:
        raise DataError(f"{path}: split 'train' holds no images")
    records = itertools.islice(iterate_shard(path / shard), _LOOKED_AT)
    return looks_of(to_array(decode(record.image, name=f"{path / shard}: {record.key}")) for _, record in records)

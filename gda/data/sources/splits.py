"""Assigns splits: the user's own, or by a keyed hash of an image's content or group, so that new images never move old ones."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gda.config.sections import SnapshotConfig
from gda.errors import ConfigError, DataError

# Usual names of splits. Hugging Face reads `eval` as test; where there is a test split too, it can only mean validation.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_EVAL = ("eval", "evaluation")
# Words that may accompany a split's name without a meaning: training_set, seg_train, test images, val2017.
_EMPTY_WORDS = {"set", "seg", "data", "dataset", "image", "images", "img", "imgs", "split", "pictures", "photos", "part", "of"}
_GLUED = re.compile(rf"^({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(set|data|dataset|images|imgs|split)$")


@dataclass(frozen=True, kw_only=True)
class Splitter:
    """Assigns splits; `carved` are the splits that a keyed hash takes from train, with their shares of it."""

    key: str
    carved: tuple[tuple[str, float], ...]

    def assign(self, given: str | None, identity: str) -> str:
        """The split of an image whose source has it in split `given` (None: in no split); `identity` is its group or pixel hash."""
        if given not in (None, "train"):
            return given
        position = hash_fraction(self.key, identity)
        for split, share in self.carved:
            if position < share:
                return split
            position -= share
        return "train"


def make_splitter(config: SnapshotConfig, given: Iterable[str | None]) -> Splitter:
    """A splitter for a source whose images have the splits `given`.

    A source without splits is divided by `val_fraction` and `test_fraction`. A source with train and only one of val and test keeps
    those; the missing one is taken from train by its fraction. Raises `DataError` when splits are
    given for some images only or train is missing, `ConfigError` when the fractions leave nothing to train on.
    """
    present = set(given)
    if None in present and len(present) > 1:
        raise DataError("some images name a split and others do not; name one for every image or for none")
    if None not in present and "train" not in present:
        raise DataError(f"the source has splits {', '.join(sorted(map(str, present)))} but no train")
    shares = (("test", config.test_fraction), ("val", config.val_fraction))
    carved = tuple((split, share) for split, share in shares if split not in present)
    if sum(share for _, share in carved) >= 1.0:
        raise ConfigError(
            f"snapshot.val_fraction + snapshot.test_fraction: {config.val_fraction} + {config.test_fraction} leaves nothing to train on; "
            "accepted: a sum below 1"
        )
    return Splitter(key=config.split_key, carved=carved)


def hash_fraction(key: str, identity: str) -> float:
    """A number in [0, 1) that depends only on `key` and `identity`: the first 53 bits of sha256(key, 0, identity)."""
    digest = hashlib.sha256(f"{key}\0{identity}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def parse_split(value: str, where: str) -> str:
    """train, val or test for a usual name of a split. Raises `DataError` naming `where`."""
    split, rest = split_words(value)
    if split is None or rest:
        raise DataError(f"{where}: split {value!r} is not one of {', '.join(SPLIT_NAMES)}")
    return split


def split_words(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The split in a name (None: no split, or two), and its other words except those without a meaning."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.strip())
    words = [word for word in re.split(r"[\W_\d]+", spaced.lower()) if word]
    words = [part for word in words for part in _GLUED.sub(r"\1 \2", word).split()]
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    rest = tuple(word for word in words if word not in SPLIT_NAMES and word not in _EMPTY_WORDS)
    return (splits.pop() if len(splits) == 1 else None), rest


def splits_of(names: Sequence[str]) -> list[str | None]:
    """The split of each name in a list of siblings, None for a name that is no split.

    A split's name may have other words only if another split has the same words (cars_train, cars_test); so test_tube is no split. If there
    is a test split already, eval means validation.
    """
    read = [split_words(name) for name in names]
    partners = {rest: {split for split, other in read if other == rest and split} for _, rest in read}
    found = [split if split and (not rest or len(partners[rest]) > 1) else None for split, rest in read]
    evals = [any(word in name.lower() for word in _EVAL) for name in names]
    if any(split == "test" and not is_eval for split, is_eval in zip(found, evals, strict=True)):
        found = ["val" if split == "test" and is_eval else split for split, is_eval in zip(found, evals, strict=True)]
    return found

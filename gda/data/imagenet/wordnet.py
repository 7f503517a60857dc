"""WordNet ids such as n01440764, by which ImageNet names its classes, and the words that WordNet has for them."""

import csv
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from gda.artifacts.snapshot import ClassInfo
from gda.errors import MissingError

_WORDNET_ID = re.compile(r"n[0-9]{8}")
_LEMMAS, _DEFINITIONS = "imagenet_synset_to_lemma.txt", "imagenet_synset_to_definition.txt"
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class WordNetNames:
    """Classes whose prompts use WordNet's words, and the `unknown` ids, for which it has none and which stay as they are."""

    classes: tuple[ClassInfo, ...]
    unknown: tuple[str, ...]

    @property
    def message(self) -> str:
        """For the closing line and the provenance."""
        known = next((info for info in self.classes if info.name not in self.unknown), None)
        such = "none of the ids is known" if known is None else f"such as {known.prompt_name!r} for {known.name}"
        more = f" and {len(self.unknown) - _SHOWN} more" if len(self.unknown) > _SHOWN else ""
        kept = f"; without words, and called by the id: {', '.join(self.unknown[:_SHOWN])}{more}" if self.unknown and known else ""
        return f"prompts call the classes by WordNet's words for their ids, {such}{kept}"


def is_wordnet_id(name: str) -> bool:
    """Whether a class or folder is named by the id of a noun: n and eight digits."""
    return _WORDNET_ID.fullmatch(name) is not None


def wordnet_names(names: Iterable[str]) -> WordNetNames | None:
    """Classes in the order of their ids with WordNet's words as prompt names, where all `names` are such ids; None otherwise.

    A prompt name is the first of WordNet's words for a class; where classes share that, more of its words, then its definition. Raises
    `MissingError` where timm's lists, which hold the words, are missing.
    """
    ids = sorted(set(names))
    if not ids or not all(map(is_wordnet_id, ids)):
        return None
    options = {wordnet_id: _options(wordnet_id) for wordnet_id in ids}
    holders = Counter(form for names in options.values() for form in {name.casefold() for name in names})
    called = {wordnet_id: next(name for name in names if holders[name.casefold()] == 1) for wordnet_id, names in options.items()}
    return WordNetNames(
        classes=tuple(ClassInfo(name=wordnet_id, prompt_name=called[wordnet_id]) for wordnet_id in ids),
        unknown=tuple(wordnet_id for wordnet_id in ids if wordnet_id not in _list(_LEMMAS)),
    )


def _options(wordnet_id: str) -> list[str]:
    """Possible names of a class, shortest first; the last one, with the id, is always unique."""
    words = _list(_LEMMAS).get(wordnet_id, "").split(", ")
    if words == [""]:
        return [wordnet_id]
    starts = [", ".join(words[:count]) for count in range(1, len(words) + 1)]
    meaning = _list(_DEFINITIONS).get(wordnet_id, "").split(";")[0].strip()
    return [*starts, *([f"{words[0]}, {meaning}"] if meaning else []), f"{words[0]}, {wordnet_id}"]


@cache
def _list(name: str) -> dict[str, str]:
    """Text by WordNet id of one of timm's lists. They are read as files: timm itself takes seconds to import."""
    found = find_spec("timm")
    path = Path(found.origin or "").parent / "data" / "_info" / name if found else Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise MissingError(
            f"{path}: not found: the installed timm has no list of WordNet's words; set snapshot.class_names to source"
        ) from None
    return dict(row for row in csv.reader(text.splitlines(), delimiter="\t") if len(row) == 2)

"""Class names: which are accepted, and the names that prompts use for them."""

import re
import unicodedata
from collections.abc import Iterable

from gda.artifacts.snapshot import ClassInfo
from gda.errors import DataError

# Names that Windows or a shell treats specially; a snapshot must export to any file system.
_RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}
_FORBIDDEN = set('/\\:*?"<>|')
_MAX_LENGTH = 100


def make_classes(names: Iterable[str]) -> tuple[ClassInfo, ...]:
    """Classes in label order: numeric when every name is a number, else by code point; names become NFC.

    Raises `DataError` for a name that cannot be a folder on every system, and for names or prompt names that are too similar.
    """
    originals = sorted(set(names))
    if not originals:
        raise DataError("no classes: the source holds no labelled images")
    classes = [ClassInfo(name=normalise(name), prompt_name=prompt_name(name)) for name in originals]
    for name, info in zip(originals, classes, strict=True):
        _require_usable(name, info)
    _require_distinct(originals, [info.name.casefold() for info in classes], "differ only in upper and lower case or in unicode form")
    _require_distinct(originals, [info.prompt_name.casefold() for info in classes], "give the same prompt")
    numeric = all(re.fullmatch(r"[0-9]{1,18}", info.name) for info in classes)
    return tuple(sorted(classes, key=lambda info: (int(info.name) if numeric else 0, info.name)))


def normalise(name: str) -> str:
    """The stable form of a class name: unicode NFC."""
    return unicodedata.normalize("NFC", name)


def prompt_name(name: str) -> str:
    """The name that prompts use: `_` and `-` become spaces, runs of spaces one."""
    return " ".join(re.sub(r"[_-]", " ", normalise(name)).split())


def _require_usable(name: str, info: ClassInfo) -> None:
    stable = info.name
    reason = None
    if not stable.strip():
        reason = "is empty"
    elif stable in (".", "..") or _FORBIDDEN & set(stable):
        reason = "holds a path or one of " + " ".join(sorted(_FORBIDDEN))
    elif any(unicodedata.category(c) in ("Cc", "Cs") for c in stable):
        reason = "holds a control character"
    elif stable != stable.strip() or stable.endswith("."):
        reason = "starts or ends with a space, or ends with a dot"
    elif stable.casefold().split(".")[0] in _RESERVED:
        reason = "is reserved on Windows"
    elif len(stable.encode()) > _MAX_LENGTH:
        reason = f"is longer than {_MAX_LENGTH} bytes"
    elif not info.prompt_name:
        reason = "leaves no words for a prompt"
    if reason:
        raise DataError(f"class name {name!r} {reason}; rename it")


def _require_distinct(names: list[str], forms: list[str], why: str) -> None:
    first: dict[str, str] = {}
    for name, form in zip(names, forms, strict=True):
        if form in first:
            raise DataError(f"class names {first[form]!r} and {name!r} {why}; rename or merge one of them")
        first[form] = name

"""The number of images to sample per class: pure functions of the configuration and the training histogram."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from gda.config.sections import SampleConfig
from gda.errors import ConfigError
from gda.generator.planning.class_files import kind_of, listed, read_by_class, read_table
from gda.generator.planning.plan import equal_quotas

MOST = 10_000_000  # images per class, the limit of sample.images_per_class too
_ACCEPTED = f"accepted: a whole number of images from 1 to {MOST:,}"
_SUFFIXES = (".yaml", ".yml", ".json", ".csv")
_COLUMNS = ("class", "images")


def class_quotas(sample: SampleConfig, real: Mapping[str, int], *, zero_shot: bool = False) -> dict[str, int]:
    """Images to sample per class, in the order of `real`: the number of training images per class, in label order.

    The zero-shot control has the same quotas; if `sample.zero_shot_images_per_class` is set, that many images per class on average,
    in the same proportions. Raises `ConfigError` for a class with no images or more than `MOST`, and for an invalid
    `sample.quota_file`.
    """
    mean = sample.zero_shot_images_per_class if zero_shot else None
    if sample.quota == "equal":
        return equal_quotas(list(real), mean or sample.images_per_class)
    if sample.quota == "histogram":
        return _checked(_histogram(real, mean or sample.images_per_class))
    if sample.quota == "multiple":
        quotas = _checked(_multiple(real, sample.real_multiple))
    else:
        quotas = read_quotas(sample.quota_file, list(real))
    return quotas if mean is None else _checked(apportion(mean * len(quotas), quotas))


def apportion(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Divide `total` in proportion to positive `weights` by largest remainder, at least 1 each; ties go to the earlier weight.

    Shares below 1 become 1, and the other weights divide the rest in the same way. `total` must be at least the number of weights.
    """
    assert total >= len(weights), "fewer images than classes"
    small: set[str] = set()
    while True:
        rest, weight = total - len(small), sum(w for name, w in weights.items() if name not in small)
        below = {name for name, w in weights.items() if name not in small and w * rest < weight}
        if not below:
            break
        small |= below
    shares = {name: divmod(w * rest, weight) for name, w in weights.items() if name not in small}
    left = rest - sum(whole for whole, _ in shares.values())
    more = set(sorted(shares, key=lambda name: -shares[name][1])[:left])
    return {name: 1 if name in small else shares[name][0] + (name in more) for name in weights}


def read_quotas(file: str | None, names: Sequence[str]) -> dict[str, int]:
    """Images of each class in `names`, from `sample.quota_file`: a mapping in YAML 1.2 or JSON, or CSV with the header class,images.

    Raises `ConfigError` with file and class or line for a missing, unknown or repeated class, or an invalid number.
    """
    if file is None:
        raise ConfigError(f"sample.quota_file: is null, but sample.quota is table; accepted: a {_suffixes()} file of class name -> images")
    path, where = Path(file), f"sample.quota_file {file}"
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ConfigError(f"{where}: unknown kind of file {path.suffix!r}; accepted: {_suffixes()}")
    if suffix == ".csv":
        table = read_table(path, names, columns=_COLUMNS, where=where)
        quotas = {name: _parse_text(text, f"{where}: line {line}: class {name!r}") for name, (line, text) in table.items()}
    else:
        content = read_by_class(path, names, where=where, what="images")
        quotas = {name: _parse(value, f"{where}: class {name!r}") for name, value in content.items()}
    if missing := [repr(name) for name in names if name not in quotas]:
        what = "class is" if len(missing) == 1 else "classes are"
        raise ConfigError(f"{where}: {len(missing)} {what} missing: {listed(missing, 'classes')}; every class needs {_ACCEPTED[10:]}")
    return {name: quotas[name] for name in names}


def _histogram(real: Mapping[str, int], mean: int) -> dict[str, int]:
    _require_real(real, "histogram")
    return apportion(mean * len(real), real) if real else {}


def _multiple(real: Mapping[str, int], multiple: float) -> dict[str, int]:
    """Rounded half up, at least 1; the multiple is taken as its decimal text, so that 1.1 x 10 is exactly 11."""
    _require_real(real, "multiple")
    exact = Fraction(str(multiple))
    return {name: max(1, (2 * exact * count + 1) // 2) for name, count in real.items()}


def _require_real(real: Mapping[str, int], quota: str) -> None:
    if empty := [repr(name) for name, count in real.items() if count < 1]:
        raise ConfigError(
            f"sample.quota: {quota} gives no image to classes without training images: {listed(empty, 'classes')}; accepted: equal or table"
        )


def _checked(quotas: dict[str, int]) -> dict[str, int]:
    for name, count in quotas.items():
        if count > MOST:
            raise ConfigError(f"sample.quota: class {name!r} would have {count:,} images; {_ACCEPTED}")
    return quotas


def _parse_text(text: str, where: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ConfigError(f"{where}: found {text!r}; {_ACCEPTED}")
    return _parse(int(text), where)


def _parse(value: Any, where: str) -> int:
    # In Python, True is an int.
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{where}: found {kind_of(value)}; {_ACCEPTED}")
    if not 1 <= value <= MOST:
        raise ConfigError(f"{where}: found {value}; {_ACCEPTED}")
    return value


def _suffixes() -> str:
    return f"{', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}"

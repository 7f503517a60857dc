"""Whether fields of configurations have the JSON types that the classes of diffusers declare for them."""

import inspect
import types
import typing
from typing import Any

from gda.generator.weights.config_fields import Fields
from gda.generator.weights.json_files import read_config_object
from gda.generator.weights.layout import Files

_SCALARS = (bool, int, float, str)


def check_types(files: Files) -> None:
    """Raises `DataError` naming file, field, value and accepted types, for the first field of another JSON type.

    Null is accepted, because many published configurations contain it. `check_base` covers text encoders.
    """
    import diffusers

    for plain in sorted(files.used):
        if not plain.endswith(("/config.json", "/scheduler_config.json")):
            continue
        content = read_config_object(files.path(plain))
        kind = getattr(diffusers, str(content.get("_class_name")), None)
        if inspect.isclass(kind):
            _check(Fields(where=files.where(plain), content=content), kind)


def _check(config: Fields, kind: type) -> None:
    for name, parameter in inspect.signature(kind.__init__).parameters.items():  # type: ignore[misc]
        value = config.content.get(name)
        if value is None or parameter.annotation is inspect.Parameter.empty or isinstance(parameter.annotation, str):
            continue
        if not _fits(value, parameter.annotation):
            raise config.refuse(name, f"of type {_shown(parameter.annotation)}")


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(hint))
    if origin is typing.Literal:
        return type(value) in {type(one) for one in typing.get_args(hint)}  # some classes accept more values than they declare
    if origin in (tuple, list) or hint in (tuple, list):
        leaves = [one for one in typing.get_args(hint) if one is not ...]
        return isinstance(value, list) and all(not leaves or any(_fits(item, leaf) for leaf in leaves) for item in value)
    if hint is float:
        return type(value) in (int, float)
    if hint in _SCALARS:
        return type(value) is hint
    # Types that JSON cannot hold, such as arrays, only occur in unions with types that it can.
    return hint is Any or (hint is dict and isinstance(value, dict))


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")

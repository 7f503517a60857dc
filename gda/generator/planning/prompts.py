"""Class prompts: the prompt of each class, and whether the generator's text encoders can distinguish them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gda.artifacts.snapshot import ClassInfo
from gda.config.sections import FinetuneConfig
from gda.errors import ConfigError, DataError
from gda.generator.families.protocol import Model, Text
from gda.generator.planning.class_files import LISTED, kind_of, listed, read_by_class

Entry = str | tuple[str, ...]  # entry of the prompt file: a whole prompt, or names from narrow to broad

# The empty prompt as one space: encoders ignore the space, while XL's pipelines replace the truly empty prompt by zeros.
_EMPTY = " "
_BATCH = 64  # prompts encoded at once
_FEATURES = 16384  # features of the states that are converted to float64 at a time
_ROUNDING = 1e-4  # relative to the largest state: float32 rounding caused by the other prompts of a batch
_SAME = 1e-3  # relative to the distance to the empty prompt: closer prompts differ by rounding only
_NEAR = 0.95  # similarity from which two prompts cause a note
_WINDOW = 77  # tokens: no family reads fewer of a prompt
_MARKS = 3  # special tokens that a tokenizer may add
_ACCEPTED = "accepted: a prompt, or a list of names from narrow to broad, as text (quote a number)"


@dataclass(frozen=True, kw_only=True)
class PromptCollision:
    """Classes `a` and `b` with prompts that the text encoder can hardly distinguish.

    `similarity` is 1 - relative distance (see `find_collisions`), and 1 where they differ by rounding alone.
    """

    a: str
    b: str
    similarity: float

    @property
    def identical(self) -> bool:
        """Whether the generator cannot distinguish the two at all."""
        return self.similarity == 1.0


def class_prompts(classes: Sequence[ClassInfo], settings: FinetuneConfig) -> dict[str, str]:
    """Class name -> prompt, from `finetune.prompt_template` and `finetune.prompt_file`.

    The file maps a class name to its whole prompt, or to names from narrow to broad. From a list, the template receives the shortest
    prefix, joined by ", ", that no other class shares; a class that is not in the file uses its `prompt_name`.
    Raises `ConfigError` for a template without `{class_name}`, for an invalid file, and when two classes would share a prompt.
    """
    template = settings.prompt_template
    if "{class_name}" not in template:
        raise ConfigError(f"finetune.prompt_template: must contain {{class_name}}, got {template!r}")
    entries: dict[str, Entry] = {}
    if settings.prompt_file is not None:
        entries = _read_entries(settings.prompt_file, [info.name for info in classes])
    whole = {name: entry for name, entry in entries.items() if isinstance(entry, str)}
    names = _shortest_names(classes, entries, settings.prompt_file)
    prompts = {info.name: whole.get(info.name) or template.replace("{class_name}", names[info.name]) for info in classes}
    _require_no_twins(prompts, settings.prompt_file)
    return prompts


def find_collisions(model: Model, prompts: dict[str, str], *, threshold: float) -> list[PromptCollision]:
    """Pairs of `prompts` (class name -> prompt) that are identical to the text encoder, or have a similarity of at least `threshold`.

    Padding, template and start tokens make the cosine of any two prompts nearly 1. So the distance is Euclidean over the states of
    all tokens, where the common part cancels, divided by the largest distance of a class prompt to the empty prompt: the reference of
    guidance, which stays large even if all class prompts are similar. Of several roles (states, pooled) the largest distance of a pair
    counts. Most similar first. Raises `DataError` for states that are not finite.
    """
    names = list(prompts)
    apart = _relative_distances(model, list(prompts.values()))
    first, second = torch.triu_indices(len(names), len(names), offset=1)
    chosen = (apart[first, second] <= max(1.0 - threshold, _SAME)).nonzero().flatten()
    found = [
        PromptCollision(a=names[i], b=names[j], similarity=1.0 if distance <= _SAME else 1.0 - distance)
        for i, j, distance in zip(
            first[chosen].tolist(), second[chosen].tolist(), apart[first[chosen], second[chosen]].tolist(), strict=True
        )
    ]
    return sorted(found, key=lambda pair: -pair.similarity)


def require_distinct(model: Model, prompts: dict[str, str]) -> list[str]:
    """Notes on `prompts` (class name -> prompt) that are nearly the same to the text encoder, or longer than its window.

    Raises `ConfigError` for pairs that it cannot distinguish at all.
    """
    pairs = find_collisions(model, prompts, threshold=_NEAR)
    identical = [f"{pair.a!r} and {pair.b!r}" for pair in pairs if pair.identical]
    if identical:
        raise ConfigError(
            f"finetune.prompt_template: the text encoder of {model.path} cannot tell apart the prompts of {listed(identical, 'pairs')}; "
            "call them by other words in finetune.prompt_file, or learn a token per class with finetune.method: textual_inversion"
        )
    notes = [
        f"prompts of {pair.a!r} and {pair.b!r} are nearly the same to the text encoder "
        f"({1 - pair.similarity:.2g} of the distance to the empty prompt)"
        for pair in pairs[:LISTED]
    ]
    if len(pairs) > LISTED:
        notes.append(f"{len(pairs) - LISTED} more pairs of prompts are nearly the same to the text encoder")
    if cut := cut_prompts(model, prompts):
        notes.append(f"the end of the prompts of {listed([repr(name) for name in cut], 'classes')} is beyond what the text encoder reads")
    return notes


def cut_prompts(model: Model, prompts: dict[str, str]) -> list[str]:
    """Names of the classes whose prompts are cut by all text encoders of `model`.

    Works for any family, from the encoder's output: a prompt is cut if neither appending a word nor deleting its last letter changes
    its states. A cut in the middle of a word may go undetected. Only prompts with more bytes than the window has tokens are tried,
    because no token is shorter than a byte.
    """
    room = min([_WINDOW, *(states.shape[1] for states in _states(model, [_EMPTY])[0].values() if states.ndim == 3)]) - _MARKS
    long = {name: prompt.strip() for name, prompt in prompts.items() if len(prompt.strip().encode()) > room}
    full = _unchanged(model, long, {name: f"{prompt} z" for name, prompt in long.items()})
    return _unchanged(model, {name: long[name] for name in full}, {name: long[name][:-1] for name in full})


def _read_entries(file: str, names: Sequence[str]) -> dict[str, Entry]:
    """The entries of `finetune.prompt_file` by class name."""
    where = f"finetune.prompt_file {file}"
    content = read_by_class(Path(file), names, where=where, what="prompt")
    return {name: _parse_entry(value, f"{where}: class {name!r}") for name, value in content.items()}


def _parse_entry(value: Any, where: str) -> Entry:
    """A prompt or a list of names, without leading, trailing and repeated spaces."""
    if not isinstance(value, list):
        return _parse_text(value, where)
    if not value:
        raise ConfigError(f"{where}: an empty list; {_ACCEPTED}")
    return tuple(_parse_text(text, where) for text in value)


def _parse_text(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise ConfigError(f"{where}: found {kind_of(text)}; {_ACCEPTED}")
    if not text.strip():
        raise ConfigError(f"{where}: found {text!r}, which says nothing; {_ACCEPTED}")
    if "{class_name}" in text:
        raise ConfigError(f"{where}: found {{class_name}} in {text!r}, which no template is made of; {_ACCEPTED}")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(f"{where}: found half a character in {text!r}; {_ACCEPTED}")
    return " ".join(text.split())


def _shortest_names(classes: Sequence[ClassInfo], entries: dict[str, Entry], file: str | None) -> dict[str, str]:
    """Class name -> the name for the template; classes with a whole prompt have none."""
    lists = {info.name: entries.get(info.name, (info.prompt_name,)) for info in classes}
    starts = {
        name: [", ".join(words[: count + 1]) for count in range(len(words))] for name, words in lists.items() if not isinstance(words, str)
    }
    heard = {name: {_heard(start) for start in options} for name, options in starts.items()}
    holders = Counter(start for forms in heard.values() for start in forms)
    chosen = {name: next((o for o in options if holders[_heard(o)] == 1), None) for name, options in starts.items()}
    for name in chosen:
        if chosen[name] is None and name in entries:
            longest = starts[name][-1]
            other = next(other for other, forms in heard.items() if other != name and _heard(longest) in forms)
            raise ConfigError(
                f"finetune.prompt_file {file}: class {name!r}: all its names, {longest!r}, also begin those of class {other!r}; "
                "accepted: a list with a broader name at its end that the other does not have, or a whole prompt"
            )
    return {name: start or starts[name][0] for name, start in chosen.items()}


def _require_no_twins(prompts: dict[str, str], file: str | None) -> None:
    where = "finetune.prompt_template" if file is None else f"finetune.prompt_file {file}"
    seen: dict[str, str] = {}
    for name, prompt in prompts.items():
        other = seen.setdefault(_heard(prompt), name)
        if other != name:
            raise ConfigError(
                f"{where}: classes {other!r} and {name!r} share the prompt {prompt!r}; finetune.prompt_file can tell them apart"
            )


def _heard(text: str) -> str:
    """IF lower-cases and strips prompts, so prompts that differ only in case or spaces are identical to its text encoder."""
    return text.lower().strip()


def _states(model: Model, prompts: Sequence[str]) -> list[Text]:
    """Text states on the CPU, in batches. Raises `DataError` if they are not finite."""
    batches = []
    for start in range(0, len(prompts), _BATCH):
        with torch.inference_mode():
            text = {role: states.float().cpu() for role, states in model.encode(list(prompts[start : start + _BATCH])).items()}
        if not all(bool(states.isfinite().all()) for states in text.values()):
            raise DataError(f"{model.path}: the text encoder's states are not finite; its weights are damaged")
        batches.append(text)
    return batches


def _relative_distances(model: Model, prompts: list[str]) -> torch.Tensor:
    """Distances of prompts relative to the largest to the empty prompt, float64 [n, n]; of all roles the largest distance per pair."""
    relative = torch.zeros(len(prompts), len(prompts), dtype=torch.float64)
    batches = _states(model, [*prompts, _EMPTY])
    for role in batches[0]:
        distances = _distances([batch[role].flatten(1) for batch in batches])
        scale = distances[-1].max()
        if scale > 0:
            relative = torch.maximum(relative, distances[:-1, :-1] / scale)
    return relative


def _distances(blocks: list[torch.Tensor]) -> torch.Tensor:
    """Euclidean distances of all rows of float32 [.., width] blocks, float64 [n, n]; features are copied in blocks."""
    count = sum(len(block) for block in blocks)
    products = torch.zeros(count, count, dtype=torch.float64)
    for start in range(0, blocks[0].shape[1], _FEATURES):
        # In float32, rounding of nearly equal squares would exceed the differences between prompts.
        part = torch.cat([block[:, start : start + _FEATURES] for block in blocks]).double()
        products += part @ part.T
    squares = products.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0).sqrt()


def _unchanged(model: Model, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Names whose two prompts have the same states up to rounding."""
    olds, news = _states(model, list(before.values())), _states(model, list(after.values()))
    same: list[bool] = []
    for old, new in zip(olds, news, strict=True):
        changes = [(old[role] - new[role]).abs().flatten(1).amax(1) > _ROUNDING * old[role].abs().max() for role in old]
        same += (~torch.stack(changes).any(0)).tolist()
    return [name for name, unchanged in zip(before, same, strict=True) if unchanged]

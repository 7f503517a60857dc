"""`gda lineage`: what an output was made from, step by step back to the images, as far as the outputs are on this disk."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

from gda.artifacts.contents import FINGERPRINT_FILE
from gda.artifacts.fingerprint import Fingerprint, digest_of
from gda.errors import DataError
from gda.io.atomic import work_root
from gda.io.up_to_date import read_fingerprint

_CARDS = ("snapshot.json", "generator.json", "classifier.json", "reference.json")  # with a field `digest`
_DOCUMENTS = ("verdict.json", "settings.json", "metrics.json", "comparison.json", "ratio.json")  # identified by a digest of their content


@dataclass(frozen=True, kw_only=True)
class Output:
    """A folder that holds an output, with the digests by which other outputs refer to it."""

    path: Path

    @cached_property
    def fingerprint(self) -> Fingerprint | None:
        """None for weights from elsewhere, and for a damaged fingerprint."""
        try:
            return read_fingerprint(self.path)
        except DataError:
            return None

    @cached_property
    def digests(self) -> frozenset[str]:
        found = {str(card["digest"]) for name in _CARDS if "digest" in (card := _json(self.path / name))}
        found |= {digest_of(content) for name in _DOCUMENTS if (content := _json(self.path / name))}
        return frozenset(found | ({self.fingerprint.digest} if self.fingerprint is not None else set()))

    @property
    def about(self) -> str:
        """The external source that a card states: that of the images, or of a base's weights."""
        source = _json(self.path / "snapshot.json").get("provenance", {}).get("source") or _json(self.path / "generator.json").get("source")
        return str(source) if source else ""


@dataclass(frozen=True, kw_only=True)
class OutputOrigin:
    """An input of an output: its role and full digest, and, where it was found, that output and its own origins."""

    role: str
    digest: str
    output: Output | None
    origins: tuple["OutputOrigin", ...] = ()


@dataclass(kw_only=True)
class Lineage:
    """The chain of `root`, searched in the folders around it, in the current folder and among the averages in the work folder."""

    root: Output
    _known: list[Output] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path) -> "Lineage":
        """Raises `DataError` where the folder holds no `fingerprint.json`, or a damaged one."""
        if not (path / FINGERPRINT_FILE).is_file():
            raise DataError(f"{path}: holds no {FINGERPRINT_FILE}, so nothing is known of its origin")
        read_fingerprint(path)
        return cls(root=Output(path=path), _known=[Output(path=folder) for folder in _around(path)])

    @cached_property
    def origins(self) -> tuple[OutputOrigin, ...]:
        """The inputs of the root, each with its own inputs."""
        return self._origins(self.root, (self.root,))

    def _origins(self, output: Output, path: tuple[Output, ...]) -> tuple[OutputOrigin, ...]:
        if output.fingerprint is None:
            return ()
        found = []
        for role, recorded in output.fingerprint.inputs.items():
            digest = recorded.rpartition("@")[2]
            source = self._find(digest, path)
            origins = self._origins(source, (*path, source)) if source is not None else ()
            found.append(OutputOrigin(role=role, digest=digest, output=source, origins=origins))
        return tuple(found)

    def _find(self, digest: str, path: tuple[Output, ...]) -> Output | None:
        """An output of that content which was not made from one on `path`: an accepted set may be a copy of the set it came from."""
        held = [output for output in self._known if digest in output.digests and not self._comes_from(output, path, ())]
        # The accepted copy is later than the sampled set, and is the one that later stages read.
        return min(held, key=self._preference, default=None)

    def _preference(self, output: Output) -> tuple[int, bool, str]:
        """Lowest for the output nearest to the root; a copy in another project comes after one in this project."""
        away = Path(os.path.relpath(output.path.resolve(), self.root.path.resolve())).parts.count(os.pardir)
        return away, output.fingerprint is None or output.fingerprint.stage != "accepted", str(output.path)

    def _comes_from(self, output: Output, path: tuple[Output, ...], seen: tuple[Output, ...]) -> bool:
        if any(output.path.resolve() == other.path.resolve() for other in path):
            return True
        if output.fingerprint is None or output in seen:
            return False
        wanted = {recorded.rpartition("@")[2] for recorded in output.fingerprint.inputs.values()}
        makers = {other.fingerprint.digest for other in path if other.fingerprint is not None}
        if wanted & makers:
            return True
        # An input found in several places may be any of them: the sampled set or its accepted copy.
        places = [[other for other in self._known if other != output and digest in other.digests] for digest in wanted - output.digests]
        return any(held and all(self._comes_from(other, path, (*seen, output)) for other in held) for held in places)


def describe_lineage(lineage: Lineage) -> list[str]:
    """The chain as lines: an output, the stage that made it, and below it each input with its full digest and path."""
    fingerprint = lineage.root.fingerprint
    assert fingerprint is not None, "read when it was opened"
    lines = [f"{lineage.root.path}: made by {_maker(fingerprint)}", *_lines(lineage.origins, lineage.root.about, 1)]
    return lines + [f"  with {name:<12} {version}" for name, version in fingerprint.environment.items()]


def as_json(lineage: Lineage) -> dict[str, Any]:
    """The fingerprint of the root, and its `lineage`: role, digest, path, stage and lineage of every input."""
    content = json.loads((lineage.root.path / FINGERPRINT_FILE).read_bytes())
    return dict(content) | {"lineage": [_entry(origin) for origin in lineage.origins]}


def _lines(origins: tuple[OutputOrigin, ...], about: str, depth: int) -> Iterator[str]:
    for origin in origins:
        indent, place = "  " * depth, ""
        if origin.output is not None:
            stage = f", made by {_maker(origin.output.fingerprint)}" if origin.output.fingerprint is not None else ""
            place = f"  {os.path.relpath(origin.output.path)}{stage}"
        elif origin.role in ("source", "base") and about:
            place = f"  {about}"
        yield f"{indent}from {origin.role:<12} {origin.digest}{place}"
        if origin.output is not None:
            yield from _lines(origin.origins, origin.output.about, depth + 1)


def _maker(fingerprint: Fingerprint) -> str:
    return "validate" if fingerprint.stage == "accepted" else fingerprint.stage


def _entry(origin: OutputOrigin) -> dict[str, Any]:
    output = origin.output
    where = (
        {} if output is None else {"path": str(output.path), "stage": output.fingerprint.stage if output.fingerprint is not None else None}
    )
    return {"role": origin.role, "digest": origin.digest, **where, "lineage": [_entry(one) for one in origin.origins]}


def _around(path: Path) -> list[Path]:
    """Folders that may hold an output: below those above `path`, below the current one, in pipeline steps, and averages of weights."""
    here = path.resolve()
    roots = {folder for folder in (*here.parents[:3], Path.cwd()) if folder != Path(folder.anchor)}
    steps = next((folder.parent.parent for folder in here.parents if (folder / "step.json").is_file()), None)
    places = [(root, range(1, 4)) for root in roots] + [(work_root() / "averages", range(1, 2))]
    places += [(steps, range(4, 6))] if steps is not None else []
    found: set[Path] = set()
    for root, depths in places:
        for name in (FINGERPRINT_FILE, "generator.json"):
            for depth in depths:
                # Unlike pathlib's, this glob tolerates folders that disappear meanwhile, such as those of other programs.
                cards = glob(f"{'*/' * depth}{name}", root_dir=root, include_hidden=True)
                found |= {(root / card).parent.resolve() for card in cards}
    return sorted(found)


def _json(path: Path) -> dict[str, Any]:
    """Empty for an unreadable file: a damaged output must not hide the origin of another one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

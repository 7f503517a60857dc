"""What a stage's `run` returns to its caller; not a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A generator that becomes a version of the registered model `name`.

    `path` is the published folder; it must hold the `generator.json` whose digest `tags["gda.digest"]` repeats.
    """

    name: str
    path: Path
    tags: Mapping[str, str]
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage's `run` returns: where the output is, its content digest, and what to print and track.

    Every file named here must be in the output: a run is logged later when the tracking server cannot be reached.
    """

    output: Path
    digest: str
    summary: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    series: Mapping[str, str] = field(default_factory=dict)  # curve -> the series of `tick` that says when its steps were taken
    files: tuple[Path, ...] = ()
    images: Mapping[str, list[tuple[int, Path]]] = field(default_factory=dict)  # name -> (step, PNG), one image for each step
    model: RegisteredModel | None = None
    reused: bool = False
    refused: bool = False

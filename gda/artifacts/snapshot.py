"""The index of a snapshot: classes, shards, digest and provenance."""

from typing import Literal

from pydantic import Field

from gda.artifacts.document import SCHEMA_VERSION, Document


class ClassInfo(Document):
    """A class: its stable name (the folder's) and the name that prompts use."""

    name: str
    prompt_name: str


class ShardInfo(Document):
    """One tar: file name, the split it holds, image count, sha256 of the file."""

    name: str
    split: Literal["train", "val", "test"]
    count: int = Field(ge=1)
    sha256: str


class SnapshotIndex(Document):
    """`snapshot.json`: written last, so its presence is the commit."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["real", "synthetic"]
    classes: tuple[ClassInfo, ...]
    counts: dict[str, dict[str, int]] = Field(description="split -> class name -> images")
    shards: tuple[ShardInfo, ...]
    manifest_sha256: str
    digest: str = Field(description="content: key, split, label, pixel hash of every image")
    plan_digest: str | None = Field(None, description="synthetic only: digest of the sampling plan")
    provenance: dict[str, str] = Field(default_factory=dict, description="where the images come from, e.g. source, generator digest")
    licence: str = "unknown"
    quarantined: tuple[dict[str, str], ...] = Field((), description="unreadable images left out: file and reason")

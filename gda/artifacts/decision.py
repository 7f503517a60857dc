"""`decision.json`: what the promotion gate decided, and what was done in the registry."""

from typing import Literal

from pydantic import Field

from gda.artifacts.document import SCHEMA_VERSION, Document
from gda.artifacts.evaluation import Candidate


class Decision(Document):
    """`decision.json` of promote: pure outcome of the gate, and what was done in the registry."""

    schema_version: Literal[1] = SCHEMA_VERSION
    promoted: bool
    reasons: tuple[str, ...]
    candidate: Candidate | None
    rival: str = Field(description="what the candidate was compared with: champion version or 'real'")
    model_name: str
    model_version: str | None = None
    aliases: tuple[str, ...] = ()
    dry_run: bool = False
    test_openings: int | None = Field(
        None,
        ge=1,
        exclude_if=lambda n: n is None,
        description="evaluations known to have opened the test split; null: not counted",
    )

"""A safeguard taken out, and the tests that must then fail: without that, a test may pass for any reason."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Control:
    """An edit that takes a safeguard out.

    `row` is of docs/reliability.md; `what` says in a few words what is taken out, as the page does; `edits` are pairs of a text that
    occurs once in `file` and the text in its place; each of `tests`, as pytest names them without parameters, must fail.
    """

    row: int
    what: str
    file: str
    edits: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]

    def edited(self, text: str) -> str:
        """`text`, the content of `file`, without the safeguard. Raises `ValueError` where an edit's text does not occur once."""
        for before, after in self.edits:
            if text.count(before) != 1:
                raise ValueError(f"row {self.row}, {self.what}: {self.file} has {text.count(before)} times {before!r}")
            text = text.replace(before, after)
        return text

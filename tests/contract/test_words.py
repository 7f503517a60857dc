"""Words: the field's terms in identifiers, messages and pages, instead of private words that a stranger has to learn."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_PER_10_000 = 1
# Each with its replacements.
WORDS = {
    "said saying": "message, text, reason, declared, recorded, expected",
    "ask asks asked asking unasked": "request, configured, expected; need, require",
    "draw draws drew drawn drawing redraw redraws redrew redrawn redrawing": "sample, generate, choose; plot; replace, reproduce",
    "told tells telling": "given, passed, notified; shows, states",
    "beside": "next to, with, in addition to, compared with",
    "mine theirs": "own, peer, reference",
    "culprit culprits blame blames blamed": "flagged",
    "judge judges judged judging": "validate, check, assess; the accepted set",
    "anew whoever": "again; the process that, users who",
}
FORBIDDEN = frozenset(word for words in WORDS for word in words.split())
# A rate is "per class": images a class, seeds a run.
_COUNTED = (
    "images?|records?|seeds?|tokens?|prompts?|pictures?|classifiers?|updates?|steps?|labels?|rows?|files?|shards?"
    "|batch(?:es)?|seconds|bytes"
)
_UNIT = "class|step|update|shard|image|batch|file|second|day|seed|gpu|cpu|process|point|survivor|record|tar|epoch|page|arm|prompt|worker"
RATE = re.compile(rf"\b(?:{_COUNTED}|\d+)\s+an?\s+(?:{_UNIT})\b", re.IGNORECASE)
# Names that belong to libraries, by file and pattern.
ALLOWED = {
    "tests/": r"\bdata\.draw\(|st\.DrawFn|\bdraw\(st\.|def \w+\(draw\b",  # Hypothesis
    "": r"\b(draw = )?ImageDraw(\.Draw\b)?|\bdraw\.(text|line|rectangle|ellipse|polygon|textbbox)\(",  # Pillow
}
NOT_READ = (
    "CHANGELOG.md",  # names what was before
    "gda/config/renamed.py",
    "tests/unit/config/test_renamed.py",
    "tests/contract/test_words.py",
    "pipelines/compiled/",  # made from the source
    "benchmarks/results/",
    "gda/assets/",
)


def texts() -> Iterator[tuple[str, str]]:
    """Name and content of every file that people write, without generated files."""
    named = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in named.stdout.splitlines():
        written = name.endswith((".py", ".md", ".yaml", ".toml", ".j2", ".html", ".sh", ".css")) or name in (
            "Makefile",
            "components/images/Containerfile",
        )
        if written and not name.startswith(NOT_READ) and (ROOT / name).is_file():
            yield name, (ROOT / name).read_text("utf-8")


def words_of(line: str) -> list[str]:
    """The words of a line in lower case, those inside identifiers too."""
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", line).replace("_", " ").lower())


def found_in(name: str, line: str) -> list[str]:
    """The words and rates of the list in a line, except those allowed in the file `name`."""
    for folder, pattern in ALLOWED.items():
        if name.startswith(folder):
            line = re.sub(pattern, "", line)
    return [word for word in words_of(line) if word in FORBIDDEN] + RATE.findall(line)


def test_the_words_of_the_list_are_rare() -> None:
    """Protects readers from private words: at most 1 in 10,000 of all that is written here."""
    total, found = 0, []
    for name, text in texts():
        for number, line in enumerate(text.splitlines(), 1):
            total += len(words_of(line))
            found += [f"{name}:{number}: {word}" for word in found_in(name, line)]
    assert total > 100_000, "the files were not found"
    assert len(found) * 10_000 <= MOST_PER_10_000 * total, "\n".join([f"{len(found)} in {total:,} words", *found[:200]])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("what was drawn_side of", ["drawn"]),
        ("class DrawSettings:", ["draw"]),
        ("images a class", ["images a class"]),
        ("20 a class, once", ["20 a class"]),
        ("the images of a class", []),
        ("sampled per class, as stated", []),
        ("essays and saids", []),
    ],
)
def test_what_is_found(line: str, expected: list[str]) -> None:
    """Guards the test above against finding nothing."""
    assert found_in("gda/x.py", line) == expected


def test_hypothesis_and_pillow_keep_their_names() -> None:
    """What libraries call their functions is not ours to change; the same word elsewhere in such a line is found."""
    assert found_in("tests/fuzz/x.py", "n = data.draw(st.integers())  # as drawn") == ["drawn"]
    assert found_in("gda/x.py", "n = data.draw(1)") == ["draw"]
    assert found_in("gda/x.py", "draw = ImageDraw.Draw(image)") == []

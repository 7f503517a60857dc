"""Secret values where none may be: in environments, words of a command, settings and Secrets of a file that is checked in."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from manifests.documents import KubernetesObject, ManifestFinding, finding

_SECRET_NAME = re.compile(r"(?i)(passw|secret|token|api_?key|access_?key|private_?key|credential)")
# Names that speak of a secret and hold none: where it is, what it is called, how long it lasts.
_ABOUT_SECRET = re.compile(r"(?i)(_path|_file|_dir|_name|_ttl|_url|_uri|_seconds|_size)$")
_PATTERNS = (
    ("a password in an address", re.compile(r"[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/@$]+@")),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
    ("an access key", re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("a token", re.compile(r"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})")),
)


def in_words(words: Iterable[Any]) -> Iterator[str]:
    """What each word gives away; no word is repeated, for what is printed is kept."""
    for word in words:
        for what, pattern in _PATTERNS:
            if pattern.search(str(word)):
                yield f"holds {what}"


def in_environment(variables: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Names of variables with a secret as their literal value, with what it is."""
    for variable in variables:
        name, value = str(variable.get("name", "?")), variable.get("value")
        if value in (None, ""):
            continue
        if _SECRET_NAME.search(name) and not _ABOUT_SECRET.search(name):
            yield name, "holds a secret value, by its name"
        else:
            for why in in_words([value]):
                yield name, why


def check_values(document: KubernetesObject) -> Iterator[ManifestFinding]:
    """Secrets with values, and settings that hold one."""
    for key in ("data", "stringData"):
        values = document.data.get(key) or {}
        if document.kind == "Secret" and values:
            yield finding(
                document, key, f"holds values of {', '.join(sorted(values))}", "no Secret in a file; README.md says how to make them"
            )
        if document.kind == "ConfigMap":
            for name, why in in_environment([{"name": name, "value": value} for name, value in values.items()]):
                yield finding(document, f"{key}.{name}", why, "a Secret, by reference")

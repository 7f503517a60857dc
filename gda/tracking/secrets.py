"""Text without secrets: addresses lose user, password and tokens before anything is printed, raised, or written to MLflow."""

import os
import re

HIDDEN = "***"
# Names of what is secret, in a query, a header, JSON or an environment variable.
_NAME = (
    r"(?:pass(?:word|wd|phrase)?|pwd|(?:access|auth|session|refresh|id)?tokens?|secrets?"
    r"|api[_-]?keys?|access[_-]?keys?(?:[_-]?id)?|sig(?:nature)?|credentials?)"
)
_USER = re.compile(r"://[^\s'\"<>]*@")
_HEADER = re.compile(r"(?i)\b((?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)(?:(?:basic|bearer|token|digest|negotiate)\s+)?[^\s\"',;]+")
_SCHEME = re.compile(r"(?i)\b(basic|bearer)\s+[A-Za-z0-9+/._~=-]{12,}")
_FIELD = re.compile(rf"(?i)((?<![A-Za-z])(?:[\w.-]*[_.-])?{_NAME}[\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s&,;)}}\"'#]+)")
_AWS = re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b")
_ENVIRONMENT = re.compile(rf"(?i)(?:^|_){_NAME}$|^AWS_ACCESS_KEY_ID$")
_NO_SECRETS = ("PWD",)  # a shell's current folder


def masked(text: str) -> str:
    """`text` without user and password of addresses, tokens and keys, and the values of this environment's secret variables."""
    for value in _secret_values():
        text = text.replace(value, HIDDEN)
    text = _USER.sub("://", text)
    text = _HEADER.sub(rf"\1{HIDDEN}", text)
    text = _SCHEME.sub(rf"\1 {HIDDEN}", text)
    text = _FIELD.sub(rf"\1{HIDDEN}", text)
    return _AWS.sub(HIDDEN, text)


def _secret_values() -> list[str]:
    """Longest first, so that no part of one is left; short ones are words that text may hold for other reasons."""
    names = [name for name in os.environ if _ENVIRONMENT.search(name) and name not in _NO_SECRETS]
    values = {os.environ[name] for name in names if len(os.environ[name]) >= 6}
    return sorted(values, key=len, reverse=True)

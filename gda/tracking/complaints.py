"""Errors of MLflow and of the stores behind it, each as one error of gda with its remedy.

`TryAgainError` (75) is only for temporary failures; `ConfigError` (2) is an address or a name that MLflow never accepts; `MissingError`
(5) is an account, a schema, a certificate, space. Any other error passes through: it is a defect of gda.
"""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gda.errors import ConfigError, GdaError, MissingError, TryAgainError
from gda.tracking.secrets import masked

_SQL_USER = r"password authentication failed|no password supplied|access denied for user|role \S+ does not exist|no pg_hba"
_ACCEPTED = "accepted: http(s)://HOST, sqlite:///FILE, postgresql://HOST/NAME"
# The first pattern that fits the message decides; {uri} is the address without secrets.
_COMPLAINTS: tuple[tuple[str, type[GdaError], str], ...] = (
    (
        r"invalid host header|dns rebinding",
        MissingError,
        "MLflow at {uri} refuses this host name; start the server with it among --allowed-hosts, or use a name it allows",
    ),
    (
        r"filesystem tracking backend|filestore|file store",
        ConfigError,
        "MLFLOW_TRACKING_URI {uri}: MLflow takes no folder of files any more; "
        "accepted: sqlite:///FILE or a server; `mlflow migrate-filestore` carries the runs over",
    ),
    (
        r"unsupported uri|invalid sqlite url|unity catalog tracking uri"
        r"|could not parse sqlalchemy url|invalid ipv6|no connection adapters|invalid url"
        r"|no host supplied|can't load plugin|could not find a registered artifact repository|databricks credential|failed to parse"
        r"|invalid port|port could not be cast|not supported by mlflow",
        ConfigError,
        "MLFLOW_TRACKING_URI {uri}: not an address that MLflow takes; " + _ACCEPTED,
    ),
    (
        r"out-of-date database schema|can't locate revision",
        MissingError,
        "MLflow's database at {uri} has an out-of-date schema; back it up, then run `mlflow db upgrade {uri}`",
    ),
    (
        r"must be in the 'active' state|deleted experiment|experiment .* is deleted|deleted state",
        MissingError,
        "MLflow at {uri}: the experiment or run was deleted; restore it with `mlflow experiments restore`, "
        "or set MLFLOW_EXPERIMENT_NAME to another",
    ),
    (r"invalid (registered )?model name|invalid name for", ConfigError, "model_name: MLflow does not take this name ({message})"),
    (
        r"certificate|sslerror|ssl:|wrong_version_number|tlsv1|unknown protocol",
        MissingError,
        "MLflow at {uri}: the TLS connection is refused ({message}); name its authority's certificate in MLFLOW_TRACKING_SERVER_CERT_PATH, "
        "or use http:// where the server has no TLS",
    ),
    (
        r"no space left|disk quota|quota|disk is full|could not extend file|resource_limit_exceeded|resource_exhausted|insufficient storage"
        r"|entity too large",
        MissingError,
        "MLflow at {uri} has no room for this ({message}); make room or raise its quota, then run the same command",
    ),
    (
        r"psycopg2?\.errors\.(uniqueviolation|duplicatetable)",
        TryAgainError,
        "MLflow's database at {uri} is being made or written by another process ({message})",
    ),
    (r"database is locked|too many (clients|connections)|deadlock", TryAgainError, "MLflow's database at {uri} is busy"),
    (_SQL_USER, MissingError, "MLflow's database at {uri} refuses this account; mend user and password in MLFLOW_TRACKING_URI"),
    (
        r"database \S+ does not exist|unknown database",
        MissingError,
        "MLflow's database at {uri} does not exist; create it, or mend its name in MLFLOW_TRACKING_URI",
    ),
    (
        r"readonly database|read-only|permission denied for",
        MissingError,
        "MLflow's database at {uri} may not be written by this account",
    ),
    (
        r"file is not a database|malformed|already exists\)?\s*\[sql|no such (table|column)|unable to open database",
        MissingError,
        "MLflow's database at {uri} is broken ({message}); restore it from a backup, or move it away",
    ),
    (
        r"nosuchbucket|the specified bucket does not exist",
        MissingError,
        "MLflow's artifact store has no such bucket; create it, or mend the server's --artifacts-destination",
    ),
    (
        # A server that passes artifacts on answers with the status that its own store gave it.
        r"(unauthenticated|permission_denied)\W+message\W+failed to list artifacts",
        MissingError,
        "MLflow's artifact store refuses the account of the server at {uri} ({message}); mend the credentials that the server has "
        "(for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
    ),
    (
        r"nocredentials|partialcredentials|unable to locate credentials|accessdenied|invalidaccesskeyid|signaturedoesnotmatch|expiredtoken"
        r"|defaultcredentialserror|clientauthenticationerror|invalidtoken",
        MissingError,
        "MLflow's artifact store refuses this account ({kind}); set its credentials (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
    ),
)
_STATUS: dict[int, tuple[type[GdaError], str]] = {
    401: (
        MissingError,
        "MLflow at {uri} does not know this account (401); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
        "or MLFLOW_TRACKING_TOKEN",
    ),
    403: (MissingError, "MLflow at {uri} does not permit this to the account (403: {message}); its administrator can grant the permission"),
    404: (ConfigError, "MLFLOW_TRACKING_URI {uri}: what answers there is no MLflow server (404); " + _ACCEPTED),
    405: (ConfigError, "MLFLOW_TRACKING_URI {uri}: what answers there is no MLflow server (405); " + _ACCEPTED),
    407: (MissingError, "the proxy on the way to MLflow at {uri} wants credentials (407); set them in HTTPS_PROXY"),
    413: (MissingError, "MLflow at {uri} has no room for a file of this size (413); raise the limit of its proxy"),
    501: (MissingError, "MLflow at {uri} is too old for this (501); upgrade the server"),
    507: (MissingError, "MLflow at {uri} is full (507); make room there, then run the same command"),
}
_FAILING = {500, 502, 503, 504}
_MAY_PASS = {408, 425, 429} | _FAILING
_NO_SERVER = "MLFLOW_TRACKING_URI {uri}: what answers there is no MLflow server, or a login page; " + _ACCEPTED
_NOT_JSON = "not in a valid json format"
_AWAY = re.compile(
    r"(?i)connection refused|could not connect|server closed the connection|timeout|timed out|could not translate host"
    r"|connection reset|connection aborted|max retries exceeded|too many \d+ error responses|temporarily_unavailable"
    r"|request_limit_exceeded|slowdown|endpointconnectionerror|connecttimeout|readtimeout|lost connection|can't connect"
)
_ANSWERS = (r"Response body: '(.*)'", r"Response text: (.*)", r"\(Caused by (.*)\)")
_HUNG_UP = re.compile(r"(?i)connection ?(aborted|reset)|broken ?pipe|remote ?(end closed|disconnected)")
_HTTP = re.compile(r"error code (\d{3})|too many (\d{3}) error responses|\b(\d{3}) (?:client|server) error", re.IGNORECASE)
_OURS = (TypeError, AttributeError, NameError, AssertionError, LookupError, NotImplementedError, RecursionError)


@dataclass(frozen=True)
class _Heard:
    """An error and its causes: all messages, one line for the user, the kinds of errors, and the HTTP status if there is one."""

    everything: str
    message: str
    kinds: tuple[str, ...]
    status: int | None


@contextmanager
def mlflow_errors() -> Iterator[None]:
    """Turn an error of MLflow or a store inside the block into a `GdaError` without secrets; anything else passes through."""
    try:
        yield
    except GdaError:
        raise
    except Exception as error:
        complaint = complaint_of(error)
        if complaint is None:
            raise
        raise complaint from None


@contextmanager
def explained(probe: Callable[[], object]) -> Iterator[None]:
    """Around uploads: if the server fails or hangs up without a reason, find it by `probe`, a request that needs the same store.

    A server that refuses an upload before reading it hangs up, and its answer (5xx) may be lost. Raises the reason for which `probe` is
    refused, such as a missing bucket or wrong keys, as a `GdaError`; else the error of the upload.
    """
    try:
        yield
    except Exception as error:
        heard = _hear(error)
        unsaid = heard.status in _FAILING or (heard.status is None and _HUNG_UP.search(heard.everything))
        if unsaid and isinstance(complaint_of(error), TryAgainError):
            with mlflow_errors():
                probe()
        raise


def complaint_of(error: BaseException) -> GdaError | None:
    """The `GdaError` for `error`, with its remedy; None for a defect of gda."""
    if isinstance(error, GdaError):
        return error
    heard = _hear(error)
    uri = masked(os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")
    by_words = next(((kind, words) for pattern, kind, words in _COMPLAINTS if re.search(pattern, heard.everything, re.IGNORECASE)), None)
    if isinstance(error, _OURS) and not _of_stores(error):
        return None
    if by_words is not None and (_of_stores(error) or isinstance(error, (OSError, ValueError))):
        return _error(*by_words, heard, uri)
    return _by_kind(error, heard, uri)


def _by_kind(error: BaseException, heard: _Heard, uri: str) -> GdaError | None:
    if isinstance(error, ModuleNotFoundError):
        return MissingError(f"MLflow at {uri} needs the Python package {error.name!r}, which this environment lacks")
    if heard.status in _STATUS and not _is_answer(error):
        return _error(*_STATUS[heard.status], heard, uri)
    if _NOT_JSON in heard.everything.lower():
        return _error(ConfigError, _NO_SERVER, heard, uri)
    if heard.status in _FAILING:
        return TryAgainError(
            f"MLflow at {uri} fails to answer ({heard.status}: {heard.message}); if that stays, its log says what it lacks: "
            "its database, its artifact store"
        )
    refused = heard.status is not None and heard.status not in _MAY_PASS
    if not refused and (heard.status in _MAY_PASS or _of_network(error) or (_of_stores(error) and _AWAY.search(heard.everything))):
        return TryAgainError(f"MLflow could not be reached at {uri} ({heard.kinds[0]}: {heard.message})")
    if isinstance(error, OSError) and (error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)):
        return MissingError(
            f"MLflow's artifacts: {error.filename or uri}: {error.strerror}; was the project moved, or the disk taken away? "
            "Bring it back, then run the same command"
        )
    if _of_stores(error):
        return MissingError(f"MLflow at {uri} refuses this: {heard.message}")
    return None


def _error(kind: type[GdaError], words: str, heard: _Heard, uri: str) -> GdaError:
    return kind(words.format(uri=uri, message=heard.message, kind=heard.kinds[0]))


def _is_answer(error: BaseException) -> bool:
    """Whether an MLflow server answered, for example that an entity does not exist, and not some other server at its address."""
    return getattr(error, "error_code", None) in ("RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_PARAMETER_VALUE")


def _hear(error: BaseException) -> _Heard:
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain and len(chain) < 10:
        chain.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    everything = "\n".join(f"{type(each).__name__}: {each}" for each in chain)
    return _Heard(everything, _line(error), tuple(type(each).__name__ for each in chain), _status(chain, everything))


def _line(error: BaseException) -> str:
    """The first line of the message, without the address that MLflow repeats in it, cut to a line's length."""
    text = str(error).strip() or type(error).__name__
    found = next(filter(None, (re.search(pattern, text, re.DOTALL) for pattern in _ANSWERS)), None)
    text = found.group(1) if found else text
    if message := re.match(r'\{.*"message": ?("(?:[^"\\]|\\.)*")', text, re.DOTALL):
        text = str(json.loads(message.group(1), strict=False))
    line = masked(" ".join(text.split()))
    return (line if len(line) <= 200 else line[:197] + "...").rstrip(".")


def _status(chain: list[BaseException], everything: str) -> int | None:
    for error in chain:
        response = getattr(error, "response", None)
        number = getattr(response, "status_code", None) or getattr(error, "status_code", None)
        if number is None and isinstance(response, dict):  # of the clouds' libraries
            number = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(number, int):
            return number
    if found := _HTTP.search(everything):
        return int(next(group for group in found.groups() if group))
    if type(chain[0]).__name__ == "RestException":  # its class shows that a server answered; others default to 500
        return int(chain[0].get_http_status_code())  # type: ignore[attr-defined]
    if getattr(chain[0], "error_code", None) in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return 403 if chain[0].error_code == "PERMISSION_DENIED" else 401  # type: ignore[attr-defined]
    return None


_STORES = (
    "mlflow",
    "sqlalchemy",
    "sqlite3",
    "alembic",
    "requests",
    "urllib3",
    "botocore",
    "boto3",
    "google",
    "azure",
    "psycopg",
    "pymysql",
)


def _of_stores(error: BaseException) -> bool:
    """Whether MLflow or a store raised the error; the libraries of clouds have only the names of their errors in common."""
    kinds = [kind for kind in type(error).__mro__ if kind.__module__ != "builtins"]
    return any(kind.__module__.split(".")[0] in _STORES for kind in kinds) or any(
        re.search(r"Credential|ClientError|EndpointConnection", kind.__name__) for kind in kinds
    )


def _of_network(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    return type(error).__module__.split(".")[0] in ("requests", "urllib3") and type(error).__name__ != "JSONDecodeError"

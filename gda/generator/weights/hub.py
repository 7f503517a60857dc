"""Base weights by hub id: `ORG/NAME[@REVISION][:VARIANT]`, found in the local hub cache or downloaded into it."""

import glob
import logging
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gda.errors import DataError, MissingError, UsageError
from gda.generator.weights.json_files import read_config_object
from gda.generator.weights.layout import INDEX, UNUSED, Files, index_paths, missing_files, used_files
from gda.io.hub_cache import cache_dir as cache_dir

HUB_ID_FORM = "ORG/NAME[@REVISION][:VARIANT]"
PROBE_SECONDS = 10.0
_DOWNLOADING = "GDA_HUB_DOWNLOAD"  # set together with HF_HUB_OFFLINE when this program, not the user, set the latter
_TRUE = {"1", "ON", "YES", "TRUE"}  # the values that huggingface_hub reads as true
_WORD = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_FORM = re.compile(rf"(?P<repo>{_WORD}/{_WORD})(?:@(?P<revision>[\w][\w./+-]*))?(?::(?P<variant>{_WORD}))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Small files that describe the rest; the weights to download are chosen after reading them.
_CARDS = (INDEX, f"*/{INDEX}", "generator.json", "README*", "LICENSE*", "LICENCE*")

CheckFile = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class HubId:
    """A repository of models on a hub; a revision of None is its main branch, a variant of None its plain weights."""

    repo: str
    revision: str | None = None
    variant: str | None = None

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "") + (f":{self.variant}" if self.variant else "")


@dataclass(frozen=True, kw_only=True)
class HubSnapshot(Files):
    """A whole revision in the local cache; `pinned` names the commit."""

    pinned: HubId


def parse(name: str) -> HubId | None:
    """The hub id that `name` is, or None where it has another form. The caller checks whether a directory of that name exists."""
    match = _FORM.fullmatch(name)
    if match is None or "--" in match["repo"] or ".." in name or match["repo"].endswith(".git"):
        return None
    return HubId(repo=match["repo"], revision=match["revision"], variant=match["variant"])


def with_flags(base: str, revision: str | None, variant: str | None) -> str:
    """`base` with `--revision` and `--variant` written into it.

    Raises `UsageError` if `base` is not a hub id (a directory is not), if it contradicts a flag, or if a flag is malformed.
    """
    given = {k: v for k, v in {"revision": revision, "variant": variant}.items() if v is not None}
    if not given:
        return base
    spec = None if Path(base).is_dir() else parse(base)
    if spec is None:
        raise UsageError(f"--{next(iter(given))} {next(iter(given.values()))}: goes with a hub id {HUB_ID_FORM} as base, got {base}")
    for field, value in given.items():
        if getattr(spec, field) not in (None, value):
            raise UsageError(f"--{field} {value}: contradicts the base {base}; give it once")
        one = replace(HubId(repo=spec.repo), **{field: value})
        if not value or parse(str(one)) != one:
            raise UsageError(f"--{field} {value!r}: not a {field} of a hub id {HUB_ID_FORM}")
    return str(replace(spec, **given))


def offline_by_default() -> None:
    """Set HF_HUB_OFFLINE so that only `locate` uses the network; does nothing if the user has set it."""
    if "HF_HUB_OFFLINE" in os.environ:
        return
    if not _is_true("TRANSFORMERS_OFFLINE"):
        os.environ[_DOWNLOADING] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"


def locate(spec: HubId, check: CheckFile) -> HubSnapshot:
    """The snapshot of `spec` in the local hub cache, downloaded first if files are missing there.

    `check` is called with the folder once its `model_index.json` is there, and raises `DataError` to prevent the download of the rest. Only
    the files of `used_files` are downloaded: no pickles, no other variants, no single-file checkpoints. Raises `MissingError`, with the
    command for the download, without network or access, `DataError` for an unsupported repository.
    """
    found = _find(spec, check)
    if found is None:
        _download(spec, check)
        found = _find(spec, check)
    if found is None:
        raise MissingError(f"{spec}: is not whole in the hub cache {cache_dir()} after its download; {_advice(spec)}")
    return found


def in_cache(spec: HubId, check: CheckFile) -> bool:
    """Whether `locate` finds `spec` whole in the local hub cache."""
    return _find(spec, check) is not None


def download_command(spec: HubId) -> str:
    """The `hf download` that fetches what `locate` needs, for a machine with network."""
    weights = ["*/*.safetensors"] if spec.variant is None else [f"*/*.{spec.variant}.safetensors", f"*/*.{spec.variant}-*.safetensors"]
    words = ["hf", "download", spec.repo, *(["--revision", spec.revision] if spec.revision else [])]
    for pattern in ("*.json", "*.txt", "*.model", "README*", *weights):
        words += ["--include", pattern]
    # A dot inside a weights file's name marks a variant.
    for pattern in (*(["*/*.*.safetensors"] if spec.variant is None else []), *(f"{part}/*" for part in sorted(UNUSED))):
        words += ["--exclude", pattern]
    return shlex.join(words)


def _find(spec: HubId, check: CheckFile) -> HubSnapshot | None:
    """The cached snapshot, or None if a file is missing. Raises `DataError` if a cached listing rules the repository out."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(spec.repo, revision=spec.revision, cache_dir=cache_dir(), local_files_only=True, allow_patterns=[INDEX])
        )
    except LocalEntryNotFoundError:
        return None
    listing = _cached_listing(spec, folder.name)
    files = listing if listing is not None else {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    indexes = _indexes(folder, files, check)
    if indexes is None:
        return None
    try:
        used = used_files(str(spec), files, indexes, spec.variant)
    except DataError:
        # Without a listing, files that the folder lacks may exist in the repository.
        if listing is None:
            return None
        raise
    if missing_files(folder, used):
        return None
    return HubSnapshot(name=str(spec), folder=folder, used=used, pinned=replace(spec, revision=folder.name))


def _indexes(folder: Path, files: Collection[str], check: CheckFile) -> dict[str, dict[str, Any]] | None:
    """Every `model_index.json` by its path, once `check` has passed the folder; None while one is not on disk."""
    names = index_paths(files)
    if not all((folder / name).is_file() for name in names):
        return None
    if names:
        check(folder)
    return {name: read_config_object(folder / name) for name in names}


def _cached_listing(spec: HubId, commit: str) -> dict[str, int] | None:
    """Size in bytes by path of the repository's files at a commit, as an earlier download stored it; None if none did."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path: file.size for file in get_cached_repo_tree(spec.repo, revision=commit, cache_dir=cache_dir())}
    except CachedRepoTreeNotFoundError:
        return None


def _download(spec: HubId, check: CheckFile) -> None:
    if not _may_download():
        raise MissingError(f"{_not_here(spec)}, and HF_HUB_OFFLINE forbids downloading it; {_advice(spec)}")
    from huggingface_hub import HfApi

    with _online(), _explained(spec):
        endpoint = os.environ.get("HF_ENDPOINT") or None
        # First because it is the only call with a time limit: it detects a network that drops packets.
        HfApi(endpoint=endpoint).model_info(spec.repo, revision=spec.revision or "main", timeout=PROBE_SECONDS)
        folder = Path(_fetch(spec, list(_CARDS), endpoint))
        listing = _cached_listing(spec, folder.name) or {}
        used = used_files(str(spec), listing, _indexes(folder, listing, check) or {}, spec.variant)
        wanted = [file for file in used.values() if not (folder / file).is_file()]
        size = sum(listing[file] for file in wanted) / 1e9
        # A warning because Python shows those without set-up: the user should know about a download of gigabytes.
        logging.getLogger(__name__).warning("downloading %s: %d files, %.1f GB, to %s", spec, len(wanted), size, folder)
        _fetch(replace(spec, revision=folder.name), [glob.escape(file) for file in wanted], endpoint)


def _fetch(spec: HubId, patterns: list[str], endpoint: str | None) -> str:
    from huggingface_hub import snapshot_download

    folder: str = snapshot_download(
        spec.repo, revision=spec.revision, cache_dir=cache_dir(), allow_patterns=patterns, endpoint=endpoint, max_workers=4
    )
    return folder


@contextmanager
def _explained(spec: HubId) -> Iterator[None]:
    """Turn a failed download into a one-line `MissingError` with its cause and advice."""
    from huggingface_hub import errors

    page = f"{os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}/{spec.repo}"
    log_in = "run `hf auth login` (or set HF_TOKEN)"
    unseen = f"and the hub shows none: check the name at {page}; where it is private or its licence must be accepted, {log_in}"
    try:
        yield
        return
    except errors.GatedRepoError:
        reason = f"and the hub restricts access to it: accept its licence at {page} and {log_in}"
    except errors.RepositoryNotFoundError:
        reason = unseen
    except errors.RevisionNotFoundError:
        raise MissingError(f"{spec}: the hub has no revision {spec.revision or 'main'} of {spec.repo}; see {page}") from None
    except errors.HfHubHTTPError as error:
        # Hubs also answer 401 for missing repositories; the library makes the distinction only for huggingface.co itself.
        others = {401: unseen, 403: f"and access is refused (403): accept the licence at {page}, where there is one, and {log_in}"}
        status = error.response.status_code
        reason = others.get(status, f"and the hub answers {status}; try again later")
    except (OSError, ValueError, errors.HTTPError, errors.XetDownloadError) as error:
        reason = f"and the download failed ({_first_line(error)})"
    raise MissingError(f"{_not_here(spec)}, {reason}; or {_advice(spec)}") from None


@contextmanager
def _online() -> Iterator[None]:
    """Allow network access within this context only, in spite of `offline_by_default`."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _may_download() -> bool:
    return _DOWNLOADING in os.environ or not (_is_true("HF_HUB_OFFLINE") or _is_true("TRANSFORMERS_OFFLINE"))


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in _TRUE


def _not_here(spec: HubId) -> str:
    return f"{spec}: no such directory, as a hub id it is not whole in the hub cache {cache_dir()}"


def _advice(spec: HubId) -> str:
    or_folder = "" if spec.variant else ", or add --local-dir DIR there and give DIR"
    return f"where there is a network run `{download_command(spec)}` and copy what it puts below HF_HOME/hub to {cache_dir()}{or_folder}"


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

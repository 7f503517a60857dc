"""arms: for each compared arm, digests of its training inputs, so that `dvc repro` retrains only the arms whose inputs changed."""

import json
from collections.abc import Mapping
from pathlib import Path

from gda.artifacts.document import read_document
from gda.artifacts.fingerprint import digest_of
from gda.artifacts.outcome import Outcome
from gda.artifacts.snapshot import SnapshotIndex
from gda.config.arm import Arm
from gda.config.load import Config
from gda.data.store.soft_labels import soft_labels_input
from gda.errors import DataError, UsageError
from gda.io.atomic import write_bytes
from gda.io.rewriting import rewriting
from gda.io.shards import sha256_of
from gda.io.skipped_arms import skipped_because

_INDEX, _FINGERPRINT = "snapshot.json", "fingerprint.json"


def run(config: Config, *, sets: Mapping[str, Path | None], needs: Mapping[Arm, tuple[str, ...]], out: Path) -> Outcome:
    """Write `<arm>.json` to `out` for every arm of `config.classify.arms`: a digest of each of the `sets` that it `needs`, by role.

    A file is only written where its content changes. Raises `UsageError` where an arm needs a set that is not given, `DataError` where
    one is not there.
    """
    digests: dict[str, str] = {}
    with rewriting(out):
        for arm in config.classify.arms:
            content = {role: _identity(role, _given(arm, role, sets)) for role in needs[arm]}
            text = json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"
            path = out / f"{arm}.json"
            if not path.is_file() or path.read_bytes() != text:
                write_bytes(path, text)
            digests[str(arm)] = digest_of(content)
    return Outcome(output=out, digest=digest_of(digests), summary=f"wrote what {len(digests)} arms are trained on to {out}", reused=True)


def _given(arm: Arm, role: str, sets: Mapping[str, Path | None]) -> Path:
    path = sets.get(role)
    if path is None:
        raise UsageError(f"arm {arm} needs --{role.replace('_', '-')}")
    return path


def _identity(role: str, path: Path) -> dict[str, str]:
    """Identify the output at `path`: a file by its bytes, a snapshot by its content, any other output by its recipe."""
    if path.is_file():
        return {"sha256": sha256_of(path)}
    if (why := skipped_because(path)) is not None:
        return {"skipped": why}
    if (path / _INDEX).is_file():
        index = read_document(path / _INDEX, SnapshotIndex)
        return {"digest": index.digest, **soft_labels_input(path, index)}
    if (path / _FINGERPRINT).is_file():
        return {"fingerprint": sha256_of(path / _FINGERPRINT)}
    raise DataError(f"{role}: {path} is not there")

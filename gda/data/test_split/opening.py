"""Opens the test split: first a line in the ledger, then the images."""

from pathlib import Path
from typing import Literal, get_args

from gda.data.images.codecs import LANCZOS, Interpolation
from gda.data.store.in_memory import ImageSet, decode_split
from gda.data.store.snapshot import Snapshot
from gda.data.test_split.ledger import record_test_split
from gda.errors import UsageError

Purpose = Literal["evaluate", "leak_check"]


def open_test(
    snapshot: Snapshot,
    purpose: Purpose,
    *,
    size: int,
    scratch: Path | None = None,
    interpolation: Interpolation = LANCZOS,
    work: str | None = None,
) -> ImageSet:
    """Decode the test split for one of two purposes, after recording purpose and `work`, the digest of the fingerprint, in the ledger.

    Raises as `load_images` does.
    """
    if purpose not in get_args(Purpose):
        raise UsageError(f"purpose {purpose!r}: the test split is opened for {' or '.join(get_args(Purpose))}")
    record_test_split(snapshot, purpose, work=work)
    return decode_split(snapshot, "test", size, scratch, interpolation, of_test=True)

"""The split in the name of a file with many images: train-000.tar, imagenet1k-validation-00.tar, data/test-00000-of-00001.parquet."""

from collections.abc import Sequence
from pathlib import Path

from gda.data.sources.splits import splits_of
from gda.errors import DataError


def splits_of_files(paths: Sequence[Path], *, strict: bool) -> list[str | None]:
    """The split of each file by its name, else by its folder's name; None for all files where no name is a split.

    If the user listed the files or gave a pattern (not `strict`) and all are of one split, the name is ignored. Raises `DataError` when
    some are named as splits and others not.
    """
    found = splits_of([path.stem for path in paths])
    if not any(found):
        found = splits_of([path.parent.name for path in paths])
    if len(set(found)) == 1 and (not strict or found[0] is None):
        return [None] * len(paths)
    if None in found:
        plain, named = paths[found.index(None)], next(path for path, split in zip(paths, found, strict=True) if split)
        raise DataError(f"{named}: is named as a split, {plain.name} is not; select files by a pattern, or set snapshot.split_column")
    return found

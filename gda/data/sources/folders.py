"""Sources that are folders of images: class folders with or without split folders, ImageNet, and the Hugging Face imagefolder."""

from collections import Counter
from pathlib import Path

from gda.data.images.listing import Listing, list_folder
from gda.data.sources.imagenet_folders import read_imagenet
from gda.data.sources.layouts import Reading, read_layout, require_filled
from gda.data.sources.source import ACCEPTED_SOURCES, Columns, ImageSource, Slice, SourceRecord, digest_files, path_key, printable
from gda.data.sources.tables import METADATA_FILES, metadata_files, read_tables
from gda.errors import DataError, UsageError


def list_source(root: Path) -> Listing:
    """Lists the folder. Raises `UsageError` where it is missing or a snapshot, `DataError` where it cannot be read."""
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; accepted sources: {ACCEPTED_SOURCES}")
    if (root / "snapshot.json").exists():
        raise UsageError(f"{root}: is a snapshot already")
    try:
        return list_folder(root)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror})") from None


def read_folder(root: Path, columns: Columns, *, layout: str | None = None, listing: Listing | None = None, progress: bool) -> ImageSource:
    """List an image folder; `layout` settles what its folders mean where that is ambiguous, see `gda.data.sources.layouts`.

    Raises `DataError` for a class without images, files outside the folder, malformed rows and ambiguous folders; `UsageError` when there
    is no such folder or `columns` are named for a folder without metadata.
    """
    listing = listing or list_source(root)
    tables = [] if layout else metadata_files(listing.root)
    if tables:
        left_out = listing.left_out(used=tables)
        records, rejected, class_names = read_tables(root, tables, columns)
        listed = {record.name for record in records}
        unlisted = sum(_relative(path, root) not in listed for path in listing.root.all_images())
        left_out += Counter({"not listed in the metadata": unlisted} if unlisted else {})
        description = "Hugging Face imagefolder"
    else:
        columns.refuse(f"{root} has no {' or '.join(METADATA_FILES)} to find it in")
        imagenet = None if layout else read_imagenet(listing.root)
        reading = read_layout(listing.root, layout) if imagenet is None else require_filled(imagenet)
        records, rejected = _of_class_folders(root, reading)
        left_out = listing.left_out(used=reading.used) + reading.left_out
        left_out += Counter({f"outside the layout {layout}": reading.outside} if reading.outside else {})
        class_names = {placed.class_name for placed in reading.placed}
        description = "image folder" if not reading.used else f"ImageNet, labels from {', '.join(path.name for path in reading.used)}"
    return ImageSource(
        records=records,
        class_names=sorted(class_names),
        content_digest=digest_files(records, progress=progress),
        description=description,
        rejected=rejected,
        left_out=left_out,
    )


def images_below(folder: Path, root: Path) -> list[Path]:
    """Image files anywhere below, by content, sorted by their path from `root`."""
    return sorted(list_source(folder).root.all_images(), key=lambda path: _relative(path, root))


def _of_class_folders(root: Path, reading: Reading) -> tuple[list[SourceRecord], list[tuple[str, str]]]:
    if not reading.placed:
        raise DataError(
            f"{root}: holds no class folders, no {' or '.join(METADATA_FILES)}, and no tars or parquet files; each class needs a folder"
        )
    records = []
    for placed in reading.placed:
        for path in placed.folder.all_images():
            name = _relative(path, root)
            record = SourceRecord(name=name, key=path_key(name), class_name=placed.class_name, payload=Slice(path=path), split=placed.split)
            records.append(record)
    return records, [(_relative(path, root), "not in a class folder") for path in reading.stray]


def _relative(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())

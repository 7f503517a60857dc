"""snapshot: turn images from anywhere into an immutable, digested, leak-free data set."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import PIL
from PIL import features

from gda.artifacts.fingerprint import Fingerprint, digest_of
from gda.artifacts.outcome import Outcome
from gda.artifacts.snapshot import SnapshotIndex
from gda.config.load import Config
from gda.config.sections import SnapshotConfig
from gda.data.checks.leaks import NearLeak, leak_table, near_leak_message
from gda.data.imagenet.wordnet import WordNetNames, wordnet_names
from gda.data.images.codecs import LOSSY
from gda.data.ingest.ingest import ingest, require_few_rejected
from gda.data.ingest.pool import PURPOSE, Screen, as_pool, open_real, open_screen
from gda.data.sources.readers import open_source
from gda.data.sources.source import Columns, ImageSource
from gda.data.store.classes import make_classes, normalise
from gda.data.store.snapshot import SPLITS, Snapshot, commit_snapshot
from gda.errors import DataError
from gda.io.atomic import write_bytes
from gda.io.publish import publish_once
from gda.io.up_to_date import Workspace

LEAKS_FILE = "leaks.csv"
LEFT_OUT_FILE = "left_out.csv"
_OPTIONAL = ("label_column", "layout", "pixel_range")  # of no account in a fingerprint while they are null
_SHOWN = 3


def run(
    config: Config,
    *,
    source: str,
    out: Path,
    as_synthetic: bool = False,
    pool_of: Path | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    label_column: str | None = None,
    progress: bool = False,
) -> Outcome:
    """Read `source`, split it, and publish it as a Snapshot at `out`.

    `as_synthetic` imports a set sampled elsewhere: all of it goes to train, every image is marked as synthetic, and the columns of the
    manifest that say how an image was sampled are null. Given `pool_of`, a real snapshot, the source is a pool of more real images for it:
    all of it goes to train but for images that the real set has already and near matches of its val and test, which are left out and
    listed; classes and labels are those of the real set, any of which may be empty. Raises `DataError` for images and labels that cannot
    be used, `UsageError` for a source that is not there or an `out` that holds something else.
    """
    assert pool_of is None or not as_synthetic, "a pool is of real images"
    columns = _columns(config.snapshot, split_column, group_column, label_column, all_train=as_synthetic or pool_of is not None)
    real = None if pool_of is None else open_real(pool_of)
    found = open_source(source, config.snapshot, columns, progress=progress)
    if real is not None:
        found = as_pool(found, real.classes)
    named = None if real is not None or config.snapshot.class_names == "source" else wordnet_names(found.class_names)

    def build(workspace: Workspace) -> None:
        _build(config.snapshot, found, workspace, as_synthetic, real, named, progress)

    reused = publish_once(_fingerprint(config.snapshot, found, columns, as_synthetic, real, named), out, build)
    return _outcome(out, Snapshot.open(out).index, reused=reused)


def _columns(section: SnapshotConfig, split: str | None, group: str | None, label: str | None, *, all_train: bool) -> Columns:
    """Flags before fields; sets that are all train (synthetic, pools) need neither splits nor groups."""
    if all_train:
        return Columns(split=split, group=group, label=label or section.label_column, lenient=label is None)
    return Columns(split=split or section.split_column, group=group or section.group_column, label=label or section.label_column)


def _fingerprint(
    config: SnapshotConfig, source: ImageSource, columns: Columns, as_synthetic: bool, real: Snapshot | None, named: WordNetNames | None
) -> Fingerprint:
    # Where the source lies is left out: its content is what counts, and a path would differ between machines.
    if real is not None:
        used = {"image_size", "shard_size", "max_bad_fraction", *(name for name in _OPTIONAL if getattr(config, name) is not None)}
        settings = config.model_dump(mode="json", include=used) | {"purpose": PURPOSE}
        inputs = {"source": source.content_digest, "pool_of": real.digest}
        return Fingerprint(stage="snapshot", config=settings, inputs=inputs, environment=_codecs())
    unused = {"shots", "few_shot_seed"} if config.shots is None else set()
    unused |= {name for name in _OPTIONAL if getattr(config, name) is None}
    settings = config.model_dump(mode="json", exclude={"source", "pool", "class_names"} | unused)
    settings |= {"as_synthetic": as_synthetic, "split_column": columns.split, "group_column": columns.group}
    settings |= {} if columns.label is None else {"label_column": columns.label}
    words = {} if named is None else {"class_names": digest_of([info.prompt_name for info in named.classes])}
    return Fingerprint(stage="snapshot", config=settings, inputs={"source": source.content_digest} | words, environment=_codecs())


def _codecs() -> dict[str, str]:
    """What fixes encoded and decoded bytes: Pillow and the libraries in it."""
    names = ("jpg", "libjpeg_turbo", "webp", "zlib", "zlib_ng", "libtiff")
    return {"pillow": PIL.__version__} | {name: str(version) for name in names if (version := features.version(name))}


def _build(
    config: SnapshotConfig,
    source: ImageSource,
    workspace: Workspace,
    as_synthetic: bool,
    real: Snapshot | None,
    named: WordNetNames | None,
    progress: bool,
) -> SnapshotIndex:
    folder = workspace.fresh_staging()
    require_few_rejected(source.rejected, len(source.records) + len(source.rejected), config.max_bad_fraction)
    classes = real.classes if real is not None else named.classes if named is not None else make_classes(source.class_names)
    if real is None and not as_synthetic and len(classes) < 2:
        raise DataError(
            f"the one class found is {classes[0].name!r}; a classifier needs two: give a folder a class, or set snapshot.layout or "
            "snapshot.label_column to what names the classes"
        )
    labels = {info.name: label for label, info in enumerate(classes)}
    by_source_name = {name: labels[normalise(name)] for name in source.class_names}
    screen = None if real is None else open_screen(real, scratch=workspace.work)
    result = ingest(source, folder, config=config, labels=by_source_name, as_synthetic=as_synthetic, screen=screen, progress=progress)
    _report_leaks(folder, result.near_leaks, config)
    provenance = {
        "source": source.description,
        "source_digest": source.content_digest,
        "source_compression": ", ".join(f"{name} {count}" for name, count in result.compressions.items()),
        "ignored_files": str(sum(source.left_out.values())),
    }
    provenance |= {"ignored": ", ".join(f"{count} {reason}" for reason, count in source.left_out.items())} if source.left_out else {}
    provenance |= {"pixel_range": result.pixel_range.message} if result.pixel_range else {}
    provenance |= {"two_labels": _two_labels(result.two_labels)} if result.two_labels else {}
    provenance |= {"class_names": named.message} if named else {}
    if real is not None and screen is not None:
        _list_left_out(folder, screen)
        provenance |= {"purpose": PURPOSE, "pool_of": real.digest, "left_out": screen.message}
    elif not as_synthetic:
        provenance |= {} if config.shots is None else {"shots": f"{config.shots} per class, few_shot_seed {config.few_shot_seed}"}
        provenance |= {"near_leaks": near_leak_message(result.near_leaks) if result.near_leaks else "none"}
    return commit_snapshot(
        folder,
        kind="synthetic" if as_synthetic else "real",
        classes=classes,
        rows=result.rows,
        provenance=provenance,
        licence=source.licence,
        quarantined=result.quarantined,
    )


def _list_left_out(folder: Path, screen: Screen) -> None:
    if screen.left_out:
        write_bytes(folder / LEFT_OUT_FILE, screen.table().to_csv(index=False, lineterminator="\n").encode())


def _report_leaks(folder: Path, leaks: Sequence[NearLeak], config: SnapshotConfig) -> None:
    """List the pairs in `leaks.csv`. Raises `DataError` with the first ones where they are not to be put up with."""
    if leaks and config.on_leak == "reject":
        raise DataError(f"{near_leak_message(leaks)}; remove one of each, put both in one group, or set snapshot.on_leak to warn")
    if leaks:
        write_bytes(folder / LEAKS_FILE, leak_table(leaks).to_csv(index=False, lineterminator="\n").encode())


def _outcome(out: Path, index: SnapshotIndex, *, reused: bool) -> Outcome:
    counts = {split: sum(index.counts[split].values()) for split in SPLITS if split in index.counts}
    listed = ", ".join(f"{split} {count}" for split, count in counts.items())
    what = f"{sum(counts.values())} images of {len(index.classes)} classes ({listed}{_left_out(index)})"
    return Outcome(
        output=out,
        digest=index.digest,
        summary=f"{out} is up to date (digest {index.digest[:12]})"
        if reused
        else f"wrote {out}: {what}, digest {index.digest[:12]}{_warning(index)}",
        metrics={f"images_{split}": float(count) for split, count in counts.items()} | {"quarantined": float(len(index.quarantined))},
        reused=reused,
    )


def _left_out(index: SnapshotIndex) -> str:
    """Every file that is not in the set, counted by reason."""
    reasons = Counter(item["reason"].split(" (")[0] for item in index.quarantined)
    shown = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(_SHOWN))
    unusable = f"; {len(index.quarantined)} left out as unusable: {shown}" if index.quarantined else ""
    ignored = f"; files not taken: {index.provenance['ignored']}" if index.provenance.get("ignored") else ""
    return unusable + ignored


def _two_labels(pairs: Sequence[str]) -> str:
    more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    return f"{len(pairs)} pictures are in two classes: {'; '.join(pairs[:_SHOWN])}{more}"


def _warning(index: SnapshotIndex) -> str:
    """What the user should know of the images, after the closing line."""
    notes = (index.provenance.get(name) for name in ("class_names", "pixel_range", "two_labels"))
    return "".join(f"; {text}" for text in notes if text) + _warning_of_kind(index)


def _warning_of_kind(index: SnapshotIndex) -> str:
    """Of pictures that splits or a pool and the real set share, and of a synthetic set, stored without loss but maybe not come so."""
    if index.provenance.get("near_leaks", "none") != "none":
        return f"; {index.provenance['near_leaks']}; {LEAKS_FILE} lists them"
    if index.provenance.get("left_out", "none") != "none":
        return f"; left out {index.provenance['left_out']}; {LEFT_OUT_FILE} lists them"
    lossy = [part for part in index.provenance["source_compression"].split(", ") if part.startswith(LOSSY)]
    if index.kind == "real" or not lossy:
        return ""
    return f"; {' and '.join(lossy)} came compressed with loss: classifiers and FID see that, unless the real images came so too"

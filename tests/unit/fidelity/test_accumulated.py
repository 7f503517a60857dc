"""Features kept during sampling: exact, bound to the pixels, and refused wherever they could mislead."""

import io
import json
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from kept_features import forge, keep_features, observer_of
from safetensors import safe_open

from gda.artifacts.snapshot import ClassInfo
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.data.store.writer import ImageRecord, write_image_shard
from gda.errors import DataError
from gda.fidelity import accumulated
from gda.fidelity.accumulated import features_path, has_rows, read_rows, read_statistics, require_honest
from gda.fidelity.extractors import BATCH, Extractor, get_extractor
from gda.fidelity.frechet import frechet_distance, statistics
from gda.fidelity.moments import merged, moments
from gda.gate.checks.audit import audit_images

GLYPH = get_extractor("glyph")
COUNTS = (BATCH + 4, 5)  # images of the two shards: one does not fit into a batch of the extractor's


def write_set(folder, counts=COUNTS, px=12):
    """A synthetic set of noise images, one class, shards of `counts` images."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for number, count in enumerate(counts):
        records = [
            ImageRecord(key=f"k{number}-{i}", rgb=rng.integers(0, 256, (px, px, 3), np.uint8), label=0, class_name="a")
            for i in range(count)
        ]
        rows.append(write_image_shard(folder, name=f"train-{number:06d}.tar", split="train", records=records))
    classes = [ClassInfo(name="a", prompt_name="a")]
    commit_snapshot(folder, kind="synthetic", classes=classes, rows=pd.concat(rows), provenance={}, licence="CC0-1.0")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The same images twice: with rows, and with statistics. To be read only."""
    root = tmp_path_factory.mktemp("sets")
    for kept in ("rows", "statistics"):
        keep_features(write_set(root / kept), kept)
    return root


@pytest.fixture
def kept(tmp_path):
    """A small set of two shards with rows, to be damaged."""
    keep_features(write_set(tmp_path / "set", (6, 5)), "rows")
    return tmp_path / "set"


def read(path, size=28):
    return read_rows(Snapshot.open(path), GLYPH, size=size)


def error_of(covariance, exact):
    return float(np.abs(covariance - exact).max() / np.abs(exact).max())


def test_moments_keep_their_digits_far_from_zero():
    """With a mean of a million standard deviations raw sums lose the covariance; merged moments are as good as two passes."""
    near = np.random.default_rng(0).normal(size=(900, 6)) @ np.random.default_rng(1).normal(size=(6, 6))
    far = near + 2.0**20  # exact sums of the same numbers but for the last of their bits
    exact = statistics(far - 2.0**20).cov
    parts = [moments(part) for part in np.split(far, [1, 300, 301, 777])]
    whole = parts[0]
    for part in parts[1:]:
        whole = merged(whole, part)
    found = whole.statistics()
    raw = (far.T @ far - np.outer(far.sum(0), far.sum(0)) / 900) / 899
    assert found.n == 900
    assert found.mean == pytest.approx(far.mean(0), rel=1e-14)
    assert error_of(found.cov, exact) < 1e-9
    assert error_of(raw, exact) > 1e-5
    assert (found.cov == found.cov.T).all()


def test_moments_refuse_what_has_no_covariance():
    """NaN would spread into every number of the set, and one image has no covariance."""
    with pytest.raises(DataError, match="finite"):
        moments(np.array([[0.0, np.nan]]))
    with pytest.raises(DataError, match="at least two images, got 1"):
        moments(np.ones((1, 3))).statistics()


@pytest.mark.parametrize(("px", "size"), [(12, 28), (28, 28), (40, 32)])
def test_rows_are_what_the_extractor_gives_for_the_stored_images(tmp_path, px, size):
    """To the last bit, whether images are enlarged or reduced, or one would not get the same verdict from them."""
    keep_features(write_set(tmp_path / "set", (9, 5), px), "rows", size)
    audit = audit_images(Snapshot.open(tmp_path / "set"), size=size)
    fresh = accumulated.extract_by_shard(audit.images, audit.table["shard"].tolist(), GLYPH)
    assert (read(tmp_path / "set", size) == fresh).all()
    assert np.ptp(fresh, axis=0).max() > 0.01  # the images differ in them


def test_batches_start_again_with_each_shard(sets):
    """So that a shard's features depend only on its own images, however many wait, and in whatever portions they are added."""
    found = read(sets / "rows")
    audit = audit_images(Snapshot.open(sets / "rows"), size=28)
    assert (found == accumulated.extract_by_shard(audit.images, audit.table["shard"].tolist(), GLYPH)).all()
    size_of_batch = Extractor(name="x", digest="", dim=1, input_px=28, forward=lambda x: torch.full((len(x), 1), float(len(x))))
    sizes = accumulated.extract_by_shard(audit.images, audit.table["shard"].tolist(), size_of_batch)
    assert sizes[:, 0].tolist() == [BATCH] * BATCH + [4] * 4 + [5] * 5


def test_a_set_without_decodable_images_has_no_rows():
    """What cannot be measured must not look like anything that was."""
    assert accumulated.extract_by_shard(torch.zeros((0, 3, 28, 28), dtype=torch.uint8), [], GLYPH).shape == (0, GLYPH.dim)


def test_statistics_follow_from_rows(sets):
    """Both ways give the same bits, and those of the two-pass formula but for rounding."""
    both = [read_statistics(Snapshot.open(sets / kept), GLYPH, size=28) for kept in ("rows", "statistics")]
    assert both[0].n == both[1].n == sum(COUNTS)
    assert (both[0].mean == both[1].mean).all()
    assert (both[0].cov == both[1].cov).all()
    exact = statistics(read(sets / "rows"))
    assert both[0].cov == pytest.approx(exact.cov, abs=1e-12)
    assert frechet_distance(both[0], exact) < 1e-9
    with pytest.raises(DataError, match="holds statistics, no rows"):
        read(sets / "statistics")
    assert [has_rows(Snapshot.open(sets / kept), GLYPH, size=28) for kept in ("rows", "statistics")] == [True, False]


def test_other_tools_find_mean_and_covariance(sets):
    """As ADM's and pytorch-fid's .npz, without pickles, in bytes that depend on the numbers alone."""
    data = (sets / "rows" / "features" / "statistics.npz").read_bytes()
    assert data == (sets / "statistics" / "features" / "statistics.npz").read_bytes()
    found = read_statistics(Snapshot.open(sets / "rows"), GLYPH, size=28)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        assert sorted(file) == ["mu", "sigma"]
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
        assert (file["mu"] == found.mean).all()
        assert (file["sigma"] == found.cov).all()


def test_files_name_their_records(sets):
    """Rows can be joined to the manifest without our reader, and files that were written twice are the same."""
    snapshot = Snapshot.open(sets / "rows")
    with safe_open(features_path(snapshot.path / "train-000001.tar"), framework="numpy") as file:
        header = json.loads(file.metadata()["gda"])
    assert header["keys"] == [f"k1-{i}" for i in range(5)]
    assert header["extractor"] == f"glyph@{GLYPH.digest}"


def test_writing_twice_gives_the_same_bytes(kept, tmp_path):
    """Equal images give equal files, whatever batches they came in."""
    keep_features(write_set(tmp_path / "again", (6, 5)), "rows", batch=2)
    names = sorted(path.name for path in (kept / "features").iterdir())
    assert names == ["features.json", "statistics.npz", "train-000000.safetensors", "train-000001.safetensors"]
    assert all((kept / "features" / name).read_bytes() == (tmp_path / "again" / "features" / name).read_bytes() for name in names)


@pytest.mark.parametrize("what", ["index", "shard"])
def test_missing_files_are_named(kept, what):
    """Half of the features must not pass for those of the set."""
    path = kept / "features" / "features.json" if what == "index" else features_path(kept / "train-000001.tar")
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name}: not found"):
        read(kept)
    with pytest.raises(DataError, match=rf"{path.name}: not found"):
        read_statistics(Snapshot.open(kept), GLYPH, size=28)


def test_features_of_another_extractor_or_size_are_refused(kept):
    """Numbers from two networks cannot be compared, and nothing else would show it."""
    with pytest.raises(DataError, match=r"at 28 px, not of glyph@[0-9a-f]{8} at 32 px"):
        read(kept, size=32)
    index = kept / "features" / "features.json"
    index.write_text(index.read_text().replace(GLYPH.digest, "0" * 64))
    assert not has_rows(Snapshot.open(kept), GLYPH, size=28)
    with pytest.raises(DataError, match="features are of glyph@00000000 at 28 px"):
        read(kept)


def test_a_shard_of_another_extractor_is_refused(kept):
    """What the folder says does not stand for its files: they may come from two runs."""
    path = features_path(kept / "train-000000.tar")
    path.write_bytes(path.read_bytes().replace(GLYPH.digest.encode(), b"0" * 64))
    with pytest.raises(DataError, match=r"000000.safetensors: .* of another extractor"):
        read(kept)


def test_every_flipped_bit_and_every_cut_is_found(kept):
    """A safetensors file has no checksum of its own."""
    path = features_path(kept / "train-000000.tar")
    whole = path.read_bytes()
    for at in range(0, len(whole), 37):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(DataError, match=r"000000\.safetensors"):
            read(kept)
        path.write_bytes(whole[:at])
        with pytest.raises(DataError, match=r"000000\.safetensors"):
            read(kept)
    path.write_bytes(whole)
    assert len(read(kept)) == 11


def test_features_of_other_images_are_refused(kept, tmp_path):
    """A shard that was sampled again with other pixels under the same keys must not use the old features."""
    rows = Snapshot.open(kept).manifest()
    rows.loc[2, "pixel_sha256"] = "0" * 64
    observer = observer_of("rows")
    assert not observer.holds(kept / "train-000000.tar", rows[:6], checked=False)
    assert observer.holds(kept / "train-000001.tar", rows[6:], checked=True)
    assert not observer_of("statistics").holds(kept / "train-000001.tar", rows[6:], checked=True)
    seen = observer.begin(kept / "train-000000.tar")
    seen.add([np.zeros((12, 12, 3), np.uint8)] * 6)
    with pytest.raises(DataError, match="not of the images that the manifest names"):
        seen.commit(rows[:6])


def test_a_shard_is_held_with_and_without_a_look_at_its_numbers(kept):
    """Resuming checks every shard, so it reads only headers; before the set is committed every number is read."""
    rows, path, observer = Snapshot.open(kept).manifest()[6:], features_path(kept / "train-000001.tar"), observer_of("rows")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert observer.holds(kept / "train-000001.tar", rows, checked=False)
    assert not observer.holds(kept / "train-000001.tar", rows, checked=True)
    observer.discard(kept / "train-000001.tar")
    assert not observer.holds(kept / "train-000001.tar", rows, checked=False)


def test_a_second_writer_keeps_the_existing_file(kept):
    """Features of the same images from another machine, different in their last bits, stay: no file ever changes under a reader."""
    shard = kept / "train-000000.tar"
    forge(shard, lambda features: np.nextafter(features, np.float32(9)))
    before = features_path(shard).read_bytes()
    keep_features(kept, "rows")
    assert features_path(shard).read_bytes() == before


def test_rows_of_the_wrong_shape_are_refused(kept):
    """A file whose checksums are right may still hold fewer rows than there are images."""
    forge(kept / "train-000000.tar", lambda features: features[:5])
    with pytest.raises(DataError, match="does not hold the rows of 6 images"):
        read(kept)


@pytest.mark.parametrize(
    "lie",
    [lambda f: f[::-1].copy(), lambda f: f + 0.02 * f.std(), lambda f: np.where(np.arange(len(f))[:, None] == 3, np.nan, f)],
    ids=["other order", "moved a little", "one NaN"],
)
def test_forged_rows_are_found(kept, lie):
    """Rows that fit the manifest in every checksum are compared with the images."""
    snapshot = Snapshot.open(kept)
    images = audit_images(snapshot, size=28).images
    require_honest(snapshot, read(kept), images, GLYPH)
    forge(kept / "train-000001.tar", lie)
    with pytest.raises(DataError, match=r"train-000001\.safetensors: the features of 'k1-\d' are not those of its image"):
        require_honest(snapshot, read(kept), images, GLYPH)


def test_the_rows_determine_which_images_are_checked(sets):
    """If the checked rows were known beforehand, all others could be forged; correct rows always pass."""
    looked = []
    snapshot, found = Snapshot.open(sets / "rows"), read(sets / "rows")
    images = audit_images(snapshot, size=28).images

    class Spy:
        @staticmethod
        def features(chosen):
            looked.append(chosen)
            return GLYPH.features(chosen)

    for nudged in (found, found + 1e-6, found - 1e-6):
        require_honest(snapshot, nudged, images, Spy)
    assert [len(chosen) for chosen in looked] == [accumulated.CHECKED_IMAGES] * 3
    assert not torch.equal(looked[0], looked[1])
    assert not torch.equal(looked[1], looked[2])

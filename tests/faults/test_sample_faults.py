"""Sampling on a bad day: two workers at one shard, one that slept, damage, full disks, changed plans, broken networks, little memory."""

import errno
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from killing import start, stopped_at, wait
from relisted import recard
from safetensors.torch import load_file, save_file
from sampled_numbers import NUM_SHARDS, SMALL, in_this_process, sample_numbers, sample_set, sampled_batches
from trees import tree
from two_colours import two_colours

from gda.cli.main import main
from gda.data.store import snapshot as snapshots
from gda.data.store import writer
from gda.data.store.snapshot import Snapshot
from gda.data.store.verify import verify_snapshot
from gda.demo_base.build import build_tiny_cascade
from gda.errors import DataError, MissingError, NotFiniteError, TryAgainError, UsageError
from gda.generator.sampling import sample_shards
from gda.io import publish as publishing
from gda.io.shards import read_shard

RETRY = {TryAgainError: 75}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny cascade, a real snapshot of two classes distinguished by colour, and `whole`, a set of numbers sampled undisturbed."""
    root = two_colours(tmp_path_factory.mktemp("world"), per_class=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(root / "work"))
        in_this_process(patch)
        sample_numbers(patch, root / "log")
        sample_set(root, root / "whole")
    return root


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    in_this_process(monkeypatch)
    return tmp_path / "work"


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Sets are random numbers here; the file names the batches that were sampled."""
    sample_numbers(monkeypatch, tmp_path / "log")
    return tmp_path / "log"


def test_two_commands_at_once(world, log, tmp_path):
    """Equal commands started together sample the same shards at the same time: each succeeds or says to try again, and one set is there."""
    for number in range(8):
        out = tmp_path / f"set{number}"
        children = [start(lambda out=out: sample_set(world, out), RETRY) for _ in range(3)]
        statuses = [wait(child) for child in children]
        assert set(statuses) <= {0, 75}
        assert 0 in statuses
        assert tree(out) == tree(world / "whole")


def test_the_loser_of_a_race_leaves_the_winner_s_shard_alone(world, log, tmp_path, work, monkeypatch):
    """Who comes second with a shard compares and keeps the file that is there: a third process may be reading it."""
    files = []

    def another_is_faster(_):
        if not files:
            files.append(None)
            assert wait(start(lambda: _first_half(world, tmp_path / "set"))) == 0
            files.extend(path.stat().st_mtime_ns for path in sorted(work.glob("work/*/out/*.tar")))

    sample_numbers(monkeypatch, log, another_is_faster)
    _first_half(world, tmp_path / "set")
    assert len(files) == 1 + NUM_SHARDS // 2
    assert files[1:] == [path.stat().st_mtime_ns for path in sorted(work.glob("work/*/out/*.tar"))]


def test_a_worker_that_slept_changes_nothing(world, log, tmp_path, monkeypatch):
    """Stopped at any call, and continued when others have published: it ends well or says to try again, and no byte of the set moves."""
    expected, stops = tree(world / "whole"), 0
    for number in range(1, 1000):
        monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / f"work{number}"))
        out = tmp_path / f"set{number}"
        child = start(stopped_at(number, action=lambda out=out: sample_set(world, out)), RETRY)
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
        stops += 1
        sample_set(world, out)
        assert tree(out) == expected
        os.kill(child, signal.SIGCONT)
        assert wait(child) in (0, 75), number
        assert tree(out) == expected
    assert stops > 50


def _first_half(world, out):
    """Worker 0 of two has sampled its shards."""
    assert sample_set(world, out, worker=0, workers=2).digest == ""


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1024])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {"cut": _cut, "flipped": _flip, "missing": lambda path: path.unlink()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_alone_is_sampled_again(world, log, tmp_path, work, damage):
    """In the work folder it costs its own batches, it is named, and the same bytes are published."""
    _first_half(world, tmp_path / "set")
    sampled_batches(log)
    DAMAGES[damage](next(iter(sorted(work.glob("work/*/out/train-000002.tar")))))
    outcome = sample_set(world, tmp_path / "set")
    assert len(sampled_batches(log)) == 2 * NUM_SHARDS // 2 + 2
    assert tree(tmp_path / "set") == tree(world / "whole")
    assert outcome.summary.endswith("damaged since they were sampled, and sampled again: train-000002.tar")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_of_a_published_set_is_named(world, log, tmp_path, capsys, damage):
    """`gda verify` says which it is and exits with 3."""
    sample_set(world, tmp_path / "set")
    DAMAGES[damage](tmp_path / "set" / "train-000002.tar")
    assert main(["verify", str(tmp_path / "set")]) == 3
    message = [line for line in capsys.readouterr().out.splitlines() if "set" in line]
    assert message
    assert all("train-000002.tar" in line for line in message)


def _failing(code, at):
    """An fsync that fails from the `at`-th call on."""
    real, count = os.fsync, 0

    def call(descriptor):
        nonlocal count
        count += 1
        if count >= at:
            raise OSError(code, os.strerror(code))
        return real(descriptor)

    return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("at", [1, 4, 10, 19, 25, 28])
def test_a_full_or_failing_disk(world, log, tmp_path, monkeypatch, code, at):
    """One clear error, nothing published, and with room again the same command goes on: shards that were finished are not sampled again."""
    with monkeypatch.context() as patch:
        patch.setattr(publishing.os, "fsync", _failing(code, at))
        with pytest.raises(MissingError, match=rf"cannot be written \({os.strerror(code)}\); make room"):
            sample_set(world, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    first = sampled_batches(log)
    sample_set(world, tmp_path / "set")
    assert tree(tmp_path / "set") == tree(world / "whole")
    assert len(first) + len(sampled_batches(log)) <= 2 * NUM_SHARDS + 2


def test_a_target_that_cannot_be_written(world, log, tmp_path, work):
    """Below a file there can be no folder: one clear error when publishing, and the work is kept for another try."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(MissingError, match=r"file/set: cannot be written"):
        sample_set(world, tmp_path / "file" / "set")
    sampled_batches(log)
    sample_set(world, tmp_path / "set")
    assert sampled_batches(log) == []


def test_a_plan_that_changed_under_half_a_set(world, log, tmp_path, work):
    """Workers that were configured otherwise are refused with the difference, until the half is finished or removed."""
    _first_half(world, tmp_path / "set")
    for _ in range(2):
        with pytest.raises(UsageError, match=r"set: is half made with other settings \(.*batch_size: 2 -> 4.*remove"):
            sample_set(world, tmp_path / "set", "sample.batch_size=4", worker=1, workers=2)
    assert sample_set(world, tmp_path / "other", "sample.batch_size=4", worker=1, workers=2).digest == ""
    assert sample_set(world, tmp_path / "set", worker=1, workers=2).digest
    (tmp_path / "set").rename(tmp_path / "elsewhere")  # the name is free again
    assert sample_set(world, tmp_path / "set", "sample.batch_size=1", worker=0, workers=2).digest == ""
    with pytest.raises(UsageError, match="half made with other settings") as refused:
        sample_set(world, tmp_path / "set", worker=0, workers=2)
    folder = str(refused.value).rpartition("or remove ")[2]
    for path in sorted(Path(folder).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert sample_set(world, tmp_path / "set", worker=0, workers=2).digest == ""


def _command(world, out, *changes, generator=None):
    flags = [flag for change in (*SMALL, *changes) for flag in ("--set", change)]
    common = ["sample", "--generator", str(generator or world / "generator"), "--snapshot", str(world / "real"), "--out", str(out)]
    return [*common, *flags]


def _one_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_class_that_the_generator_was_not_taught(world, tmp_path, capsys):
    """Its name and those that are known are in the one line, before anything is sampled."""
    generator = build_tiny_cascade(tmp_path / "taught")
    card = generator / "generator.json"
    card.write_text(card.read_text().replace('"prompts": {}', '"prompts": {"red": "a red one", "green": "a green one"}'))
    capsys.readouterr()
    assert main(_command(world, tmp_path / "set", generator=generator)) == 3
    assert "was not taught class 'blue'; it knows 'red', 'green'" in _one_line(capsys)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("table", [None, "red: 3\nblue: 0\n"])
def test_a_quota_of_zero(world, tmp_path, capsys, table):
    """For all classes or for one in a table: a configuration error that names the field, whatever way it is requested."""
    changes = ("sample.images_per_class=0",)
    if table is not None:
        (tmp_path / "quotas.yaml").write_text(table)
        changes = ("sample.quota=table", f"sample.quota_file={tmp_path / 'quotas.yaml'}")
    assert main(_command(world, tmp_path / "set", *changes)) == 2
    message = _one_line(capsys)
    assert "sample." in message
    assert "0" in message
    assert not (tmp_path / "set").exists()


def test_poisoned_weights(world, tmp_path, capsys):
    """A network that says NaN: the shard and its images are named, and nothing is published."""
    generator = build_tiny_cascade(tmp_path / "poisoned", seed=3)
    path = next((generator / "super_resolution" / "unet").glob("*.safetensors"))
    weights = load_file(path)
    weights["conv_out.weight"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    recard(generator)
    capsys.readouterr()
    assert main(_command(world, tmp_path / "set", generator=generator)) == 3
    message = _one_line(capsys)
    assert "train-00000" in message
    keys = r"s0000-0000000-[0-9a-f]{8}, s0001-0000000-[0-9a-f]{8}"
    assert re.search(rf"2 of 2 generated images hold NaN or infinity \({keys}\); the shard is not written", message)
    assert not (tmp_path / "set").exists()


@pytest.mark.usefixtures("no_compiler")
def test_a_machine_without_a_compiler(world, tmp_path, capsys):
    """Compilation needs one: stated in one line, with the setting that requested it, and not as a defect of the program."""
    assert main(_command(world, tmp_path / "set", "sample.compile=true")) == 5
    message = _one_line(capsys)
    assert "sample.compile: the networks cannot be compiled here (InvalidCxxCompiler: No working C++ compiler found" in message
    assert not (tmp_path / "set").exists()


def test_one_image_that_is_not_finite_fails_its_shard_alone(world, log, tmp_path, monkeypatch):
    """The shards before it are kept, and once it samples well only the rest is sampled."""
    order = [line.split() for line in _all_batches(world)]

    def nan_in_third_shard(seeds):
        if order[5][1] in map(str, seeds):
            raise NotFiniteError([1], 2)

    sample_numbers(monkeypatch, log, nan_in_third_shard)
    with pytest.raises(
        DataError, match=r"train-000002\.tar: 1 of 2 generated images hold NaN or infinity \(s000[01]-0000005-[0-9a-f]{8}\)"
    ):
        sample_set(world, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    sampled_batches(log)
    sample_numbers(monkeypatch, log)
    sample_set(world, tmp_path / "set")
    assert len(sampled_batches(log)) == 4
    assert tree(tmp_path / "set") == tree(world / "whole")


def _all_batches(world):
    rows = Snapshot.open(world / "whole").manifest()
    seeds = rows.sort_values(["shard", "offset"])["seed"].astype(str).tolist()
    return [" ".join(seeds[i : i + 2]) for i in range(0, len(seeds), 2)]


def test_little_memory(world, tmp_path, monkeypatch):
    """Batches that do not fit are sampled in parts: the plan keeps its digest, records say the part's size, images differ by rounding."""
    changes = ("sample.batch_size=4", "sample.num_inference_steps=4")
    ample = Snapshot.open(sample_set(world, tmp_path / "ample", *changes).output)
    real = sample_shards._pixels

    def short(sampler, job, batch):
        if len(batch) > 3:
            raise torch.OutOfMemoryError
        return real(sampler, job, batch)

    monkeypatch.setattr(sample_shards, "_pixels", short)
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "other"))
    scarce = Snapshot.open(sample_set(world, tmp_path / "scarce", *changes).output)
    assert verify_snapshot(scarce.path) == []
    assert scarce.index.plan_digest == ample.index.plan_digest
    for shard in ample.index.shards:
        for one, other in zip(read_shard(ample.path / shard.name), read_shard(scarce.path / shard.name), strict=True):
            assert one.key == other.key
            assert ("batch_size" in one.meta, other.meta["batch_size"]) == (False, 2)
            pixels = [_pixels_of(record) for record in (one, other)]
            assert (pixels[0] - pixels[1]).abs().max() <= 1
    monkeypatch.setattr(sample_shards, "_pixels", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(MissingError, match=r"one image does not fit in the memory of cpu"):
        sample_set(world, tmp_path / "none", *changes, "seed=1")
    assert not (tmp_path / "none").exists()


def _pixels_of(record):
    """Pixels of a record as int16."""
    from gda.data.images.codecs import decode, to_array

    return torch.from_numpy(to_array(decode(record.image, name=record.key)).astype("int16"))


@pytest.mark.parametrize("days", [-1, 1, 3650])
def test_a_clock_that_is_wrong(world, log, tmp_path, work, days):
    """Times of files, behind or ahead, mean nothing: nothing is sampled again, and the bytes are the same."""
    _first_half(world, tmp_path / "set")
    then = time.time() + days * 86400
    for path in work.rglob("*"):
        os.utime(path, (then, then))
    first = sampled_batches(log)
    sample_set(world, tmp_path / "set")
    assert not set(first) & set(sampled_batches(log))
    assert tree(tmp_path / "set") == tree(world / "whole")
    for path in (tmp_path / "set").rglob("*"):
        os.utime(path, (then, then))
    assert sample_set(world, tmp_path / "set").reused
    assert sampled_batches(log) == []


def test_nothing_to_do_reads_no_shard(world, log, tmp_path, monkeypatch):
    """A set that is there costs no hashing, sampled shards are known by their size and are hashed when the set is committed."""
    hashed = []
    for module in (writer, snapshots):
        real = module.sha256_of
        monkeypatch.setattr(module, "sha256_of", lambda path, real=real: hashed.append(path.name) or real(path))
    _first_half(world, tmp_path / "set")
    hashed.clear()
    _first_half(world, tmp_path / "set")
    assert hashed == []
    sample_set(world, tmp_path / "set")
    assert {name for name in hashed if hashed.count(name) >= 2} == {f"train-{number:06d}.tar" for number in range(NUM_SHARDS)}
    hashed.clear()
    opened = []
    monkeypatch.setattr("builtins.open", lambda file, *rest, real=open, **options: opened.append(str(file)) or real(file, *rest, **options))
    assert sample_set(world, tmp_path / "set").reused
    assert hashed == []
    assert not [name for name in opened if name.endswith(".tar")]

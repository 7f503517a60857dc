"""Sampling killed at any call and at any moment ends in the set of an uninterrupted run, byte for byte, and samples nothing twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import KILLED, in_child, killed_at, start, wait
from sampled_numbers import NUM_SHARDS, SMALL, in_this_process, sample_numbers, sample_set, sampled_batches
from sizes import nightly
from trees import tree
from two_colours import two_colours

from gda.data.store.verify import verify_snapshot

RANDOM_KILLS = nightly(usual=50, all=200)
GRACE = 10  # seconds between SIGTERM and the end


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny cascade and a real snapshot of two classes distinguished by colour."""
    return two_colours(tmp_path_factory.mktemp("world"), per_class=12)


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Sets are random numbers here; the file names the batches that were sampled."""
    sample_numbers(monkeypatch, tmp_path / "log")
    return tmp_path / "log"


def _committed(work: Path) -> set[str]:
    """Seeds of the images in shards whose rows are kept, a line a batch as the log has them."""
    found = set()
    for sidecar in work.glob("work/*/rows/*.json"):
        seeds = [str(row["seed"]) for row in json.loads(sidecar.read_bytes())["rows"]]
        found |= {" ".join(seeds[i : i + 2]) for i in range(0, len(seeds), 2)}
    return found


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_call(world, log, tmp_path, monkeypatch, after):
    """Before or after each call that makes bytes last: the name is free or holds the whole set, and the same command ends in its bytes."""
    in_this_process(monkeypatch)
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "reference"))
    sample_set(world, tmp_path / "whole")
    expected, kills = tree(tmp_path / "whole"), 0
    assert len(set(sampled_batches(log))) == 2 * NUM_SHARDS
    for number in range(1, 1000):
        work, out = tmp_path / f"work{number}", tmp_path / f"out{number}"
        monkeypatch.setenv("GDA_WORK_DIR", str(work))
        status = in_child(killed_at(number, after=after, action=lambda out=out: sample_set(world, out)))
        if status == 0:
            break
        assert status == KILLED
        kills += 1
        assert not out.exists() or tree(out) == expected
        kept, before = _committed(work), sampled_batches(log)
        sample_set(world, out)
        again = sampled_batches(log)
        assert tree(out) == expected
        assert not kept & set(again)
        assert len(before) + len(again) <= 2 * NUM_SHARDS + 2  # a kill loses one shard
        assert not list(tmp_path.glob(".out*"))
    assert kills > 50


def test_killed_at_random_moments(world, log, tmp_path, monkeypatch):
    """Fifty times, or two hundred, with worker processes: every run that comes to its end has the bytes of the one left alone."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "reference"))
    started = time.monotonic()
    assert in_child(lambda: sample_set(world, tmp_path / "whole")) == 0
    seconds = time.monotonic() - started
    expected, moments, kills, rounds = tree(tmp_path / "whole"), random.Random(0), 0, 0
    sampled_batches(log)
    while kills < RANDOM_KILLS:
        work, out = tmp_path / f"work{rounds}", tmp_path / f"out{rounds}"
        monkeypatch.setenv("GDA_WORK_DIR", str(work))
        status = None
        while status != 0:
            kept = _committed(work)
            child = start(lambda out=out: sample_set(world, out))
            time.sleep(moments.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            status = wait(child)
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
            assert not kept & set(sampled_batches(log))
            assert not out.exists() or tree(out) == expected
        assert tree(out) == expected
        rounds += 1
    assert rounds > 3


def test_no_process_outlives_the_command(world, tmp_path, monkeypatch):
    """Killed without warning, a command leaves no worker processes behind that hold the device."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.setattr("gda.stages.sample.workers_of", lambda _: 2)
    sample_numbers(monkeypatch, tmp_path / "log", lambda _: time.sleep(600))
    child = start(lambda: sample_set(world, tmp_path / "set"))
    workers: list[str] = []
    deadline = time.monotonic() + 30
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = Path(f"/proc/{child}/task/{child}/children").read_text().split()
        time.sleep(0.05)
    assert len(workers) == 2
    os.kill(child, signal.SIGKILL)
    wait(child)
    try:
        while (alive := [w for w in workers if _runs(w)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive
    finally:
        for worker in filter(_runs, workers):
            os.kill(int(worker), signal.SIGKILL)


def _runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
def command(world, tmp_path, monkeypatch):
    """The real command, which samples for some seconds, with the digest of an uninterrupted run."""
    sizes = (*SMALL, "sample.images_per_class=48", "sample.num_inference_steps=20")
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "reference"))
    digest = sample_set(world, tmp_path / "whole", *sizes).digest
    flags = [flag for change in sizes for flag in ("--set", change)]
    arguments = ["sample", "--generator", str(world / "generator"), "--snapshot", str(world / "real"), *flags, "--json"]
    environment = {**os.environ, "GDA_WORK_DIR": str(tmp_path / "work"), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    command = [sys.executable, "-m", "gda", *arguments, "--out", "set"]
    return lambda: subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ), digest


def _wait_for_shards(process: subprocess.Popen, work: Path, count: int) -> None:
    while process.poll() is None and len(list(work.glob("work/*/rows/*.json"))) < count:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


def test_the_real_command_killed_again_and_again(command, tmp_path):
    """With networks, processes and files as they are: kills while shards appear, and the digest is that of one run."""
    begin, digest = command
    for count in nightly(usual=(1, 12), all=(1, 4, 8, 12, 16)):
        process = begin()
        _wait_for_shards(process, tmp_path / "work", count)
        process.kill()
        process.communicate()
        assert not (tmp_path / "set").exists()
    stdout, stderr = begin().communicate(timeout=300)
    assert json.loads(stdout)["digest"] == digest, stderr
    assert verify_snapshot(tmp_path / "set") == []


def test_the_real_command_stopped_by_a_signal(command, tmp_path):
    """SIGTERM: retryable exit code within the grace period, one line, nothing published, and the same command ends in the same set."""
    begin, digest = command
    process = begin()
    _wait_for_shards(process, tmp_path / "work", 2)
    signalled = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - signalled < GRACE
    assert process.returncode == 75
    *progress, last = stderr.strip().splitlines()
    assert last == "gda sample: interrupted; the same command continues where it stopped"
    assert all(" sample set: " in line for line in progress)
    assert not (tmp_path / "set").exists()
    stdout, stderr = begin().communicate(timeout=300)
    assert json.loads(stdout)["digest"] == digest, stderr

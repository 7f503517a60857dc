"""Processes side by side: order, failures, killed workers and CPU counting."""

import os
import signal
import time

import pytest

from gda.errors import DataError, MissingError, TryAgainError
from gda.runtime.parallel import _cgroup_quota, run_parallel
from gda.runtime.progress import Bar, tick


def _square(x: int) -> int:
    tick()
    return x * x


def _fail_on_two(x: int) -> int:
    if x == 2:
        raise DataError("two")
    return x


def _die(x: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_results_come_in_order():
    """Whichever process finishes first, results keep the order of the items."""
    with Bar(8, "squares", shown=False):
        assert run_parallel(_square, list(range(8)), workers=3) == [x * x for x in range(8)]


def test_a_failure_is_the_workers_own_error():
    """A user's error in a worker reaches the command line as itself."""
    with pytest.raises(DataError, match="two"):
        run_parallel(_fail_on_two, [1, 2, 3], workers=2)


def _deaf_or_broken(x: int) -> int:
    if x == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(300)
    time.sleep(1)
    raise DataError("one failed")


@pytest.mark.timeout(60)
def test_a_failure_ends_workers_that_do_not_listen():
    """A worker that is only starting misses a signal that it may handle; the command would wait for it for ever."""
    began = time.monotonic()
    with pytest.raises(DataError, match="one failed"):
        run_parallel(_deaf_or_broken, [0, 1], workers=2)
    assert time.monotonic() - began < 30


def test_a_killed_worker_is_reported(monkeypatch):
    """A worker killed from outside may be tried again; one that the kernel killed for memory lacks it: never a broken pool."""
    with pytest.raises(TryAgainError, match="killed from outside"):
        run_parallel(_die, [1, 2], workers=2)
    counts = iter([[3], [4]])
    monkeypatch.setattr("gda.runtime.parallel._killed_for_memory", lambda: next(counts))
    with pytest.raises(MissingError, match="want of memory"):
        run_parallel(_die, [1, 2], workers=2)


def test_quota_of_the_cgroup(tmp_path):
    """In a container the quota counts, not the host's cores."""
    assert _cgroup_quota(tmp_path) > 1000
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert _cgroup_quota(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _cgroup_quota(tmp_path) > 1000

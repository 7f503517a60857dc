"""Processes side by side, one torch thread each, so that no result depends on how many cores a machine has."""

import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from gda.errors import MissingError, TryAgainError

T = TypeVar("T")
R = TypeVar("R")


def single_threaded() -> None:
    """Make this process use one compute thread; to be called before torch runs anything."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    else:
        os.environ["OMP_NUM_THREADS"] = "1"


def available_cpus() -> int:
    """CPUs this process may use: the smaller of its affinity mask and its cgroup's quota, at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, _cgroup_quota()))


def run_parallel(function: Callable[[T], R], items: Sequence[T], *, workers: int | None = None) -> list[R]:
    """`[function(item) for item in items]` over processes, in order; the first failure is raised.

    `function` must be a module-level function. With one item or one CPU it runs in this process. Raises `MissingError` when a
    process was killed (memory), `TryAgainError` when interrupted.
    """
    count = min(workers or available_cpus(), len(items))
    if count <= 1:
        return [function(item) for item in items]
    single_threaded()
    # Forking is safe because no process of ours ever starts a thread pool, and it saves the seconds that importing torch takes.
    method = "fork" if sys.platform == "linux" and not _cuda_is_up() else "spawn"
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context(method), initializer=single_threaded)
    try:
        return list(pool.map(function, items))
    except BrokenProcessPool:
        raise MissingError("a worker process was killed, most likely for want of memory; finished parts are kept, run again") from None
    except KeyboardInterrupt:
        raise TryAgainError("interrupted; the same command continues where it stopped") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _cuda_is_up() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Whole CPUs that the cgroup (v2 or v1) grants; a very large number where there is no quota."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
    except OSError:
        return sys.maxsize
    if quota in ("max", "-1"):
        return sys.maxsize
    return max(1, math.floor(int(quota) / int(period)))

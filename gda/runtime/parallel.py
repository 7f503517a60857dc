"""Processes side by side, one torch thread each, so that no result depends on how many cores a machine has."""

import ctypes
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from gda.errors import MissingError, TryAgainError
from gda.runtime.progress import send_to, sender

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
# One of them is there where torch can see a GPU: NVIDIA's, the same on boards that share its memory, in WSL, AMD's.
_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")

_T = TypeVar("_T")
_R = TypeVar("_R")


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


def sampling_device() -> str:
    """`cuda` where torch sees a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def training_device() -> str:
    """As `sampling_device`; a machine without a GPU's driver is not made to import torch for the answer."""
    return sampling_device() if any(os.path.exists(driver) for driver in _GPU_DRIVERS) else "cpu"


def num_accelerators() -> int:
    """How many GPUs torch sees; 0 without one, and then without importing torch."""
    if training_device() == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def num_processes() -> int:
    """Number of processes that `torchrun` started together; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the first of these processes, which writes files and prints for all."""
    return int(os.environ.get("RANK", "0")) == 0


def device_name(kind: str) -> str:
    """What a device is, for a fingerprint: `cpu`, or the GPU's model, since two models round differently."""
    if kind != "cuda":
        return kind
    import torch

    return f"cuda {torch.cuda.get_device_name(0)}"


def own_device(kind: str) -> str:
    """The device of this worker process: the GPUs are assigned in turn, one per worker."""
    if kind != "cuda":
        return kind
    import torch

    number = (multiprocessing.current_process()._identity or (1,))[0] - 1
    return f"cuda:{number % torch.cuda.device_count()}"


def workers_of(kind: str) -> int:
    """How many worker processes suit a device: one per GPU, or one per CPU."""
    if kind != "cuda":
        return available_cpus()
    import torch

    return max(1, torch.cuda.device_count())


def run_parallel(function: Callable[[_T], _R], items: Sequence[_T], *, workers: int | None = None) -> list[_R]:
    """`[function(item) for item in items]` over processes, in order; a failure is raised as soon as it happens.

    `function` must be a module-level function. With one item or one CPU it runs in this process. Raises `MissingError` when a
    process was killed for want of memory, `TryAgainError` when it was killed from outside.
    """
    single_threaded()
    count = min(workers or available_cpus(), len(items))
    if count <= 1:
        return [function(item) for item in items]
    # Forking is safe because no process of ours ever starts a compute thread pool, and it saves the seconds that importing torch takes.
    method = "fork" if sys.platform == "linux" and not _cuda_is_there() else "spawn"
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(os.getpid(), sender()))
    killed_before = _killed_for_memory()
    try:
        futures = [pool.submit(function, item) for item in items]
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future.done() and future.exception() is not None]
        return [future.result() for future in failed[:1] or futures]
    except BrokenProcessPool:
        if _killed_for_memory() != killed_before:
            raise MissingError("a worker process was killed for want of memory; finished parts are kept, run again with fewer") from None
        raise TryAgainError("a worker process was killed from outside; finished parts are kept, run the same command again") from None
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()  # a process that is only starting could miss a gentler signal, and would wait for work for ever
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent: int, progress: Any) -> None:
    _end_with(parent)
    send_to(progress)
    # Ctrl-C reaches the whole process group; the parent alone answers it and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    single_threaded()


def _end_with(parent: int) -> None:
    """Have the kernel end this process when its parent is killed, if it can; else it would go on holding memory and the device."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # killed before this check
            os._exit(1)


def _cuda_is_there() -> bool:
    # The query alone starts the driver, which a forked child cannot use; where there may be a GPU, children are spawned.
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available()


def _killed_for_memory(root: Path = Path("/")) -> list[int]:
    """How many processes the kernel has killed for want of memory, in our cgroup (v2 or v1) and in all; empty if unknown."""
    places = ("sys/fs/cgroup/memory.events", "sys/fs/cgroup/memory/memory.oom_control", "proc/vmstat")
    counts = []
    for place in places:
        with suppress(OSError):
            counts += [int(line.split()[1]) for line in (root / place).read_text().splitlines() if line.startswith("oom_kill ")]
    return counts


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

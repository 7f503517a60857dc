"""The machine: CPUs, memory, disk and GPU."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from gda.project.summaries import MachineSummary
from gda.runtime.parallel import available_cpus, num_accelerators

_GIB = 2**30
_LIMITS = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")


def look_at_machine(folder: Path = Path()) -> MachineSummary:
    """The machine as this process may use it; `folder` is where disk space is needed."""
    while not folder.exists():
        folder = folder.absolute().parent
    found = MachineSummary(cpus=available_cpus(), memory=usable_memory() / _GIB, disk=shutil.disk_usage(folder).free / _GIB)
    if not num_accelerators():
        return found
    import torch

    properties = torch.cuda.get_device_properties(0)
    return MachineSummary(
        cpus=found.cpus,
        memory=found.memory,
        disk=found.disk,
        gpu=properties.name,
        gpu_memory=properties.total_memory / _GIB,
        bf16=torch.cuda.is_bf16_supported(including_emulation=False),
    )


def usable_memory(root: Path = Path("/")) -> int:
    """Bytes of memory: the smaller of the machine's and the limit of the cgroup (v2 or v1)."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for place in _LIMITS:
        with suppress(OSError, ValueError):
            return min(installed, int((root / place).read_text()))
    return installed

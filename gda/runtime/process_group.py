"""The processes that `torchrun` starts to train one network together: this process's rank, and what they exchange.

One process alone needs no group, and every call is then free.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from gda.errors import ConfigError

_PATIENCE = timedelta(hours=2)  # the others wait while the first process samples the images of an evaluation


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """This process's `rank` among `size`, and its device."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def init(cls) -> "ProcessGroup":
        """Join the group that RANK and WORLD_SIZE in the environment define, over nccl on GPUs and gloo on CPUs."""
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        if size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        return cls(rank=rank, size=size, device=device)

    @classmethod
    def single(cls, device: str = "cpu") -> "ProcessGroup":
        """One process by itself."""
        return cls(rank=0, size=1, device=torch.device(device))

    @staticmethod
    def destroy() -> None:
        """Leave the group, if there is one."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def split(self, count: int, parts: int) -> list[slice]:
        """This process's rows of a batch of `count`, in `parts` equal pieces. Raises `ConfigError` if the rows do not divide evenly."""
        if count % (self.size * parts):
            multiple = f"processes x gradient_accumulation_steps = {self.size} x {parts}"
            raise ConfigError(f"finetune.batch_size: must be a multiple of {multiple}, got {count}")
        length, first = count // (self.size * parts), self.rank * (count // self.size)
        return [slice(first + i * length, first + (i + 1) * length) for i in range(parts)]

    def deal(self, count: int, setting: str) -> slice:
        """This process's rows of a batch of `count`, dealt out in turn, so that neighbouring rows go to different processes.

        Raises `ConfigError`, which names `setting`, if the rows do not divide evenly.
        """
        if count % self.size:
            raise ConfigError(f"{setting}: must be a multiple of the number of processes, {self.size}, got {count}")
        return slice(self.rank, None, self.size)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The equally long `values` of all processes, joined in the order of ranks; on every process."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values)
        return torch.cat(parts)

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.size == 1:
            return
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= self.size

    def broadcast(self, value: Any) -> Any:
        """The first process's `value`, on every process: plain objects and CPU tensors."""
        if self.size == 1:
            return value
        box = [value if self.is_first else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

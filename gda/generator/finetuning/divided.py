"""Tensors that may be sharded over the processes (FSDP)."""

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor on the CPU, gathered if it is sharded; every process must call this."""
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().cpu()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of `tensor` that this process holds, by reference."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(full: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """`full` on the device of `example`, and sharded in the same way."""
    full = full.to(example.device)
    return distribute_tensor(full, example.device_mesh, example.placements) if isinstance(example, DTensor) else full

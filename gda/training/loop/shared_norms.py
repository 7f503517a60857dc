"""Batch norms over the batch of all processes, without changing the modules of the model."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode

_SIGNATURE = inspect.signature(F.batch_norm)


class SharedStatistics(TorchFunctionMode):
    """In this context, batch norms in training mode compute mean and variance over equal parts of a batch in `size` processes.

    Every process must make the same pass. The model does not change, so that the averaged or exported model is a plain one, and timm's
    batch norms with a built-in activation work too.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            bound = _SIGNATURE.bind(*args, **(kwargs or {}))
            bound.apply_defaults()
            # Without running statistics the input is a weight being standardised, which is equal in all processes.
            if bound.arguments.pop("training") and bound.arguments["running_mean"] is not None:
                return shared_batch_norm(**bound.arguments, size=self._size)
        return func(*args, **(kwargs or {}))


def shared_batch_norm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    *,
    size: int,
) -> Tensor:
    """`F.batch_norm` in training over the equally large inputs [n, channels, ...] of `size` processes, by Ioffe and Szegedy 2015."""
    if input.is_cuda:
        normalised: Tensor = SyncBatchNorm.apply(input, weight, bias, running_mean, running_var, eps, momentum, dist.group.WORLD, size)
        return normalised
    axes, shape = [0, *range(2, input.ndim)], [1, -1, *[1] * (input.ndim - 2)]
    values = input.float()
    count = size * values.numel() // values.shape[1]
    mean = _total(values.sum(axes)) / count
    centred = values - mean.view(shape)
    variance = _total(centred.square().sum(axes)) / count
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (count / (count - 1)), momentum)
    scaled = centred * torch.rsqrt(variance + eps).view(shape)
    scaled = scaled if weight is None else scaled * weight.view(shape)
    scaled = scaled if bias is None else scaled + bias.view(shape)
    return scaled.to(input.dtype)


def _total(values: Tensor) -> Tensor:
    total: Tensor = _Total.apply(values)
    return total


class _Total(torch.autograd.Function):
    """Sum over the processes; every process's loss depends on it, so its gradient is summed too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(values: Tensor) -> Tensor:
    total = values.contiguous().clone()
    dist.all_reduce(total)
    return total

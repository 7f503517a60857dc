"""Auxiliary batch norms: during training, synthetic images have separate batch norms (AdvProp, Xie et al. 2020)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from gda.errors import ConfigError

_FEWEST = 2  # images; one has no variance


class AuxiliaryNorms:
    """A second set of all batch norms of `model` (statistics, scales and shifts), stored outside the model.

    It starts as a copy of the model's own. The model keeps its modules and names, so that the averaged or exported model is a plain one.
    Raises `ConfigError` for a model without batch norms, and for a batch of `counts` (real, synthetic) images too few to have a variance.
    """

    def __init__(self, model: nn.Module, name: str, counts: tuple[int, int]) -> None:
        norms = [(path, module) for path, module in model.named_modules() if isinstance(module, _BatchNorm)]
        if not norms:
            raise ConfigError(
                f"classify.auxiliary_batch_norm: {name} has no batch norm; leave it off, or name an architecture with batch "
                "norms in classify.model"
            )
        if min(counts) < _FEWEST:
            raise ConfigError(
                f"classify.auxiliary_batch_norm: a batch has {counts[0]} real and {counts[1]} synthetic images, and batch norms need "
                f"at least {_FEWEST} of each; use a larger classify.batch_size or a classify.ratio nearer to 1"
            )
        self._num_real = counts[0]
        self.parameters = {
            f"{path}.{key}": nn.Parameter(value.detach().clone())
            for path, norm in norms
            for key, value in norm.named_parameters(recurse=False)
        }
        self._buffers = {f"{path}.{key}": value.clone() for path, norm in norms for key, value in norm.named_buffers(recurse=False)}

    def logits(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """The model's output, float [n, classes]: real images, which come first, pass its own norms, the others these norms."""
        real, synthetic = inputs[: self._num_real], inputs[self._num_real :]
        # functional_call updates these buffers in place: https://docs.pytorch.org/docs/stable/generated/torch.func.functional_call.html
        return torch.cat([model(real), functional_call(model, {**self.parameters, **self._buffers}, (synthetic,))])

    def state(self) -> dict[str, Tensor]:
        """The state from which `restore` resumes."""
        return {name: value.detach() for name, value in self.parameters.items()} | self._buffers

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Resume from `state`."""
        for name, value in self.state().items():
            value.copy_(state[name])

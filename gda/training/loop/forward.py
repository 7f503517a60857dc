"""The passes of a training step: their device, precision and compilation, and this process's share of the batch."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from gda.errors import ConfigError, MissingError
from gda.runtime.process_group import ProcessGroup
from gda.runtime.rng import stream_seed
from gda.training.loop.auxiliary_norm import AuxiliaryNorms
from gda.training.loop.shared_norms import SharedStatistics
from gda.training.recipes.train_recipe import TrainRecipe


class Forward:
    """Runs `model` with the precision and compilation of `recipe`; `model` itself stays plain, and processes average their gradients.

    Raises `ConfigError` for incompatible settings, `MissingError` if the network cannot be compiled.
    """

    def __init__(
        self, model: nn.Module, recipe: TrainRecipe, world: ProcessGroup, *, seed: int, norms: AuxiliaryNorms | None = None
    ) -> None:
        self._share = world.deal(recipe.batch_size, "classify.batch_size")
        _require_possible(model, recipe, world)
        self._model, self._recipe, self._world, self._seed, self._norms = model, recipe, world, seed, norms
        self._network: Callable[[Tensor], Tensor] = model
        if recipe.compile:
            _start_autograd()
            self._network = torch.compile(model, dynamic=False)
        if world.size > 1:
            self._network = DistributedDataParallel(self._network)

    def loss(self, loss: nn.Module, inputs: Tensor, towards: tuple[Tensor, ...], update: int) -> Tensor:
        """This process's part of the loss of a batch, a scalar: the mean over processes is the loss of the whole batch, also for gradients.

        `inputs` (float NCHW) and their targets `towards` are those of the whole batch, equal in all processes; a second tensor in
        `towards` holds weights of the images.
        """
        own = tuple(part[self._share] for part in towards)
        images = inputs[self._share].contiguous(memory_format=torch.channels_last)
        self._seed_passes(update)
        with self._shared_statistics(), self._precision(), self._compiler_errors():
            logits = self._network(images) if self._norms is None else self._norms.logits(self._model, images)
            value: Tensor = loss(logits.float(), *own)
        if self._world.size > 1 and len(towards) == 2:
            # The weighted mean divided by this share's weights; rescale to those of the whole batch.
            value = value * (self._world.size * own[1].sum() / towards[1].sum())
        return value

    def mean(self, loss: Tensor) -> float:
        """The loss of the whole batch: the mean over the processes."""
        whole = loss.detach().clone()
        self._world.average([whole])
        return whole.item()

    def _seed_passes(self, update: int) -> None:
        """Seed torch's global generator, used by dropout: only a single process on a CPU keeps its state between steps."""
        if self._world.size > 1 or self._world.device.type != "cpu":
            torch.manual_seed(stream_seed("classify", self._seed, "pass", update, self._world.rank))

    def _shared_statistics(self) -> contextlib.AbstractContextManager[object]:
        shared = self._world.size > 1 and _trains_batch_norms(self._model)
        return SharedStatistics(self._world.size) if shared else contextlib.nullcontext()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._recipe.mixed_precision == "bf16")

    @contextlib.contextmanager
    def _compiler_errors(self) -> Iterator[None]:
        """Turn errors of the compiler into `MissingError`: a network is compiled when it first runs."""
        if not self._recipe.compile:
            yield
            return
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        try:
            yield
        except TorchDynamoException as error:
            why = str(error).strip().splitlines()[0]
            raise MissingError(
                f"classify.compile: the network cannot be compiled here ({why}); train with classify.compile=false"
            ) from None


def exact_convolutions(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """On a GPU, compute float32 convolutions in float32 rather than TF32, with deterministic algorithms."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def _require_possible(model: nn.Module, recipe: TrainRecipe, world: ProcessGroup) -> None:
    if recipe.mixed_precision == "bf16" and world.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError("classify.mixed_precision: this GPU does not compute in bf16; set it to no")
    if recipe.mixed_precision == "bf16" and world.device.type == "cpu" and _strides_over_single_pixels(model, recipe.image_size):
        raise ConfigError(
            f"classify.mixed_precision: on a CPU torch computes wrong gradients in bf16 where a convolution strides over a single pixel, "
            f"as {recipe.model} does on images of {recipe.image_size}; set it to no, or raise classify.image_size"
        )
    if world.size == 1:
        return
    if recipe.auxiliary_batch_norm:
        raise ConfigError("classify.auxiliary_batch_norm: is trained by one process; leave torchrun out, or set it to false")
    if recipe.compile and _trains_batch_norms(model):
        raise ConfigError(
            f"classify.compile: {recipe.model} has batch norms, whose statistics several processes share, which cannot be compiled; set it "
            "to false, or leave torchrun out"
        )


def _trains_batch_norms(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


@torch.no_grad()
def _strides_over_single_pixels(model: nn.Module, image_size: int) -> bool:
    # Seen with torch 2.15 and oneDNN: the gradient of such a kernel's weights, which cover only padding, is uninitialised memory.
    found: list[bool] = []

    def look(convolution: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(convolution, nn.Conv2d)
        found.append(max(convolution.stride) > 1 and min(inputs[0].shape[2:]) == 1)

    hooks = [module.register_forward_pre_hook(look) for module in model.modules() if isinstance(module, nn.Conv2d)]
    training = model.training
    model.eval()(torch.zeros(1, 3, image_size, image_size))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return any(found)


def _start_autograd() -> None:
    # The first backward pass of a process counts devices and starts a thread for each. After a compilation it counts a device that does
    # not exist, and no process that is forked later could train.
    torch.ones(1, requires_grad=True).sum().backward()

"""Low-rank adapters (Hu et al. 2021) on a generator's network: injected, averaged by their products, merged, written for diffusers.

An adapter adds scale * B @ A to the weight of a layer. Averages over training are of that product: the product of averaged
factors is another matrix. A product is as large as the weight it is added to, so an average takes as much memory as the adapted
weights themselves.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from gda.config.sections import FinetuneConfig
from gda.errors import ConfigError, DataError
from gda.io.atomic import write_bytes
from gda.runtime.torch_rng import torch_stream

Products = dict[str, torch.Tensor]  # by layer, the matrix added to its weight: float32, in the weight's shape [out, in, ...]
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]  # by layer, A [rank, in, ...] and B [out, rank, 1...]: the product is B @ A

LORA_FILE = "pytorch_lora_weights.safetensors"
COMPONENTS = ("unet", "transformer")  # parts of a pipeline into which diffusers loads adapters of this layout

_NAME = "default"  # peft's name for the only adapter of a network
_LISTED = 12  # at most so many kinds of layers in an error


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The adapter in `network`; tensors are looked up at each call, so it stays valid under torch.compile, DDP and `.to()`."""

    network: nn.Module
    layers: tuple[str, ...]
    scale: float

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters, float32: `LAYER.lora_A.weight` and `LAYER.lora_B.weight`, in the order of the network's layers."""
        return {
            f"{name}.{factor}.weight": getattr(self.network.get_submodule(name), factor)[_NAME].weight
            for name in self.layers
            for factor in ("lora_A", "lora_B")
        }

    @torch.no_grad()
    def products(self) -> Products:
        """The matrix that the adapter currently adds to each layer's weight, scale included; new tensors on the network's device."""
        values = self.parameters()
        return {name: self.scale * product_of(values[f"{name}.lora_A.weight"], values[f"{name}.lora_B.weight"]) for name in self.layers}

    @torch.no_grad()
    def merged(self, products: Products) -> dict[str, torch.Tensor]:
        """The network's whole state dict under its original names, `products` added; unchanged weights are shared, not copied.

        A layer that `products` leaves out keeps its frozen weight. Raises `ValueError` for a layer that has no adapter.
        """
        if unknown := products.keys() - set(self.layers):
            raise ValueError(f"products of layers without an adapter: {', '.join(sorted(unknown))}")
        whole = self.network.state_dict()
        weights = {key.replace(".base_layer.", "."): value for key, value in whole.items() if not _is_factor(key)}
        for name, product in products.items():
            frozen = weights[f"{name}.weight"]
            assert product.shape == frozen.shape, f"{name}: product {tuple(product.shape)}, weight {tuple(frozen.shape)}"
            weights[f"{name}.weight"] = (frozen.float() + product.to(frozen.device)).to(frozen.dtype)
        return weights

    def remove(self) -> None:
        """Restore the plain layers, which stay frozen; this adapter must not be used afterwards."""
        for name in self.layers:
            parent, _, last = name.rpartition(".")
            setattr(self.network.get_submodule(parent), last, self.network.get_submodule(name).base_layer)
        del self.network.peft_config


def add_adapter(network: nn.Module, settings: FinetuneConfig, *, seed: int) -> Adapter:
    """Add an adapter to every layer whose name ends in one of `lora_target_modules`, and freeze everything else.

    A starts uniform in +-1 / sqrt(fan-in), from a stream of `seed` and the layer's name, and B at zero, so that the network's output
    does not change. A rank above the smaller side of a layer's matrix is lowered to that side, which suffices for any
    change; the scale stays alpha / `lora_rank`. `network` must not be wrapped yet. Raises
    `ConfigError` when a target matches no layer, or one that is neither a Linear nor a plain Conv2d.
    """
    if any(isinstance(module, BaseTunerLayer) for module in network.modules()):
        raise ValueError("the network has an adapter already: remove() that one first")
    layers = _targets(network, settings.lora_target_modules)
    ranks = {name: min(settings.lora_rank, *network.get_parameter(f"{name}.weight").flatten(1).shape) for name in layers}
    scale = (settings.lora_alpha or settings.lora_rank) / settings.lora_rank
    with torch.random.fork_rng(devices=[]):  # peft samples weights of its own, which are replaced below
        inject_adapter_in_model(LoraConfig(**_described(ranks, scale=scale)), network, adapter_name=_NAME)
    adapter = Adapter(network=network, layers=tuple(layers), scale=scale)
    _start(adapter, seed)
    return adapter


def factor(products: Products, *, rank: int, tolerance: float = 1e-6) -> Factors:
    """Factors, float32 on the CPU with scale 1, of the smallest rank per layer that discards at most `tolerance` of its squared norm.

    `rank` caps every layer's rank, even if more is then discarded: `discarded` gives the share. An average of products has a
    higher rank than each of them, so a cap equal to the trained rank would lose part of it. Layers of zeros get rank 1. Signs and
    order are fixed. Raises `DataError` for a product that is not finite.
    """
    if rank < 1 or not 0 <= tolerance < 1:
        raise ValueError(f"rank {rank} and tolerance {tolerance}: expected a rank of at least 1 and a tolerance in [0, 1)")
    return {name: _factor(name, product, rank, tolerance) for name, product in products.items()}


def discarded(products: Products, factors: Factors) -> float:
    """Share of a layer's squared norm that `factors` leave out, at the layer where it is largest."""
    shares = [0.0]
    for name, (a, b) in factors.items():
        product = products[name].detach().cpu().double()
        total = float(product.square().sum())
        missing = float((product - product_of(a.double(), b.double())).square().sum())
        shares.append(missing / total if total else 0.0)
    return max(shares)


def write_lora(folder: Path, factors: Mapping[str, Factors]) -> Path:
    """Write `pytorch_lora_weights.safetensors`, which `pipeline.load_lora_weights(folder)` of plain diffusers loads; returns its path.

    `factors` is keyed by the pipeline's component: `unet` or `transformer`. Each stage of a cascade is a pipeline with its own folder.
    Equal factors give equal bytes.
    """
    if not factors or not all(factors.values()) or factors.keys() - set(COMPONENTS):
        given = {component: f"{len(layers)} layers" for component, layers in factors.items()}
        raise ValueError(f"factors {given}: expected layers of {' or '.join(COMPONENTS)}")
    tensors: dict[str, torch.Tensor] = {}
    config: dict[str, Any] = {}
    for component, layers in sorted(factors.items()):
        for name, (a, b) in layers.items():
            tensors |= {f"{component}.{name}.lora_A.weight": a.contiguous(), f"{component}.{name}.lora_B.weight": b.contiguous()}
        ranks = {name: a.shape[0] for name, (a, _) in layers.items()}
        config |= {f"{component}.{field}": value for field, value in _described(ranks, scale=1.0).items()}
    folder.mkdir(parents=True, exist_ok=True)
    # A single entry, because safetensors writes several in an order that changes from call to call.
    metadata = {"lora_adapter_metadata": json.dumps(config, indent=2, sort_keys=True)}
    write_bytes(folder / LORA_FILE, safetensors.torch.save(tensors, metadata))
    return folder / LORA_FILE


def read_lora(folder: Path) -> dict[str, Factors]:
    """The factors that `write_lora` wrote, by component; empty if the folder has no such file. Raises `DataError` for a damaged one."""
    path, found = folder / LORA_FILE, dict[str, Factors]()
    if not path.is_file():
        return found
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error})") from None
    for key, a in tensors.items():
        component, _, name = key.removesuffix(".lora_A.weight").partition(".")
        if key.endswith(".lora_A.weight"):
            found.setdefault(component, {})[name] = (a, tensors[f"{component}.{name}.lora_B.weight"])
    return found


def product_of(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """B @ A in the shape of the layer's weight; of a convolution, A has the kernel and B is 1 x 1."""
    return (b.flatten(1) @ a.flatten(1)).reshape(b.shape[0], *a.shape[1:])


def _is_factor(key: str) -> bool:
    return f".lora_A.{_NAME}." in key or f".lora_B.{_NAME}." in key


def _targets(network: nn.Module, ends: Iterable[str]) -> list[str]:
    """Names of the layers, each once and in the network's order, whose name is one of `ends` or ends in a dot and one."""
    named = dict(network.named_modules())
    chosen: set[str] = set()
    for end in ends:
        matched = [name for name in named if name == end or name.endswith(f".{end}")]
        if not matched:
            raise ConfigError(
                f"finetune.lora_target_modules: {end!r} matches no layer of {type(network).__name__}; its layers: {_kinds(named)}"
            )
        for name in matched:
            if not _is_adaptable(named[name]):
                raise ConfigError(
                    f"finetune.lora_target_modules: {end!r} matches {name}, a {type(named[name]).__name__}; "
                    f"adapters go on Linear and on Conv2d without groups, dilation or padding modes: {_kinds(named)}"
                )
        chosen.update(matched)
    return [name for name in named if name in chosen]


def _is_adaptable(layer: nn.Module) -> bool:
    """Whether a product can be added to the layer's weight. Subclasses are excluded: some are never called, some hold packed weights."""
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    return type(layer) is nn.Linear


def _kinds(named: Mapping[str, nn.Module]) -> str:
    """Ends of the names of adaptable layers, the most frequent first; an end that is a number includes the name before it."""
    ends = [re.search(r"[^.]*(\.\d+)*$", name) for name, layer in named.items() if _is_adaptable(layer)]
    counted = Counter(end.group() for end in ends if end)
    listed = sorted(counted, key=lambda end: (-counted[end], end))
    return ", ".join(listed[:_LISTED]) + (f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else "")


def _described(ranks: Mapping[str, int], *, scale: float) -> dict[str, Any]:
    """The fields of peft's `LoraConfig` that give each layer its rank and every layer `scale` = alpha / rank; no dropout, no bias."""
    common = Counter(ranks.values()).most_common(1)[0][0]
    patterns: dict[str, int] = {}
    for rank in sorted(set(ranks.values()) - {common}):
        # One pattern per rank, not per layer: peft tries every pattern at every layer.
        names = "|".join(re.escape(name) for name in ranks if ranks[name] == rank)
        patterns[f"^({names})"] = rank
    return {
        "r": common,
        "lora_alpha": scale * common,
        "rank_pattern": patterns,
        "alpha_pattern": {pattern: scale * rank for pattern, rank in patterns.items()},
        "target_modules": list(ranks),
    }


@torch.no_grad()
def _start(adapter: Adapter, seed: int) -> None:
    """Initial float32 values, as peft's: Kaiming-uniform A with a = sqrt(5), zero B; each layer has a stream of its own."""
    adapter.network.requires_grad_(False)
    for name, parameter in adapter.parameters().items():
        values = torch.zeros(parameter.shape)
        if name.endswith(".lora_A.weight"):
            nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=torch_stream("lora", seed, name))
        parameter.data = values.to(parameter.device)
        parameter.requires_grad_(True)


def _factor(name: str, product: torch.Tensor, rank: int, tolerance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B from the eigenvectors of the smaller Gram matrix: the truncated SVD, in half its time."""
    matrix = product.detach().cpu().double().flatten(1)  # float64 [out, in]
    if not bool(matrix.isfinite().all()):
        raise DataError(f"finetune: the adapter of {name} is not finite. Lower finetune.learning_rate")
    flat = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    squares, vectors = torch.linalg.eigh(flat @ flat.T)  # squared singular values, smallest first
    kept = _rank(squares, rank, tolerance)
    squares, vectors = squares[-kept:].flip(0), _signed(vectors[:, -kept:].flip(1))
    # Both factors carry the root of the singular value; the bound keeps the division finite and is zero in float32.
    root = squares.clamp(min=torch.finfo(torch.float64).tiny) ** 0.25
    left, right = vectors * root, (vectors.T @ flat) / root[:, None]
    b, a = (left, right) if flat is matrix else (right.T, left.T)
    return a.reshape(kept, *product.shape[1:]).float().contiguous(), b.reshape(
        len(b), kept, *(1,) * (product.ndim - 2)
    ).float().contiguous()


def _rank(squares: torch.Tensor, cap: int, tolerance: float) -> int:
    """The smallest rank, at least 1 and at most `cap`, whose discarded `squares` (ascending) sum to at most the tolerated share."""
    tails = squares.clamp(min=0).cumsum(0)
    dropped = int((tails <= tolerance * tails[-1]).sum())
    return min(max(len(squares) - dropped, 1), cap)


def _signed(vectors: torch.Tensor) -> torch.Tensor:
    """Each column with its entry of largest magnitude positive: eigenvectors are determined up to their sign alone."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors)

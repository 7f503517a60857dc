"""Adapters of one class each: put into a generator's networks while images of that class are sampled, and taken out again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gda.generator.families.protocol import Model
from gda.generator.weights.export import network_folder
from gda.generator.weights.lora import Factors, product_of, read_lora


class ClassAdapters:
    """The adapters that a generator's card names, by prompt; empty for a generator whose classes share their weights."""

    def __init__(self, model: Model) -> None:
        card = model.card
        self._model = model
        self._folders = {card.prompts[name]: model.path / folder for name, folder in card.adapters.items()}
        self._read: dict[Path, Factors] = {}

    def __bool__(self) -> bool:
        return bool(self._folders)

    @contextmanager
    def of(self, prompt: str) -> Iterator[None]:
        """The networks with the adapters of `prompt`'s class; afterwards bit for bit as before. Other prompts change nothing."""
        before: list[tuple[torch.Tensor, torch.Tensor]] = []
        with torch.no_grad():
            for stage in self._model.stages if prompt in self._folders else ():
                network = self._model.network(stage)
                for layer, (a, b) in self._factors(prompt, stage).items():
                    weight: torch.Tensor = network.get_parameter(f"{layer}.weight")
                    before.append((weight, weight.clone()))
                    weight.add_(product_of(a, b).to(weight))
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, old in before:
                    weight.copy_(old)

    def _factors(self, prompt: str, stage: str) -> Factors:
        network = Path(network_folder(self._model.card.family, stage))
        folder = self._folders[prompt] / network.parent
        if folder not in self._read:
            self._read[folder] = read_lora(folder).get(network.name, {})
        return self._read[folder]

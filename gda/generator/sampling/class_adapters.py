"""Per-class adapters: merged into a generator's networks while images of that class are sampled, then removed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gda.generator.families.protocol import Model
from gda.generator.weights.export import network_folder
from gda.generator.weights.lora import Factors, product_of, read_lora


class ClassAdapters:
    """The adapters listed in a generator's card, by prompt; empty for a generator with the same weights for all classes."""

    def __init__(self, model: Model) -> None:
        card = model.card
        self._model = model
        self._folders = {card.prompts[name]: model.path / folder for name, folder in card.adapters.items()}
        self._read: dict[Path, Factors] = {}

    def __bool__(self) -> bool:
        return bool(self._folders)

    @contextmanager
    def of(self, prompt: str) -> Iterator[None]:
        """Use the networks with the adapters of `prompt`'s class, then restore them bit for bit. Other prompts change nothing."""
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

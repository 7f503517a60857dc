"""Draws images of class prompts with any generator, its text states encoded once."""

from collections.abc import Sequence

import torch

from gda.generator.model import DrawSettings, Model, rows


class Sampler:
    """A generator with its prompts encoded; `draw` is a pure function of prompts, seeds and settings."""

    def __init__(self, model: Model, prompts: Sequence[str]) -> None:
        self.model = model
        unique = sorted({"", *prompts})
        self._row = {prompt: i for i, prompt in enumerate(unique)}
        with torch.inference_mode():
            self._text = model.encode(unique)

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], settings: DrawSettings) -> torch.Tensor:
        """uint8 NCHW in [0, 255], one image a prompt and seed. Bits depend on the batch's size: draw whole batches to compare."""
        text = rows(self._text, [self._row[prompt] for prompt in prompts])
        return self.model.draw(text, rows(self._text, [self._row[""]] * len(prompts)), seeds, settings)

"""Samples images of class prompts with any generator, its text states encoded once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from gda.artifacts.tuning import SamplingSettings
from gda.errors import NotFiniteError
from gda.generator.families.protocol import Model, Start, rows
from gda.generator.sampling.class_adapters import ClassAdapters


class Sampler:
    """A generator with its prompts encoded; `draw` is a pure function of prompts, seeds and settings."""

    def __init__(self, model: Model, prompts: Sequence[str]) -> None:
        self.model = model
        self._adapters = ClassAdapters(model)
        unique = sorted({"", *prompts})
        self._row = {prompt: i for i, prompt in enumerate(unique)}
        with torch.inference_mode():
            self._text = model.encode(unique)

    def sample(self, prompts: Sequence[str], seeds: Sequence[int], settings: SamplingSettings, start: Start | None = None) -> torch.Tensor:
        """uint8 NCHW in [0, 255], one image a prompt and seed. Bits depend on the batch's size: draw whole batches to compare.

        With `start` every image is drawn from its own. Raises as `Model.sample` does.
        """
        if not self._adapters:
            return self._draw(prompts, seeds, settings, start)
        images: dict[int, torch.Tensor] = {}
        for said in dict.fromkeys(prompts):  # each class with its own weights
            places = [i for i, prompt in enumerate(prompts) if prompt == said]
            part = None if start is None else Start(images=start.images[places], strength=start.strength)
            with self._adapters.of(said), _rows_of(places, len(prompts)):
                drawn = self._draw([said] * len(places), [seeds[i] for i in places], settings, part)
            images |= dict(zip(places, drawn, strict=True))
        return torch.stack([images[i] for i in range(len(prompts))])

    def _draw(self, prompts: Sequence[str], seeds: Sequence[int], settings: SamplingSettings, start: Start | None) -> torch.Tensor:
        text = rows(self._text, [self._row[prompt] for prompt in prompts])
        return self.model.sample(text, rows(self._text, [self._row[""]] * len(prompts)), seeds, settings, start)


@contextmanager
def _rows_of(places: Sequence[int], count: int) -> Iterator[None]:
    """Rows that came out as NaN, named as the whole batch counts them."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError([places[row] for row in error.rows], count) from None

"""Samples images of class prompts with any generator, its text states encoded once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from gda.artifacts.tuning import SamplingSettings
from gda.errors import NotFiniteError
from gda.generator.families.protocol import Model, Start, rows
from gda.generator.sampling.class_adapters import ClassAdapters


class Sampler:
    """A generator with its prompts encoded; `sample` is a pure function of prompts, seeds and settings."""

    def __init__(self, model: Model, prompts: Sequence[str]) -> None:
        self.model = model
        self._adapters = ClassAdapters(model)
        unique = sorted({"", *prompts})
        self._row = {prompt: i for i, prompt in enumerate(unique)}
        with torch.inference_mode():
            self._text = model.encode(unique)

    def sample(self, prompts: Sequence[str], seeds: Sequence[int], settings: SamplingSettings, start: Start | None = None) -> torch.Tensor:
        """uint8 NCHW in [0, 255], one image per prompt and seed. Bits depend on the batch size: compare only batches of equal size.

        With `start` every image is denoised from its own start image. Raises the errors of `Model.sample`.
        """
        if not self._adapters:
            return self._sample(prompts, seeds, settings, start)
        images: dict[int, torch.Tensor] = {}
        for class_prompt in dict.fromkeys(prompts):  # per-class adapters: one class at a time
            places = [i for i, prompt in enumerate(prompts) if prompt == class_prompt]
            part = None if start is None else Start(images=start.images[places], strength=start.strength)
            with self._adapters.of(class_prompt), _rows_of(places, len(prompts)):
                sampled = self._sample([class_prompt] * len(places), [seeds[i] for i in places], settings, part)
            images |= dict(zip(places, sampled, strict=True))
        return torch.stack([images[i] for i in range(len(prompts))])

    def _sample(self, prompts: Sequence[str], seeds: Sequence[int], settings: SamplingSettings, start: Start | None) -> torch.Tensor:
        text = rows(self._text, [self._row[prompt] for prompt in prompts])
        return self.model.sample(text, rows(self._text, [self._row[""]] * len(prompts)), seeds, settings, start)


@contextmanager
def _rows_of(places: Sequence[int], count: int) -> Iterator[None]:
    """Turn the rows of a `NotFiniteError` into rows of the whole batch."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError([places[row] for row in error.rows], count) from None

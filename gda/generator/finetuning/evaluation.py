"""Scores the averaged weights during training, on images sampled from fixed noise, and keeps the best."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save

from gda.artifacts.tuning import SamplingSettings
from gda.errors import DataError
from gda.generator.families.opening import load_model
from gda.generator.families.protocol import Model
from gda.generator.finetuning.methods import Method
from gda.generator.sampling.sampler import Sampler
from gda.io.atomic import write_bytes
from gda.io.checked import is_whole, with_checksum
from gda.runtime.disks import storage_problem

GRID_COLUMNS = 10


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The images to sample and their score: `score` takes uint8 NCHW and returns a distance, lower is better.

    Image i is sampled with `prompts[i]` and `seeds[i]`; the images at the indices `shown` appear in the picture, class by class.
    """

    steps: int
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: SamplingSettings
    score: Callable[[torch.Tensor], float]
    shown: tuple[int, ...]
    batch_size: int = 50


class Evaluator:
    """Samples with a second copy of the model, so that training is unaffected; writes a picture and the best weights to `folder`."""

    def __init__(self, base: str, method: Method, evaluation: Evaluation, folder: Path, device: torch.device) -> None:
        self._base, self._method, self._evaluation, self._folder, self._device = base, method, evaluation, folder, device
        self._model: Model | None = None

    def score(self, averaged: dict[str, torch.Tensor], step: int) -> float:
        """The score of images sampled with the `averaged` weights; also saves the shown images as a picture of this step."""
        images = self._sample(averaged)
        shown = images[torch.tensor(self._evaluation.shown, dtype=torch.int64)]
        write_bytes_to(self._folder / f"{step:08d}.png", png_grid(shown))
        return float(self._evaluation.score(images))

    def keep(self, averaged: dict[str, torch.Tensor], step: int) -> None:
        """Write the averaged values of `step`; `read_kept` reads them."""
        write_bytes_to(self._kept(step), with_checksum(save({name: value.contiguous() for name, value in averaged.items()})))

    def read_kept(self, step: int) -> dict[str, torch.Tensor]:
        """The values that `keep` wrote. Raises `DataError` when the file is damaged or missing."""
        try:
            if not is_whole(self._kept(step)):
                raise ValueError("gone, or its checksum differs")
            return load_file(self._kept(step))
        except Exception as error:
            if (problem := storage_problem(error)) is not None:
                raise problem from None
            raise DataError(
                f"{self._kept(step)}: the best weights so far cannot be read ({error}); remove its folder to start over"
            ) from None

    def forget_except(self, steps: Sequence[int | None]) -> None:
        """Delete kept values of all other steps."""
        wanted = {self._kept(step) for step in steps if step is not None}
        for path in self._folder.glob("averaged-*.safetensors"):
            if path not in wanted:
                path.unlink(missing_ok=True)

    def _kept(self, step: int) -> Path:
        return self._folder / f"averaged-{step:08d}.safetensors"

    def _sample(self, averaged: dict[str, torch.Tensor]) -> torch.Tensor:
        if self._model is None:
            self._model = load_model(self._base)
        model, plan = self._model, self._evaluation
        self._method.install(model, averaged)
        model.to(self._device)
        try:
            sampler = Sampler(model, plan.prompts)
            starts = range(0, len(plan.prompts), plan.batch_size)
            parts = [slice(start, start + plan.batch_size) for start in starts]
            return torch.cat([sampler.sample(plan.prompts[part], plan.seeds[part], plan.settings) for part in parts])
        finally:
            model.to("cpu")  # frees its device memory for training


def best_step(scores: Sequence[tuple[int, float]]) -> int | None:
    """The step of the lowest score, the earliest on a tie; None if no score is finite."""
    finite = [(value, step) for step, value in scores if np.isfinite(value)]
    return min(finite)[1] if finite else None


def png_grid(images: torch.Tensor, columns: int = GRID_COLUMNS) -> bytes:
    """A PNG of uint8 NCHW images in rows of `columns`, separated by one white pixel."""
    import io

    count, _, height, width = images.shape
    lines = -(-count // columns)
    sheet = np.full((lines * (height + 1) + 1, min(columns, count) * (width + 1) + 1, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = 1 + index // columns * (height + 1), 1 + index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, "PNG")
    return stream.getvalue()


def write_bytes_to(path: Path, data: bytes) -> None:
    """`write_bytes`, after creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)

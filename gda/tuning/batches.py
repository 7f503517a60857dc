"""Batches of images sampled at one setting, each stored as a file under its own digest, so that no batch is sampled twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch

from gda.artifacts.fingerprint import bits_environment, digest_of
from gda.artifacts.tuning import SamplingSettings
from gda.errors import ConfigError, DataError
from gda.generator.families.opening import load_model
from gda.generator.planning.plan import PlannedImage
from gda.generator.sampling.sampler import Sampler
from gda.io.atomic import write_bytes
from gda.io.tensors import tensors_digest
from gda.runtime.disks import storage_errors
from gda.runtime.parallel import device_name, own_device, sampling_device
from gda.runtime.progress import tick

_CHECKSUM = "sha256"


@dataclass(frozen=True, kw_only=True)
class PointSource:
    """A generator to sample from: its name, the `digest` of its weights, and the prompt of each class by label."""

    generator: str
    digest: str
    prompts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SampledBatch:
    """Images that are sampled together, by `labels` and `seeds`; stored at `path`, named by the digest of all that fixes their bits."""

    source: PointSource
    settings: SamplingSettings
    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    path: Path


def batch_of(source: PointSource, settings: SamplingSettings, images: Sequence[PlannedImage], folder: Path) -> SampledBatch:
    """The batch of these images, to be stored in `folder`."""
    labels, seeds = tuple(image.label for image in images), tuple(image.seed for image in images)
    name = digest_of(
        {"generator": source.digest, "prompts": source.prompts, "settings": settings.model_dump(), "seeds": seeds, "labels": labels}
        | _environment()
    )
    return SampledBatch(source=source, settings=settings, labels=labels, seeds=seeds, path=folder / f"{name[:32]}.safetensors")


def sample_batch(batch: SampledBatch) -> str | None:
    """Sample and store one batch unless it exists undamaged; if the generator cannot sample at these settings, returns the reason.

    Raises the errors of loading the generator, and `MissingError` if the disk is full or failing.
    """
    why = None
    if read_batch(batch.path) is None:
        sampler = _sampler(batch.source)
        try:
            _keep(batch.path, sampler.sample([batch.source.prompts[label] for label in batch.labels], batch.seeds, batch.settings))
        except (ConfigError, DataError) as error:
            why = str(error)
    tick(len(batch.labels))
    return why


def _keep(path: Path, images: torch.Tensor) -> None:
    from safetensors.torch import save

    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    images = images.contiguous()
    write_bytes(path, save({"images": images}, metadata={_CHECKSUM: tensors_digest({"images": images.numpy()})}))


def read_batch(path: Path) -> torch.Tensor | None:
    """uint8 NCHW; None if the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            checksum, images = (file.metadata() or {}).get(_CHECKSUM), file.get_tensor("images")
    except (OSError, SafetensorError):
        return None
    return images if tensors_digest({"images": images.numpy()}) == checksum else None


def read_batches(paths: Sequence[Path]) -> torch.Tensor:
    """All batches concatenated, uint8 NCHW. Raises `DataError` with the path of a missing or damaged one."""
    parts = []
    for path in paths:
        images = read_batch(path)
        if images is None:
            raise DataError(
                f"{path}: a sampled batch that was whole a moment ago is gone or damaged; run the same command, which samples it again"
            )
        parts.append(images)
    return torch.cat(parts)


def forget_generator() -> None:
    """Unload the generator of this process."""
    _sampler.cache_clear()


@cache
def _environment() -> dict[str, str]:
    return bits_environment("diffusers", device=device_name(sampling_device()))


@lru_cache(maxsize=1)
def _sampler(source: PointSource) -> Sampler:
    """The loaded generator, cached per process for all its batches."""
    model = load_model(source.generator)
    model.to(own_device(sampling_device()))
    return Sampler(model, source.prompts)

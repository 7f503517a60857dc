"""Resolves a configuration for sampling: the plan, the settings and the generator."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.document import read_document
from gda.artifacts.snapshot import ClassInfo
from gda.artifacts.tuning import SamplingSettings, Settings
from gda.config.load import Config
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError, UsageError
from gda.generator.planning.image_plan import make_image_plan
from gda.generator.planning.plan import ImagePlan, make_plan
from gda.generator.planning.quotas import class_quotas
from gda.generator.weights.directory import read_card
from gda.generator.weights.reaverage import averaged


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """The generator to sample from, with its card, and the settings.

    If the generator is an average, `averaged_from` is the digest of the given generator and `ema_sigma_rel` the average's width.
    """

    generator: str
    card: GeneratorCard
    settings: SamplingSettings
    averaged_from: str | None = None
    ema_sigma_rel: float | None = None


def plan_for(config: Config, real: Snapshot, *, zero_shot: bool = False, further: Sequence[int] | None = None) -> ImagePlan:
    """The plan of the synthetic set, or of the zero-shot control, with `further` extra images per class, by label.

    Raises the `ConfigError` of quotas and plans.
    """
    sample, train = config.sample, real.manifest("train")
    counts = real.index.counts.get("train", {})
    quotas = class_quotas(sample, {info.name: counts.get(info.name, 0) for info in real.classes}, zero_shot=zero_shot)
    if further is not None:
        quotas = {name: quota + more for (name, quota), more in zip(quotas.items(), further, strict=True)}
    if sample.mode == "text_to_image":
        return make_plan(quotas, seed=config.seed, shard_size=sample.shard_size, batch_size=sample.batch_size)
    return make_image_plan(
        quotas,
        {str(name): rows["key"].tolist() for name, rows in train.groupby("class")},
        strengths=sample.strengths,
        other_class_fraction=sample.other_class_fraction,
        seed=config.seed,
        shard_size=sample.shard_size,
        batch_size=sample.batch_size,
    )


def image_to_image(config: Config) -> Config:
    """The configuration of the image-to-image control: `sample` in that mode, with `sample.img2img_images_per_class` if it is set."""
    each = config.sample.img2img_images_per_class
    sized = {} if each is None else {"quota": "equal", "images_per_class": each}
    return config.model_copy(update={"sample": config.sample.model_copy(update={"mode": "image_to_image", **sized})})


def sampling_request(config: Config, generator: str, settings: Path | None, *, averages: Path) -> SamplingRequest:
    """The configured settings, with null ones filled from tuned `settings`, which must be of this generator.

    If tuning chose an average of the weights, that average is the generator; it is built in `averages` unless it exists. Raises
    `UsageError` if neither `sample.guidance_scale` nor tuned settings define the guidance, `DataError` for another generator's settings.
    """
    card, sample = read_card(generator), config.sample
    given = {name: value for name in SamplingSettings.model_fields if (value := getattr(sample, name)) is not None}
    if settings is None:
        if sample.guidance_scale is None:
            raise UsageError("sample.guidance_scale is null, which means the tuned setting: give --settings FILE or a number")
        return SamplingRequest(generator=generator, card=card, settings=SamplingSettings.model_validate(given))
    tuned = read_document(settings, Settings)
    if tuned.generator_digest != card.digest:
        raise DataError(f"{settings}: tuned for generator {tuned.generator_digest[:12]}, but this one is {card.digest[:12]}; tune again")
    chosen = SamplingSettings.model_validate(tuned.chosen.model_dump() | given)
    if tuned.ema_sigma_rel is None:
        return SamplingRequest(generator=generator, card=card, settings=chosen)
    average = str(averaged(generator, tuned.ema_sigma_rel, averages))
    return SamplingRequest(
        generator=average, card=read_card(average), settings=chosen, averaged_from=card.digest, ema_sigma_rel=tuned.ema_sigma_rel
    )


def prompts_of(card: GeneratorCard, classes: tuple[ClassInfo, ...]) -> tuple[str, ...]:
    """The prompt of each class by label: the generator's own, or the class names for a base, which has no class prompts.

    Raises `DataError` for classes that a fine-tuned generator was not trained on.
    """
    if not card.prompts:
        return tuple(info.prompt_name for info in classes)
    if unknown := [repr(info.name) for info in classes if info.name not in card.prompts]:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        known = ", ".join(map(repr, list(card.prompts)[:5])) + (", ..." if len(card.prompts) > 5 else "")
        raise DataError(f"the generator was not taught class {', '.join(unknown[:3])}{more}; it knows {known}")
    return tuple(card.prompts[info.name] for info in classes)

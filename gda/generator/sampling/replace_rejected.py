"""Images drawn in place of others of a set that `gda sample` drew, from the plan and with the generator of that set."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.document import read_document
from gda.config.load import Config
from gda.data.store.replace import replace_records
from gda.data.store.snapshot import Snapshot
from gda.errors import ConfigError, DataError, UsageError
from gda.generator.sampling.replacements import later_shards, sample_later
from gda.generator.sampling.reproduce import Recorded
from gda.generator.sampling.request import plan_for
from gda.generator.weights.directory import read_card
from gda.generator.weights.reaverage import averaged
from gda.io.publish import work_root


@dataclass(kw_only=True)
class Redrawing:
    """The set as it was given, what it was drawn from, and how many images of each class were drawn so far, by label."""

    config: Config
    given: Snapshot
    real: Snapshot
    generator: str
    zero_shot: bool
    quotas: tuple[int, ...]
    drawn: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, config: Config, given: Snapshot, real: Snapshot, generator: str | Path | None, accepted: Path | None) -> "Redrawing | None":
        """What `validate.on_fail` asks for; None for reject. Raises `UsageError` for what replace_rejected needs and lacks."""
        if config.validate_.on_fail == "reject":
            return None
        for flag, value in (("--generator", generator), ("--accepted", accepted)):
            if value is None:
                raise UsageError(f"validate.on_fail is replace_rejected: give {flag}")
        planned = original_plan(config, given, real)
        if planned is None:
            raise UsageError(
                f"{given.path}: validate.on_fail is replace_rejected, but the set was not drawn by this configuration, so that what comes "
                "after its images is not known; give the configuration that it was drawn with, or set validate.on_fail to reject"
            )
        return cls(config=config, given=given, real=real, generator=str(generator), zero_shot=planned.zero_shot, quotas=planned.counts)

    def replace(self, snapshot: Snapshot, dropped: Mapping[str, str], number: int, *, work: Path) -> Snapshot:
        """The set of round `number` in `work`: `snapshot` without the images `dropped`, by key, and with the next ones of their classes.

        Raises `DataError` where the set does not say how it was drawn, and as drawing does.
        """
        before = tuple(self.drawn) or self.quotas
        rows = snapshot.manifest()
        missing = Counter(rows.loc[rows["key"].isin(dropped.keys()), "label"].tolist())
        self.drawn = [count + missing[label] for label, count in enumerate(before)]
        further = [drawn - quota for drawn, quota in zip(self.drawn, self.quotas, strict=True)]
        sample = self.config.sample
        plan = plan_for(self.config, self.real, zero_shot=self.zero_shot, further=further)
        first = 1 + max(int(Path(shard.name).stem.rpartition("-")[2]) for shard in snapshot.index.shards)
        shards = later_shards(plan, before, number=first, shard_size=sample.shard_size, batch_size=sample.batch_size)
        sources = self.real.path if sample.mode == "image_to_image" else None
        context = Recorded.open(self.given.path).context(self._generator(), sources)
        added = sample_later(context, shards, work / f"round-{number}" / "out")
        folder = work / f"set-{number}"
        rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        said = {"replaced_from": self.given.digest, "replacement_rounds": str(number), "replaced_images": str(sum(further))}
        replace_records(snapshot, dropped.keys(), added, folder, said=said)
        return Snapshot.open(folder)

    def _generator(self) -> str:
        """The generator that the set was drawn with: the one given, or the average of its weights that the set names."""
        said, digest = self.given.index.provenance, card_of(self.generator).digest
        if said.get("generator") == digest:
            return self.generator
        if said.get("generator_averaged_from") == digest and "ema_sigma_rel" in said:
            return str(averaged(self.generator, float(said["ema_sigma_rel"]), work_root() / "averages"))
        raise DataError(
            f"{self.generator}: is generator {digest[:12]}, but {self.given.path} was drawn with {said.get('generator', '-')[:12]}"
        )


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What the configured plan asks for, of the set itself or of the zero-shot control.

    Images by label, and the strengths; a strength of 0 stands for images that start from noise.
    """

    counts: tuple[int, ...]
    strengths: tuple[float, ...]
    zero_shot: bool


def original_plan(config: Config, given: Snapshot, real: Snapshot) -> Planned | None:
    """What was planned, when the set was drawn by the configured plan; None for a set drawn otherwise."""
    for zero_shot in (False, True):
        try:
            plan = plan_for(config, real, zero_shot=zero_shot)
        except ConfigError:
            continue
        if plan.digest == given.index.plan_digest:
            images = [image for shard in plan.shards for image in shard.images]
            labels = Counter(image.label for image in images)
            return Planned(
                counts=tuple(labels[label] for label in range(len(real.classes))),
                strengths=tuple(sorted({image.strength if image.source_label is not None else 0.0 for image in images})),
                zero_shot=zero_shot,
            )
    return None


def expected_digest(given: Snapshot, generator: str) -> str:
    """Digest of the generator, or of the average of its weights that the set says it was drawn from."""
    digest, said = card_of(generator).digest, given.index.provenance
    return said["generator"] if said.get("generator_averaged_from") == digest else digest


def card_of(generator: str) -> GeneratorCard:
    """What an exported generator says of itself, else what is reckoned from the weights of a base."""
    stored = Path(generator) / "generator.json"
    return read_document(stored, GeneratorCard) if stored.is_file() else read_card(generator)

"""`gda init`: look at images, machine and base, decide, and write the project."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gda.errors import UsageError
from gda.generator.weights.directory import DEMO_BASE, is_here
from gda.project.base import KNOWN, look_at_base
from gda.project.decide import ExtractorChoice, Goal, ProjectSettings, Setting, derive_settings, suggested_base
from gda.project.images import MOST_LOOKED_AT, Look, look_at_images
from gda.project.machine import look_at_machine
from gda.project.summaries import BaseSummary, ImageSummary, MachineSummary
from gda.project.write import PARAMS, SUSPECTS, require_new, write_project
from gda.suitability import GLYPH_EXTRACTOR

_INCEPTION = "inception-v3-compat"
_SHOWN = 5  # suspects of each kind on the terminal


@dataclass(frozen=True, kw_only=True)
class NewProject:
    """What `gda init` found, decided and wrote."""

    folder: Path
    look: Look
    machine: MachineSummary
    base: BaseSummary
    decisions: ProjectSettings


def start_project(
    source: str, folder: Path, *, base: str | None = None, extractor: str | None = None, goal: Goal = "standard", progress: bool = False
) -> NewProject:
    """Look at the images of `source`, at this machine and at `base` (by default one that is here and fits), and write a project.

    `extractor` is NAME or NAME=WEIGHTS. Raises `UsageError` where `folder` holds a project, `DataError` for images that cannot be used.
    """
    require_new(folder)
    place = source if "://" in source else os.path.relpath(source, folder) if _inside(source, folder) else os.path.abspath(source)
    look = look_at_images(source, progress=progress)
    images = ImageSummary(**{**vars(look.summary), "source": place})
    machine = look_at_machine(folder)
    chosen = look_at_base(base) if base is not None else _base_for(images, machine)
    decisions = derive_settings(images, machine, chosen, _extractor(extractor, images), goal=goal)
    write_project(folder, decisions.settings, look.suspects)
    return NewProject(folder=folder, look=Look(summary=images, suspects=look.suspects), machine=machine, base=chosen, decisions=decisions)


def describe_start(started: NewProject) -> Iterator[str]:
    """What was found and decided, as lines for a terminal; the last ones say what to do next."""
    images, machine, base = started.look.summary, started.machine, started.base
    counts = sorted(images.classes.values())
    yield f"images    {images.total:,} in {len(counts):,} classes, {counts[0]:,} to {counts[-1]:,} in each"
    low, median, high = images.side
    size = f"{median} px" if low == high else f"{low} to {high} px, median {median}"
    splits = ", ".join(f"{split} {count:,}" for split, count in images.splits.items()) or "none in the source: a hash of each image decides"
    yield f"          {size}, {'in colour' if images.coloured else 'grey'}; splits: {splits}"
    if images.looked_at == MOST_LOOKED_AT:
        yield f"          looked at {MOST_LOOKED_AT:,} of them, chosen by a hash"
    gpu = f"{machine.gpu} with {machine.gpu_memory:.0f} GiB" if machine.gpu else "no GPU"
    yield f"machine   {gpu}, {machine.cpus} CPUs, {machine.memory:.0f} GiB of memory, {machine.disk:.0f} GiB of free disk"
    yield f"base      {_base_line(base)}"
    yield from _suspect_lines(started)
    yield ""
    yield f"decided   {', '.join(_decided(started.decisions.settings))}"
    yield f"          {started.folder / PARAMS} has every setting with its reason"
    for text in started.decisions.warnings:
        yield f"note      {text}"
    for text in started.decisions.missing:
        yield f"MISSING   {text}"
    yield ""
    here = "" if started.folder.resolve() == Path.cwd() else f"cd {started.folder} && "
    yield f"next: {here}gda run" + ("   once what is missing is there" if started.decisions.missing else "")


def _base_line(base: BaseSummary) -> str:
    return f"{base.name}, {base.side} px, {base.parameters:,.0f} million parameters" + (
        ", not downloaded yet" if base.state == "to download" else ""
    )


def _suspect_lines(started: NewProject) -> Iterator[str]:
    suspects = started.look.suspects
    if not suspects:
        yield "suspects  none"
        return
    yield f"suspects  {len(suspects):,} images, listed in {started.folder / SUSPECTS}; the first of each kind:"
    shown: dict[str, int] = {}
    for each in suspects:
        kind = each.reason.split(":")[0].split(" as ")[0]
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] <= _SHOWN:
            yield f"          {each.name}: {each.reason}"


def _decided(settings: tuple[Setting, ...]) -> Iterator[str]:
    found = {decision.field: decision.value for decision in settings}
    if "finetune.method" in found:
        yield f"{found['finetune.method']} fine-tuning for {found['finetune.num_train_steps']:,} steps"
    yield f"{found['sample.images_per_class']:,} synthetic images per class"
    yield f"{found['classify.model']} at {found['classify.image_size']} px for {found['classify.num_train_steps']:,} steps"
    yield f"{len(found['classify.arms'])} arms, {len(found['classify.seeds'])} seeds"


def _inside(source: str, folder: Path) -> bool:
    return Path(source).resolve().is_relative_to(folder.resolve())


def _base_for(images: ImageSummary, machine: MachineSummary) -> BaseSummary:
    """The demo's base for small characters; for photographs a well-known one that is here, the largest first, or the one to get."""
    if not images.photographs:
        return look_at_base(DEMO_BASE)
    here = [name for name in sorted(KNOWN, key=lambda name: -KNOWN[name][1]) if is_here(name)]
    return look_at_base(here[0] if here else suggested_base(machine))


def _extractor(given: str | None, images: ImageSummary) -> ExtractorChoice:
    if given is not None:
        name, equals, weights = given.partition("=")
        if equals and not Path(weights).exists():
            raise UsageError(f"--extractor {given}: {weights}: no such file")
        return ExtractorChoice(name=name, weights=str(Path(weights).absolute()) if equals else None)
    if not images.photographs:
        return ExtractorChoice(name=GLYPH_EXTRACTOR)
    from gda.fidelity.extractors.inception import inception_weights_place

    place, address = inception_weights_place()
    if place.is_file():
        return ExtractorChoice(name=_INCEPTION)
    return ExtractorChoice(name=_INCEPTION, missing=f"download {address} to {place}")

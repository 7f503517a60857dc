"""tune: choose the sampling settings by a cheap FID pass over every point of a grid, then CAS of the survivors on validation.

FID and CAS disagree as guidance grows, so the sweep ends on CAS. Each point is stored under its own digest: a new point costs one point.
"""

import sys
from pathlib import Path

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.fingerprint import Fingerprint, bits_environment, digest_of
from gda.artifacts.outcome import Outcome
from gda.artifacts.tuning import Settings, TuningPoint
from gda.config.load import Config
from gda.data.store.snapshot import Snapshot
from gda.errors import ConfigError, DataError
from gda.fidelity.extractors import configured_extractor
from gda.generator.weights.directory import SUPER_RESOLUTION, UPSCALER, read_card, resolve
from gda.generator.weights.reaverage import averaging_digest
from gda.io.atomic import write_bytes
from gda.io.publish import exclusive, publish
from gda.io.up_to_date import prepare
from gda.report.tuning import describe_point, tuning_pictures
from gda.runtime.progress import Bar
from gda.suitability import require_suitable_base, require_suitable_extractor
from gda.tuning.grid import GeneratorParts, Grid, make_grid
from gda.tuning.sweep import Sweep, SweepSize, cas_recipe


def run(config: Config, *, generator: str, snapshot: Path, out: Path, worker: int = 0, workers: int = 1, progress: bool = False) -> Outcome:
    """Sweep the axes of section `tune` for `generator`; write `settings.json` with the chosen point and the full table, and two plots.

    With `workers` > 1 only the FID of the points of number `worker` modulo `workers` is measured, for a later command without workers.
    Uses the training and validation splits only: FID is against validation images, its floor is train against validation. A point that
    cannot be sampled or measured is recorded with the reason and never chosen. Raises `ConfigError` for axes that contradict each other
    or widths that the snapshots cannot give, `DataError` if no point is left, `TryAgainError` while another process runs the same sweep.
    """
    real, card = Snapshot.open(snapshot), read_card(generator)
    require_suitable_base(config, generator, real)
    require_suitable_extractor(config, real)
    parts = _parts(generator, card)
    grid, extractor = make_grid(config.tune, parts), configured_extractor(config)
    fingerprint = Fingerprint(
        stage="tune",
        config=config.tune.model_dump(mode="json") | {"seed": config.seed, "classifier": cas_recipe(config).identity()},
        inputs={"generator": card.digest, "snapshot": real.digest, "extractor": extractor.digest} | _averages(generator, grid),
        environment=bits_environment("diffusers", "timm", *extractor.packages),
    )
    workspace = prepare(fingerprint, out)
    if workspace.finished:
        settings = read_document(out / "settings.json", Settings)
        return Outcome(output=out, digest=digest_of(settings.model_dump(mode="json")), summary=f"{out} is up to date", reused=True)

    sweep = Sweep(config, generator, real, grid, parts)
    if workers > 1:
        count = sweep.measure(worker, workers)
        return Outcome(output=out, digest="", summary=f"measured {count} of {len(grid.points)} points of {out}; no choice is made yet")
    with exclusive(workspace):
        if progress:
            print(f"tune: {sweep.size}", file=sys.stderr, flush=True)
        with Bar(sweep.size.handled, f"tune {out.name}", unit="image", shown=progress, about=f"{len(grid.points)} points"):
            settings = sweep.run()
        pictures = tuning_pictures(settings)
        for name, png in pictures.items():
            write_bytes(workspace.staging / f"{name}.png", png)
        write_bytes(workspace.staging / "settings.json", dump_document(settings))
        publish(workspace)
    return _outcome(out, settings, sweep.size, tuple(out / f"{name}.png" for name in pictures))


def _parts(generator: str, card: GeneratorCard) -> GeneratorParts:
    path = resolve(generator)
    return GeneratorParts(
        super_resolution=(path / SUPER_RESOLUTION).is_dir(), upscaler=(path / UPSCALER).is_dir(), averages=bool(card.num_train_steps)
    )


def _averages(generator: str, grid: Grid) -> dict[str, str]:
    """Digests of the averages that the grid requests; impossible widths are refused before anything is sampled."""
    widths = sorted({point.ema_sigma_rel for point in grid.points if point.ema_sigma_rel is not None})
    try:
        return {f"average {width:g}": averaging_digest(generator, width) for width in widths}
    except (ConfigError, DataError) as error:
        raise type(error)(f"tune.ema_sigma_rels: {error}") from None


def _outcome(out: Path, settings: Settings, size: SweepSize, pictures: tuple[Path, ...]) -> Outcome:
    chosen, points = settings.chosen_point, settings.points
    failed = [point.failed for point in points if point.failed]
    notes = [*settings.notes, *([f"{len(failed)} of {len(points)} points failed, the first: {failed[0]}"] if failed else [])]
    return Outcome(
        output=out,
        digest=digest_of(settings.model_dump(mode="json")),
        summary=f"wrote {out}: {describe_point(chosen, points)} chosen on validation, FID {chosen.fid:.2f} and CAS {chosen.cas:.1%}; {size}"
        + "".join(f"; {note}" for note in notes),
        metrics=_metrics(chosen, size, len(failed)),
        curves={
            "point_fid": [(place, point.fid) for place, point in enumerate(points) if point.fid is not None],
            "point_cas": [(place, point.cas) for place, point in enumerate(points) if point.cas is not None],
        },
        files=(out / "settings.json", *pictures),
    )


def _metrics(chosen: TuningPoint, size: SweepSize, failed: int) -> dict[str, float]:
    measured = {"fid": chosen.fid, "cas": chosen.cas, "guidance_scale": chosen.guidance_scale, "nfe": float(chosen.nfe)}
    counted = {"points": float(size.points), "failed_points": float(failed), "images": float(size.images)}
    return counted | {name: value for name, value in measured.items() if value is not None}

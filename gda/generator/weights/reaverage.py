"""Publishes a fine-tuned generator again with weights of another averaging width, made from the snapshots that it holds."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.contents import FINGERPRINT_FILE
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.fingerprint import Fingerprint, bits_environment, digest_of
from gda.artifacts.outcome import Outcome
from gda.errors import ConfigError, DataError, MissingError, TryAgainError
from gda.generator.weights.directory import read_card, weights_digest
from gda.generator.weights.export import network_folder
from gda.generator.weights.lora import LORA_FILE
from gda.generator.weights.posthoc import EMA_FOLDER, Fit, combine, fit, sigma_rel_to_gamma, stored_averages, whole_file
from gda.io.atomic import write_bytes
from gda.io.publish import publish_once

# A profile this far off, relative L2, is as far from the one requested as a width 10 to 15% next to it is (sigma_rel 0.04 to 0.15):
# a sweep over widths could no longer tell its points apart.
RESIDUAL_LIMIT = 0.10
_WAIT = 0.5  # seconds between looks at what another process is making
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def average_generator(generator: Path, sigma_rel: float, out: Path, *, step: int | None = None, force: bool = False) -> Outcome:
    """Publish `generator` at `out` with each trained stage's weights averaged again from its snapshots, which are left behind.

    A stage that was trained for fewer steps than `step` is taken at its last. Raises `ConfigError` for a width or step that the
    snapshots cannot give (`force` takes a poor fit), `DataError` for missing or damaged snapshots, `MissingError` for a missing generator.
    """
    card, fits = _plan(generator, sigma_rel, step=step, force=force)
    fingerprint = _fingerprint(card, fits, sigma_rel)
    reused = publish_once(fingerprint, out, lambda workspace: _write_generator(generator, card, fits, workspace.fresh_staging()))
    new = read_document(out / "generator.json", GeneratorCard)
    summary = f"{out} is up to date" if reused else f"wrote {out}: {new.averaging}; {_errors(fits)}"
    return Outcome(output=out, digest=new.digest, summary=summary, reused=reused)


def averaging_digest(generator: str, sigma_rel: float) -> str:
    """Digest of the average of width `sigma_rel` of a fine-tuned generator: its snapshots and how they are weighed; reads headers alone.

    Raises as `average_generator` does.
    """
    card, fits = _plan(Path(generator), sigma_rel)
    return _fingerprint(card, fits, sigma_rel).digest


def averaged(generator: str, sigma_rel: float, cache: Path) -> Path:
    """The generator with weights averaged at width `sigma_rel`, made once and kept in `cache` under the digest of its fingerprint.

    A process that comes while another makes it waits for it. Raises as `average_generator` does.
    """
    out = cache / averaging_digest(generator, sigma_rel)[:32]
    while True:
        try:
            return average_generator(Path(generator), sigma_rel, out).output
        except TryAgainError:
            time.sleep(_WAIT)


def _plan(generator: Path, sigma_rel: float, *, step: int | None = None, force: bool = False) -> tuple[GeneratorCard, dict[str, Fit]]:
    sigma_rel_to_gamma(sigma_rel)  # a width that no snapshots could give is reported before any are looked for
    if not generator.is_dir():
        raise MissingError(f"{generator}: no such generator directory")
    card = read_card(str(generator))
    fits = _fit_stages(generator, card, sigma_rel, step)
    poor = [stage for stage, f in fits.items() if f.residual > RESIDUAL_LIMIT]
    if poor and not force:
        raise ConfigError(_too_sparse(generator / EMA_FOLDER / poor[0], fits[poor[0]]))
    return card, fits


def _fingerprint(card: GeneratorCard, fits: Mapping[str, Fit], sigma_rel: float) -> Fingerprint:
    snapshots = digest_of({stage: [[s.step, s.sigma_rel, s.digests] for s in f.stored] for stage, f in fits.items()})
    return Fingerprint(
        stage="ema",
        config={"sigma_rel": sigma_rel, "step": {stage: f.step for stage, f in fits.items()}},
        inputs={"generator": card.digest, "snapshots": snapshots},
        environment=bits_environment(),
    )


def _fit_stages(generator: Path, card: GeneratorCard, sigma_rel: float, step: int | None) -> dict[str, Fit]:
    stored = {stage: stored_averages(generator / EMA_FOLDER / stage) for stage in card.num_train_steps}
    if not stored:
        raise DataError(f"{generator}: was not fine-tuned, so there is nothing to average")
    longest = max(stored, key=lambda stage: stored[stage][-1].step)
    return {
        stage: fit(files, sigma_rel, step if step is None or stage == longest else min(step, files[-1].step))
        for stage, files in stored.items()
    }


def _too_sparse(folder: Path, fitted: Fit) -> str:
    near = ", ".join(str(step) for step in sorted({s.step for s in fitted.stored})[-2:])
    return (
        f"{folder}: snapshots too sparse for sigma_rel {fitted.sigma_rel:g} at step {fitted.step}: the profile would be "
        f"{fitted.residual:.1%} off, accepted is at most {RESIDUAL_LIMIT:.0%}; choose a stored step (near it: {near}), "
        "for a width nearer the stored ones, or take it as it is with --force"
    )


def _errors(fits: Mapping[str, Fit]) -> str:
    return "profile error " + ", ".join(f"{f.residual:.2%} ({stage})" for stage, f in fits.items())


def _write_generator(generator: Path, card: GeneratorCard, fits: Mapping[str, Fit], out: Path) -> GeneratorCard:
    """Copy everything but snapshots, fingerprint and adapters' files, put the new weights in place, and write the card last."""
    for item in sorted(generator.iterdir()):
        if item.name in (EMA_FOLDER, FINGERPRINT_FILE, LORA_FILE):  # an adapter's file holds the old average, not this one
            continue
        if item.is_dir():
            shutil.copytree(item, out / item.name, ignore=shutil.ignore_patterns(LORA_FILE))
        else:
            shutil.copy(item, out / item.name)
    for stage, fitted in fits.items():
        _replace_parameters(generator / EMA_FOLDER / stage, out / network_folder(card.family, stage) / _WEIGHTS, combine(fitted))
    steps = {stage: f.step for stage, f in fits.items()}
    width = next(iter(fits.values())).sigma_rel
    averaging = f"power, sigma_rel {width:g} at step {', '.join(f'{step} of {stage}' for stage, step in steps.items())}"
    new = card.model_copy(update={"digest": weights_digest(out), "averaging": averaging, "num_train_steps": steps})
    readme = out / "README.md"
    if readme.is_file():
        text = readme.read_text("utf-8").replace(card.digest, new.digest)
        write_bytes(readme, f"{text}\nWeights averaged after training: {averaging}.\n".encode())
    write_bytes(out / "generator.json", dump_document(new))
    return new


def _replace_parameters(origin: Path, path: Path, parameters: Mapping[str, torch.Tensor]) -> None:
    """Put `parameters` in the weights file at `path`, each in the type that it has there; buffers stay as they are."""
    with whole_file(path):
        weights = load_file(path)
    for name, value in parameters.items():
        if name not in weights or weights[name].shape != value.shape:
            there = tuple(weights[name].shape) if name in weights else "missing"
            raise DataError(f"{origin}: {name} has shape {tuple(value.shape)}, in the generator's weights it is {there}")
        weights[name] = value.to(weights[name].dtype)
    write_bytes(path, save(weights, metadata={"format": "pt"}))

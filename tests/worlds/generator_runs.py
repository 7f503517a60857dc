"""A fine-tuning's run as tracking sees it: a generator of a few bytes, metrics, curves and images over steps."""

from pathlib import Path

from PIL import Image

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.document import dump_document
from gda.artifacts.outcome import Outcome
from gda.tracking import RunRecord, record
from gda.tracking.generator_versions import generator_model

NAME = "gda-generator"
DIGEST, SNAPSHOT = "d" * 64, "e" * 64
STEPS = (10, 20)


def write_generator(path: Path, digest: str = DIGEST) -> Path:
    """A published folder as far as tracking reads it: a card, a file in a sub-folder, images over steps."""
    (path / "unet").mkdir(parents=True)
    (path / "unet" / "weights").write_bytes(b"weights of " + digest.encode())
    (path / "generator.json").write_bytes(dump_document(generator_card(digest)))
    for step in STEPS:
        Image.new("RGB", (8, 8), (step, 0, 0)).save(path / f"step-{step}.png")
    return path


def generator_card(digest: str = DIGEST) -> GeneratorCard:
    """The card of that generator."""
    return GeneratorCard(family="latent_unet", digest=digest, base_digest="b" * 64, snapshot_digest=SNAPSHOT, licence="OpenRAIL-M")


def generator_run(path: Path, digest: str = DIGEST, *, model: str | None = NAME, name: str = "finetune generator") -> RunRecord:
    """The run that made it, which registers it as `model`."""
    outcome = Outcome(
        output=path,
        digest=digest,
        summary="",
        metrics={"loss": 0.5},
        curves={"base_loss": [(1, 2.0), (2, 1.0)]},
        files=(path / "generator.json",),
        images={"sampled: 7/a": [(step, path / f"step-{step}.png") for step in STEPS]},
        model=generator_model(model, path, generator_card(digest), description="two classes"),
    )
    return record("finetune", name, outcome, params={"steps": 2}, datasets={"snapshot": ("data/real", SNAPSHOT)})

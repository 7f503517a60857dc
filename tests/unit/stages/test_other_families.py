"""The stages take any family: fine-tune, tune and sample with pipelines that are not the demo's cascade."""

import pandas as pd
import pytest
from tiny_pipelines import build_tiny_pipeline
from two_colours import two_colours

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.document import read_document
from gda.artifacts.tuning import Settings
from gda.config.load import load_config
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot
from gda.data.store.verify import verify_snapshot
from gda.stages import finetune, sample, tune

SMALL = (
    "finetune.num_train_steps=3",
    "finetune.batch_size=4",
    "finetune.jitter=0",
    "finetune.prompt_template=a photo of {class_name}",
    "tune.guidance_scales=[1.0,2.0]",
    "tune.images_per_class=6",
    "tune.cas_images_per_class=6",
    "tune.survivors=1",
    "tune.cas_seeds=1",
    "tune.cas_num_train_steps=3",
    "tune.batch_size=6",
    "tune.num_inference_steps=[2]",
    "sample.images_per_class=4",
    "sample.batch_size=4",
    "sample.shard_size=4",
    "sample.num_inference_steps=2",
    "classify.image_size=16",
    "classify.warmup_steps=1",
)


@pytest.mark.parametrize(("kind", "family"), [("sdxl", "latent_unet"), ("sd3", "flow_transformer")])
def test_finetune_tune_and_sample(tmp_path, monkeypatch, kind, family):
    """From a snapshot to a synthetic snapshot with the model's own scheduler, prompts and provenance, and the same again from its cache."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    world, config = two_colours(tmp_path / "world", per_class=30), load_config(None, SMALL)
    base = build_tiny_pipeline(kind, tmp_path / "base")
    real, generator = world / "real", tmp_path / "generator"
    finetune.run(config, snapshot=real, base=str(base), out=generator)
    card = read_document(generator / "generator.json", GeneratorCard)
    assert card.family == family
    assert card.prompts == {"blue": "a photo of blue", "red": "a photo of red"}
    tune.run(config, generator=str(generator), snapshot=real, out=tmp_path / "tuning")
    tuned = read_document(tmp_path / "tuning" / "settings.json", Settings)
    settings = tmp_path / "tuning" / "settings.json"
    sampled = sample.run(config, generator=str(generator), snapshot=real, settings=settings, out=tmp_path / "synthetic")
    synthetic = Snapshot.open(tmp_path / "synthetic")
    assert verify_snapshot(synthetic.path) == []
    assert load_images(synthetic, "train", size=16).images.shape == (8, 3, 16, 16)
    manifest: pd.DataFrame = synthetic.manifest("train")
    assert set(manifest["width"]) == {16}
    assert set(manifest["prompt"]) == set(card.prompts.values())
    assert set(manifest["guidance_scale"]) == {tuned.guidance_scale}
    assert set(manifest["generator_digest"]) == {card.digest}
    again = sample.run(
        config, generator=str(generator), snapshot=real, settings=tmp_path / "tuning" / "settings.json", out=tmp_path / "two"
    )
    assert again.digest == sampled.digest

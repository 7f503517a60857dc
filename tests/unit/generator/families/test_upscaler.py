"""The frozen upscaler after a cascade, with plain diffusers as the assess."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionUpscalePipeline
from tiny_upscaler import FACTOR, add_tiny_upscaler

from gda.artifacts.tuning import SamplingSettings
from gda.demo_base.build import build_tiny_cascade
from gda.errors import DataError
from gda.generator.families.cascade import load_cascade
from gda.generator.sampling.sampler import Sampler
from gda.generator.weights.directory import BASE, SUPER_RESOLUTION
from gda.runtime.torch_rng import RandomStreams

SETTINGS = SamplingSettings(guidance_scale=2.0, num_inference_steps=3, sr_num_inference_steps=2, sr_guidance_scale=3.0)


@pytest.fixture(scope="module")
def upscaled(tiny, tmp_path_factory):
    return add_tiny_upscaler(tiny, tmp_path_factory.mktemp("upscaled") / "tiny")


def _generate(folder, prompts, seeds, settings=SETTINGS):
    return Sampler(load_cascade(str(folder)), prompts).sample(prompts, seeds, settings)


def _generators_after_the_cascade(seeds):
    """Generators in the state in which the two pixel stages leave them: base start, image noise, super-resolution start."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for generator in generators:
        for side in (8, 16, 16):
            torch.randn(3, side, side, generator=generator)
    return generators


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_plain_diffusers_enlarges_the_cascades_images_alike(tiny, upscaled, guidance):
    """What comes out is what the plain pipeline makes of the two-stage cascade's images, prompts stated as strings."""
    prompts, seeds = ["Ab", "c"], [5, 6]
    settings = SETTINGS.model_copy(update={"sr_guidance_scale": guidance})
    ours = _generate(upscaled, prompts, seeds, settings)
    plain = StableDiffusionUpscalePipeline.from_pretrained(upscaled / "upscaler")
    plain.set_progress_bar_config(disable=True)
    peer = plain(
        prompt=prompts,
        image=_generate(tiny, prompts, seeds, settings).float() / 255,
        num_inference_steps=2,
        guidance_scale=guidance,
        generator=_generators_after_the_cascade(seeds),
        output_type="pt",
    ).images
    assert ours.shape == (2, 3, 16 * FACTOR, 16 * FACTOR)
    assert ours.dtype == torch.uint8
    assert ours.float().std() > 5
    assert (ours.float() - (peer * 255).round()).abs().max() <= 1


def test_an_enlarged_image_does_not_depend_on_its_neighbours(upscaled):
    """The upscaler's noise too comes from each image's own generator."""
    here = _generate(upscaled, ["a"] * 3, [7, 1, 2])
    there = _generate(upscaled, ["a"] * 3, [3, 4, 7])
    assert (here[0].int() - there[2].int()).abs().max() <= 1
    assert not torch.equal(here[0], here[1])


def test_the_scheduler_that_is_requested_samples_this_stage_too(upscaled):
    """`scheduler` is of every stage; a later sampling with the model's own is not touched by it."""
    cascade = load_cascade(str(upscaled))
    sampler = Sampler(cascade, ["a"])
    text = {"text": cascade.encode(["a"])["upscaler_states"], "empty": cascade.encode([""])["upscaler_states"]}
    image = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)

    def enlarge(scheduler):
        settings = SETTINGS.model_copy(update={"scheduler": scheduler})
        return cascade.upscaler.sample(image, **text, generators=[torch.Generator().manual_seed(0)], settings=settings)

    own = enlarge("model")
    assert not torch.equal(enlarge("ddpm"), own)
    assert torch.equal(enlarge("model"), own)
    assert torch.equal(sampler.sample(["a"], [1], SETTINGS), _generate(upscaled, ["a"], [1]))


def test_it_is_never_trained(tiny, upscaled):
    """It is no stage, has nothing that learns, and losses are what they are without it, at the size before it."""
    plain, cascade = load_cascade(str(tiny)), load_cascade(str(upscaled))
    assert cascade.stages == (BASE, SUPER_RESOLUTION)
    assert (cascade.train_size, cascade.image_size) == (16, 16 * FACTOR)
    assert (plain.train_size, plain.image_size) == (16, 16)
    modules = [part for part in cascade.upscaler.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    parameters = [p for module in modules for p in module.parameters()]
    assert len(parameters) > 100
    assert not any(p.requires_grad for p in parameters)
    assert not any(module.training for module in modules)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for stage in cascade.stages:
        losses = [
            c.loss(stage, c.network(stage), c.prepare(images), c.encode(["a", "b"]), RandomStreams([1, 2]), snr_gamma=None)
            for c in (plain, cascade)
        ]
        assert torch.equal(*losses)


def test_what_cannot_follow_a_cascade_is_one_clear_line(upscaled, tmp_path):
    """Another pipeline, images of a size that it would shrink and damaged weights are refused when the cascade is loaded."""
    other = shutil.copytree(upscaled, tmp_path / "other")
    index = other / "upscaler" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(
        DataError, match=r"upscaler/model_index\.json: _class_name must be StableDiffusionUpscalePipeline, found 'StableDiffusionPipeline'"
    ):
        load_cascade(str(other))
    odd = add_tiny_upscaler(build_tiny_cascade(tmp_path / "fourteen", low_size=8, size=14), tmp_path / "odd")
    with pytest.raises(DataError, match="takes images of multiples of 4 pixels, this cascade's have 14"):
        load_cascade(str(odd))
    cut = shutil.copytree(upscaled, tmp_path / "cut")
    weights = next((cut / "upscaler" / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    (cut / "generator.json").unlink()
    with pytest.raises(DataError, match=r"cut"):
        load_cascade(str(cut))

"""Loading, sampling and exporting a pixel cascade, with plain diffusers as the assess."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline
from relisted import recard

from gda.artifacts.tuning import SamplingSettings
from gda.demo_base.build import build_tiny_cascade
from gda.errors import ConfigError, DataError, MissingError
from gda.generator.families.cascade import load_cascade
from gda.generator.sampling.sampler import Sampler
from gda.generator.weights.directory import DEMO_BASE, read_card, weights_digest
from gda.generator.weights.export import export_generator

SETTINGS = SamplingSettings(guidance_scale=2.0, num_inference_steps=3, sr_num_inference_steps=2)


def _generate(cascade, seeds, settings=SETTINGS, prompts=None):
    prompts = prompts or ["a"] * len(seeds)
    return Sampler(cascade, prompts).sample(prompts, seeds, settings)


def test_a_batch_is_a_function_of_its_seeds(tiny):
    """The same prompts and seeds give the same bits, in any process and however often."""
    cascade = load_cascade(str(tiny))
    one, two = _generate(cascade, [1, 2, 3]), _generate(load_cascade(str(tiny)), [1, 2, 3])
    assert one.dtype == torch.uint8
    assert one.shape == (3, 3, 16, 16)
    assert torch.equal(one, two)
    assert not torch.equal(one[0], one[1])


def test_an_image_does_not_depend_on_its_neighbours(tiny):
    """Each image has its own generator: next to other seeds in an equal batch it is the same within rounding."""
    cascade = load_cascade(str(tiny))
    here, there = _generate(cascade, [7, 1, 2])[0], _generate(cascade, [3, 4, 7])[2]
    assert (here.int() - there.int()).abs().max() <= 1


def test_guidance_and_prompt_change_the_image(tiny):
    """Guidance 1 is the unguided conditional pass, and another prompt is another image."""
    cascade = load_cascade(str(tiny))
    plain = SETTINGS.model_copy(update={"guidance_scale": 1.0})
    assert not torch.equal(_generate(cascade, [1]), _generate(cascade, [1], plain))
    assert not torch.equal(_generate(cascade, [1]), _generate(cascade, [1], prompts=["b"]))


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
def test_other_schedulers_sample_reproducibly(tiny, scheduler):
    """Ancestral noise too comes from the image's own generator."""
    cascade = load_cascade(str(tiny))
    settings = SETTINGS.model_copy(update={"scheduler": scheduler})
    assert torch.equal(_generate(cascade, [1, 2], settings), _generate(cascade, [1, 2], settings))


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return build_tiny_cascade(tmp_path_factory.mktemp("learned") / "tiny", learned_variance=True)


def _edited(folder, out, part, **fields):
    """A copy of a cascade whose scheduler configuration at `part` has other fields."""
    shutil.copytree(folder, out)
    path = out / part / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    recard(out)
    return out


def _sample_by_diffusers(folder, seeds, settings):
    """What the plain IF pipelines sample from a cascade for the prompt "a", each image's numbers taken from its generator as ours are."""
    base = IFPipeline.from_pretrained(folder / "base")
    sr = IFSuperResolutionPipeline.from_pretrained(folder / "super_resolution")
    for pipe in (base, sr):
        pipe.set_progress_bar_config(disable=True)
        if settings.scheduler == "ddpm":
            pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    states, empty = base.encode_prompt(["a"] * len(seeds))
    given = {"prompt_embeds": states, "negative_prompt_embeds": empty, "generator": generators, "output_type": "pt"}
    small = base(guidance_scale=settings.guidance_scale, num_inference_steps=settings.num_inference_steps, **given).images
    # diffusers samples the start noise before the noise of the condition, we after it: it is filled in when the condition has its noise.
    start, add_noise = torch.empty(len(seeds), 3, 16, 16), sr.image_noising_scheduler.add_noise

    def add_noise_and_start(up, noise, timesteps):
        start.copy_(torch.stack([torch.randn(3, 16, 16, generator=g) for g in generators]))
        return add_noise(up, noise, timesteps)

    sr.prepare_intermediate_images = lambda *_: start
    sr.image_noising_scheduler.add_noise = add_noise_and_start
    peer = sr(
        image=small.clamp(-1, 1),
        guidance_scale=settings.sr_guidance_scale,
        noise_level=settings.sr_noise_level,
        num_inference_steps=settings.sr_num_inference_steps,
        **given,
    ).images
    return ((peer.clamp(-1, 1) + 1) * 127.5).round()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("scheduler", ["model", "ddpm"])
@pytest.mark.parametrize("variance", ["fixed", "learned"])
def test_plain_diffusers_samples_the_same_images(tiny, learned, variance, scheduler, guidance):
    """What we sample from an export is what diffusers' own IF pipelines sample from it, given the same noise."""
    folder = {"fixed": tiny, "learned": learned}[variance]
    settings = SETTINGS.model_copy(update={"scheduler": scheduler, "sr_guidance_scale": guidance, "sr_num_inference_steps": 3})
    ours = _generate(load_cascade(str(folder)), [5, 6], settings)
    assert (ours.float() - _sample_by_diffusers(folder, [5, 6], settings)).abs().max() <= 1


def test_the_small_images_noise_follows_its_own_scheduler(tiny, tmp_path):
    """At a level above 0 the image noising scheduler decides, as in diffusers; a level that it does not have is refused."""
    part = "super_resolution/image_noising_scheduler"
    folder = _edited(tiny, tmp_path / "edited", part, beta_schedule="linear", num_train_timesteps=300)
    settings = SETTINGS.model_copy(update={"sr_noise_level": 250})
    ours = _generate(load_cascade(str(folder)), [5, 6], settings)
    assert (ours.float() - _sample_by_diffusers(folder, [5, 6], settings)).abs().max() <= 1
    assert (ours.int() - _generate(load_cascade(str(tiny)), [5, 6], settings).int()).abs().max() > 5
    with pytest.raises(ConfigError, match="sr_noise_level: must be below 300 for this cascade, got 300"):
        _generate(load_cascade(str(folder)), [5], settings.model_copy(update={"sr_noise_level": 300}))


def test_only_ancestral_sampling_heeds_the_learned_variance(learned, tmp_path):
    """DDPM samples other images with the learned variance than with the fixed one; the other schedulers sample the same to the bit."""
    fixed = _edited(learned, tmp_path / "base", "base/scheduler", variance_type="fixed_small")
    fixed = _edited(fixed, tmp_path / "both", "super_resolution/scheduler", variance_type="fixed_small")
    ours, peer = load_cascade(str(learned)), load_cascade(str(fixed))
    for scheduler, alike in (("ddpm", False), ("ddim", True), ("dpmsolver++", True)):
        settings = SETTINGS.model_copy(update={"scheduler": scheduler})
        assert torch.equal(_generate(ours, [1, 2], settings), _generate(peer, [1, 2], settings)) == alike, scheduler


def test_export_keeps_what_was_not_trained(tiny, tmp_path):
    """New base weights replace the base's alone; the card names base, data, prompts and licence."""
    weights = {k: torch.zeros_like(v) for k, v in load_cascade(str(tiny)).base.state_dict().items()}
    card = export_generator(str(tiny), {"base": weights}, tmp_path / "g", prompts={"0": "0"}, snapshot_digest="d", steps={"base": 1})
    again = load_cascade(str(tmp_path / "g"))
    assert all(not v.any() for v in again.base.state_dict().values())
    assert any(v.any() for v in again.super_resolution.state_dict().values())
    assert card == again.card
    assert (card.base_digest, card.licence, card.digest) == (read_card(str(tiny)).digest, "Apache-2.0", weights_digest(tmp_path / "g"))


def test_an_export_carries_no_path_of_the_machine_that_made_it(tiny, tmp_path):
    """diffusers writes where a model was loaded from into its configurations; an export drops it."""
    base = shutil.copytree(tiny, tmp_path / "base")
    config = base / "base" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": "/home/somebody/model"}))
    export_generator(str(base), {}, tmp_path / "g", prompts={}, snapshot_digest="d", steps={})
    assert not any("_name_or_path" in path.read_text() for path in (tmp_path / "g").rglob("*.json"))


def test_the_digest_is_of_content_not_of_files(tiny, tmp_path):
    """A library's version stamp changes no identity; one changed weight does."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    index = copy / "base" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_diffusers_version": "9.9"}))
    assert weights_digest(copy) == weights_digest(tiny)
    path = copy / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert weights_digest(copy) != weights_digest(tiny)


def test_unusable_bases_are_one_clear_line(tiny, tmp_path):
    """Missing folder, unknown family, pickled and damaged weights are each stated, with what is accepted."""
    with pytest.raises(MissingError, match="no such generator directory"):
        load_cascade(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="not a generator"):
        load_cascade(str(tmp_path))
    other = shutil.copytree(tiny, tmp_path / "other")
    (other / "base" / "model_index.json").write_text('{"_class_name": "FancyPipeline"}')
    with pytest.raises(DataError, match=r"FancyPipeline.*known: IFPipeline"):
        load_cascade(str(other))
    pickled = shutil.copytree(tiny, tmp_path / "pickled")
    weights = pickled / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(DataError, match=r"must be safetensors, found diffusion_pytorch_model\.bin"):
        load_cascade(str(pickled))
    cut = shutil.copytree(tiny, tmp_path / "cut")
    weights = cut / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (cut / "generator.json").unlink()
    with pytest.raises(DataError, match="safetensors"):
        load_cascade(str(cut))


def test_the_shipped_base_is_whole_and_small():
    """The package carries a loadable cascade of at most 8 MB with no absolute path in it."""
    cascade = load_cascade(DEMO_BASE)
    assert (cascade.low_size, cascade.image_size) == (14, 28)
    assert cascade.card.digest == weights_digest(cascade.path)
    files = [p for p in cascade.path.parent.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 8_000_000
    assert not any("_name_or_path" in p.read_text() for p in files if p.suffix == ".json")


def test_prompts_mean_their_digit_to_the_shipped_base():
    """Zero-shot, the shipped base samples different things for different digits: its text conditioning works."""
    cascade = load_cascade(DEMO_BASE)
    settings = SamplingSettings(guidance_scale=3.0, num_inference_steps=8, sr_num_inference_steps=3)
    one, zero = (_generate(cascade, [1, 2, 3, 4], settings, [p] * 4).float().mean((0, 1)) for p in ("1", "0"))
    # The centre of a 1 is ink, the centre of a 0 is not.
    assert np.asarray(one[10:18, 12:16]).mean() > np.asarray(zero[10:18, 12:16]).mean() + 20

"""The denoising loop: its start, the guided steps, the noise it samples, and its error for outputs that are not finite."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)
from tiny_pipelines import build_tiny_pipeline

from gda.artifacts.tuning import SamplingSettings
from gda.demo_base.build import build_tiny_cascade
from gda.errors import ConfigError, NotFiniteError
from gda.generator.families.denoising import MixedVariance, timesteps_of, to_uint8
from gda.generator.families.guidance import GuidedSteps
from gda.generator.families.opening import load_model
from gda.generator.families.protocol import SCHEDULERS, Start
from gda.generator.sampling.sampler import Sampler
from gda.generator.sampling.speed import Speed, speed_up

PROMPTS = ("red", "blue")
SEEDS = (1, 2)
SETTINGS = SamplingSettings(guidance_scale=3.0, num_inference_steps=8, sr_num_inference_steps=4)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """A folder that holds a tiny generator of every kind, built when it is first requested."""
    root = tmp_path_factory.mktemp("kinds")

    def build(kind):
        if not (root / kind).is_dir():
            (build_tiny_cascade if kind == "cascade" else lambda out: build_tiny_pipeline(kind, out))(root / kind)
        return str(root / kind)

    return build


def _generate(model, settings=SETTINGS, start=None):
    return Sampler(model, PROMPTS).sample(PROMPTS, SEEDS, settings, start)


def _with(**changes):
    return SETTINGS.model_copy(update=changes)


def _pictures(side):
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3"])
def test_starting_from_images_is_diffusers_image_to_image(worlds, kind):
    """At equal seeds, steps and strength the sampled images are those of diffusers' own image-to-image pipeline."""
    model = load_model(worlds(kind))
    start = Start(images=_pictures(16), strength=0.5)
    ours = _generate(model, start=start)
    pipeline = AutoPipelineForImage2Image.from_pipe(load_model(worlds(kind)).pipeline)
    pipeline.set_progress_bar_config(disable=True)
    peer = pipeline(
        prompt=list(PROMPTS),
        image=start.images.float() / 255,
        strength=0.5,
        guidance_scale=3.0,
        num_inference_steps=8,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="pt",
    ).images
    assert (ours.float() - peer * 255).abs().max() <= 1


@pytest.mark.parametrize("kind", ["cascade", "sd1", "sd3"])
def test_a_lower_strength_stays_nearer_to_its_source(worlds, kind):
    """Noise and steps left grow with strength, and so does the distance from the source; strength 1 goes all the way."""
    model, side = load_model(worlds(kind)), 16
    flat = torch.full((2, 3, side, side), 128, dtype=torch.uint8)
    seen = []
    steps = model.sampling_networks[0].register_forward_hook(lambda *_: seen.append(1))
    counts = []
    for strength in (0.25, 0.5, 1.0):
        seen.clear()
        _generate(model, _with(guidance_scale=1.0), Start(images=flat, strength=strength))
        counts.append(len(seen))
    steps.remove()
    assert counts == [2, 4, 8]
    if kind != "cascade":  # an untrained network is no assess of nearness; in latent space its decoder would be requested too
        return
    near, far = (_generate(model, start=Start(images=flat, strength=s)).float() for s in (0.25, 1.0))
    assert (near - 128).abs().mean() < (far - 128).abs().mean()


def test_each_image_starts_from_its_own_source(worlds):
    """Sources are not mixed up in a batch: exchanging two of them exchanges what is sampled from them."""
    model = load_model(worlds("cascade"))
    pictures = _pictures(16)
    settings = _with(guidance_scale=1.0)
    sampler = Sampler(model, PROMPTS)
    one = sampler.sample(["red", "red"], [5, 5], settings, Start(images=pictures, strength=0.5))
    two = sampler.sample(["red", "red"], [5, 5], settings, Start(images=pictures.flip(0), strength=0.5))
    assert (one.int() - two.flip(0).int()).abs().max() <= 1
    assert (one[0].int() - one[1].int()).abs().max() > 10


def test_a_strength_that_leaves_no_step_is_refused(worlds):
    """The refusal names both settings that could mend it."""
    with pytest.raises(ConfigError, match=r"sample\.strengths: 0\.1 of 8 steps.*num_inference_steps"):
        _generate(load_model(worlds("sd1")), start=Start(images=_pictures(16), strength=0.1))


@pytest.mark.parametrize("kind", ["cascade", "sd1", "sd3"])
def test_guidance_holds_in_its_interval_alone(worlds, kind):
    """Whole is as without an interval, empty is as without guidance, and inside it alone two passes share a batch."""
    model = load_model(worlds(kind))
    rows = []
    hook = model.sampling_networks[0].register_forward_hook(
        lambda _m, args, kwargs, _o: rows.append(len(kwargs.get("hidden_states", args[0] if args else None))), with_kwargs=True
    )
    whole, unguided = _generate(model), _generate(model, _with(guidance_scale=1.0))
    rows.clear()
    middle = _generate(model, _with(guidance_interval=(0.3, 0.7)))
    assert sorted(set(rows)) == [2, 4]
    assert rows[0] == rows[-1] == 2
    rows.clear()
    assert torch.equal(_generate(model, _with(guidance_interval=(0.0, 0.0))), unguided)
    assert set(rows) == {2}
    hook.remove()
    assert not torch.equal(middle, whole)
    assert not torch.equal(middle, unguided)


def test_the_interval_is_in_shares_of_the_timesteps():
    """Both ends count, and a scale of one is never guided."""
    guidance = GuidedSteps(scale=2.0, interval=(0.25, 0.5))
    assert [guidance.applies(torch.tensor(t), 1000) for t in (249, 250, 500, 501)] == [False, True, True, False]
    assert not GuidedSteps(scale=1.0).applies(torch.tensor(300), 1000)


@pytest.mark.parametrize(("mix", "variance_type"), [(0.0, "fixed_small"), (1.0, "fixed_large")])
def test_the_ends_of_the_mix_are_the_two_fixed_variances(mix, variance_type):
    """Mix 0 steps as DDPM with the smallest variance does, mix 1 as with the largest; between them the logarithms are mixed."""
    plain = DDPMScheduler(variance_type=variance_type, clip_sample=False, beta_schedule="squaredcos_cap_v2")
    mixed = MixedVariance.of(plain, mix)
    half = MixedVariance.of(plain, 0.5)
    for scheduler in (plain, mixed, half):
        scheduler.set_timesteps(10)
    for t in plain.timesteps[:-1]:
        # diffusers' largest variance is beta_t between the steps that are taken.
        torch.testing.assert_close(mixed._get_variance(t), plain._get_variance(t), rtol=1e-5, atol=0)
        ends = MixedVariance.of(plain, 0.0), MixedVariance.of(plain, 1.0)
        for end in ends:
            end.set_timesteps(10)
        small, large = (end._get_variance(t) for end in ends)
        torch.testing.assert_close(half._get_variance(t), (small * large).sqrt(), rtol=1e-5, atol=0)
        assert small < half._get_variance(t) < large


def test_the_mix_changes_both_stages_of_a_cascade(worlds):
    """Each stage has its own, null leaves the variance to the model, and the images are functions of the seeds still."""
    model = load_model(worlds("cascade"))
    ddpm = _with(scheduler="ddpm")
    plain = _generate(model, ddpm)
    base = _generate(model, ddpm.model_copy(update={"log_variance_mix": 1.0}))
    top = _generate(model, ddpm.model_copy(update={"sr_log_variance_mix": 1.0}))
    assert torch.equal(base, _generate(model, ddpm.model_copy(update={"log_variance_mix": 1.0})))
    assert not torch.equal(plain, base)
    assert not torch.equal(plain, top)
    assert not torch.equal(base, top)


@pytest.mark.parametrize("scheduler", ["model", "ddim", "dpmsolver++", "unipc"])
def test_a_mix_needs_ancestral_steps(worlds, scheduler):
    """Solvers of the deterministic equation sample no noise that could be mixed: a configuration error, not a silent no-op."""
    model = load_model(worlds("sd1"))
    with pytest.raises(ConfigError, match="log_variance_mix: needs the scheduler ddpm"):
        _generate(model, _with(scheduler=scheduler, log_variance_mix=0.3))


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
@pytest.mark.parametrize("kind", ["cascade", "sd1", "sd2"])
def test_every_scheduler_samples(worlds, kind, scheduler):
    """All that the configuration accepts give images that are functions of their seeds."""
    model = load_model(worlds(kind))
    images = _generate(model, _with(scheduler=scheduler))
    assert torch.equal(images, _generate(model, _with(scheduler=scheduler)))
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("kind", ["cascade", "sd1", "sd3"])
def test_images_that_are_not_finite_are_named(worlds, kind):
    """NaN would be stored as black without a word: the rows that hold it are named, and no image comes out."""
    model = load_model(worlds(kind))
    network = model.sampling_networks[-1]

    def poison(_module, _args, output):
        broken = output[0] if isinstance(output, tuple) else output
        tensor = broken.sample if hasattr(broken, "sample") else broken
        tensor[-1] = torch.nan

    target = getattr(network, "decoder", network)
    handle = target.register_forward_hook(poison)
    with pytest.raises(NotFiniteError, match="1 of 2 generated images") as caught:
        _generate(model, _with(guidance_scale=1.0))
    handle.remove()
    assert caught.value.rows == (1,)


def test_timesteps_keep_the_tail():
    """Strength keeps the last share of the steps, as diffusers rounds it."""
    scheduler = DDPMScheduler()
    whole = timesteps_of(scheduler, 10, 1.0, torch.device("cpu")).tolist()
    assert timesteps_of(scheduler, 10, 0.35, torch.device("cpu")).tolist() == whole[-3:]


@pytest.mark.parametrize("kind", ["cascade", "sd1", "sdxl", "sd3"])
def test_bf16_stays_close(worlds, kind):
    """Half the bytes a weight give nearly the same images: what is denoised stays float32 between the passes."""
    exact = _generate(load_model(worlds(kind))).float()
    model = load_model(worlds(kind))
    speed_up(model, Speed(precision="bf16"))
    assert {p.dtype for network in model.sampling_networks for p in network.parameters()} == {torch.bfloat16}
    close = _generate(model).float()
    assert not torch.equal(exact, close)
    assert (exact - close).square().mean().sqrt() < 8


@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, DPMSolverMultistepScheduler, DDIMScheduler])
@pytest.mark.parametrize("strength", [0.29, 0.5, 1.0])
def test_image_to_image_begins_where_diffusers_begins(kind, strength):
    """The part of the steps that a strength leaves, also of schedulers that look at each step twice, as diffusers' own pipeline cuts it."""
    ours, peer = kind(), kind()
    peer.set_timesteps(7)
    expected, _ = StableDiffusionImg2ImgPipeline.get_timesteps(SimpleNamespace(scheduler=peer), 7, strength, torch.device("cpu"))
    assert timesteps_of(ours, 7, strength, torch.device("cpu")).tolist() == expected.tolist()
    assert getattr(ours, "begin_index", None) == getattr(peer, "begin_index", None)


def test_compiling_reaches_every_network_that_samples(tmp_path):
    """A network that is left out would be sampled with at its old speed, and nobody would know."""
    model = load_model(str(build_tiny_pipeline("sd1", tmp_path / "generator")))
    speed_up(model, Speed(compile=True))
    compiled = [module for network in model.sampling_networks for module in network.modules() if module._compiled_call_impl is not None]
    assert len(compiled) == len(model.sampling_networks) == 2


def test_grey_levels_are_rounded_to_the_nearest():
    """Cutting off would darken every image by half a level."""
    levels = torch.tensor([0.0, 0.4, 0.6, 254.4, 254.6, 255.0]).reshape(1, 1, 2, 3)
    assert to_uint8(levels).flatten().tolist() == [0, 0, 1, 254, 255, 255]

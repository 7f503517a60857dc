"""Cost and time of a plan: what is counted from configurations is what sampling computes, and the words say it."""

import json

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler, PNDMScheduler
from tiny_pipelines import build_tiny_pipeline
from tiny_upscaler import add_tiny_upscaler
from torch.utils.flop_counter import FlopCounterMode

from gda.artifacts.tuning import SamplingSettings
from gda.errors import ConfigError, DataError, MissingError
from gda.generator.families.opening import load_model
from gda.generator.planning.cost import Cost, PartCost, count_flops, count_steps, estimate_cost
from gda.generator.planning.duration import Rate, measure_rate
from gda.generator.planning.image_plan import make_image_plan
from gda.generator.planning.networks import Network, networks_of
from gda.generator.planning.plan import equal_quotas, make_plan
from gda.generator.planning.plan_text import describe_plan
from gda.generator.sampling.sampler import Sampler

KINDS = ("sd1", "sd2", "sdxl", "sd3", "cascade", "upscaler")
PLAN = make_plan(equal_quotas(["a", "b"], 6), seed=0, shard_size=4, batch_size=4)
SD15 = {
    "unet": {"_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
    },
    "text_encoder": {"max_position_embeddings": 77},
}
SD3M = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}


@pytest.fixture(scope="module")
def generators(tiny, tmp_path_factory):
    """One tiny generator a kind, by kind."""
    root = tmp_path_factory.mktemp("generators")
    made = {kind: build_tiny_pipeline(kind, root / kind) for kind in KINDS[:4]}
    return made | {"cascade": tiny, "upscaler": add_tiny_upscaler(tiny, root / "upscaler")}


def _write(folder, configs):
    for part, config in configs.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps(config))
    return folder


def _image_plan(quota=6, strengths=(0.25, 0.5, 1.0)):
    quotas = equal_quotas(["a", "b"], quota)
    sources = {"a": ["x", "y"], "b": ["z"]}
    return make_image_plan(quotas, sources, strengths=strengths, other_class_fraction=0.5, seed=0, shard_size=4, batch_size=4)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_what_sampling_computes(generators, kind, guidance):
    """FLOPs an image, counted from configurations, are to the last one those of an image that is sampled, whatever the family."""
    settings = SamplingSettings(guidance_scale=guidance, num_inference_steps=3, sr_guidance_scale=guidance, sr_num_inference_steps=2)
    sampler = Sampler(load_model(str(generators[kind])), ["a"])
    for interval in ((0.0, 1.0), (0.2, 0.6)):
        request = settings.model_copy(update={"guidance_interval": interval})
        with FlopCounterMode(display=False) as counter:
            sampler.sample(["a"], [0], request)
        cost = estimate_cost(str(generators[kind]), request, PLAN)
        assert cost.flops_per_image == counter.get_total_flops()
        assert cost.total_flops == 12 * cost.flops_per_image


def test_known_networks_cost_what_is_known_of_them(tmp_path):
    """Stable Diffusion 1.5 at 512 px is 803 GFLOP a pass and Stable Diffusion 3 Medium at 1024 px 8,904, counted without weights."""
    _write(tmp_path / "sd15", SD15 | {"scheduler": {"_class_name": "PNDMScheduler", "skip_prk_steps": True}})
    (tmp_path / "sd15" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    cost = estimate_cost(str(tmp_path / "sd15"), SamplingSettings(guidance_scale=7.5, num_inference_steps=50), PLAN)
    assert [part.network.name for part in cost.parts] == ["unet", "decoder"]
    assert round(cost.parts[0].flops / 1e9) == 803
    # Its own scheduler takes one step more than requested.
    assert (cost.parts[0].nfe, cost.parts[1].nfe) == (102, 1)
    _write(tmp_path / "sd3", {"transformer": SD3M, "vae": SD15["vae"], "text_encoder": SD15["text_encoder"]})
    assert round(count_flops(networks_of(tmp_path / "sd3")[0]) / 1e9) == 8904


def test_a_guidance_interval_saves_its_passes():
    """Steps inside the interval are two passes, both ends included, and outside one; guidance 1 is one everywhere."""

    def steps(guidance, interval, strength=1.0):
        scheduler = DDPMScheduler(num_train_timesteps=1000)  # timesteps of 10 steps: 900, 800, ..., 0
        found = count_steps(scheduler, 10, guidance=guidance, interval=interval, strength=strength)
        return found.guided, found.single, found.nfe

    assert steps(2.0, (0.0, 1.0)) == (10, 0, 20)
    assert steps(1.0, (0.0, 1.0)) == (0, 10, 10)
    assert steps(2.0, (0.2, 0.5)) == (4, 6, 14)
    assert steps(2.0, (0.2, 0.5), strength=0.4) == (2, 2, 6)
    assert steps(2.0, (0.0, 0.0)) == (1, 9, 11)


@pytest.mark.parametrize(
    ("scheduler", "nfe"),
    [
        (DPMSolverMultistepScheduler(num_train_timesteps=1000), 10),
        (PNDMScheduler(num_train_timesteps=1000, skip_prk_steps=True), 11),
        (HeunDiscreteScheduler(num_train_timesteps=1000), 19),
    ],
    ids=["dpmsolver", "pndm", "heun"],
)
def test_solvers_are_counted_by_the_passes_they_make(scheduler, nfe):
    """A multi-step solver makes one pass a step; PNDM makes one more, and Heun's looks twice at all but the last."""
    assert count_steps(scheduler, 10, guidance=1.0, interval=(0.0, 1.0)).nfe == nfe


def test_image_to_image_skips_steps_and_encodes(generators):
    """Passes are the mean over the plan's strengths, in both stages of a cascade but not in an upscaler; latent families encode once."""
    settings = SamplingSettings(guidance_scale=2.0, num_inference_steps=8, sr_num_inference_steps=4)
    plan = _image_plan()
    # A quarter, half and all of 8 steps, two passes each; of 4 steps, one pass each.
    nfe = {part.network.name: part.nfe for part in estimate_cost(str(generators["upscaler"]), settings, plan).parts}
    assert nfe == {
        "base": pytest.approx(2 * (2 + 4 + 8) / 3),
        "super_resolution": pytest.approx((1 + 2 + 4) / 3),
        "upscaler": 4,
        "upscaler decoder": 1,
    }
    cost = estimate_cost(str(generators["sd1"]), settings, plan)
    assert [(part.network.name, part.nfe) for part in cost.parts] == [
        ("encoder", 1),
        ("unet", pytest.approx(28 / 3)),
        ("decoder", 1),
    ]
    vae = load_model(str(generators["sd1"])).pipeline.vae
    with FlopCounterMode(display=False) as counter:
        vae.encode(torch.zeros(1, 3, 16, 16))
    assert cost.parts[0].flops == counter.get_total_flops()


def test_a_strength_that_leaves_no_step_is_refused(generators):
    """A plan that could not be sampled is refused before it is estimated."""
    with pytest.raises(ConfigError, match=r"sample\.strengths: 0\.25 of 3 steps leaves none"):
        estimate_cost(str(generators["sd1"]), SamplingSettings(guidance_scale=1.0, num_inference_steps=3), _image_plan())


def test_what_cannot_be_counted_is_named(tmp_path):
    """A missing generator, one of an unknown network and one without a size are errors in one line."""
    settings = SamplingSettings(guidance_scale=1.0)
    with pytest.raises(MissingError, match="no such generator"):
        estimate_cost(str(tmp_path / "none"), settings, PLAN)
    for config, message in (
        ({"_class_name": "NoSuchNet", "sample_size": 8}, "no network can be built from it"),
        ({"_class_name": "UNet2DConditionModel", "sample_size": None}, "sample_size must be one whole number, .*, found None"),
    ):
        _write(tmp_path / "bad", {"unet": config, "vae": SD15["vae"], "scheduler": {}})
        with pytest.raises(DataError, match=message):
            estimate_cost(str(tmp_path / "bad"), settings, PLAN)


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_is_timed_in_batches_of_the_plan(generators, kind):
    """Each network of a loaded model runs at the plan's batch, twice as large where it is guided."""
    settings = SamplingSettings(guidance_scale=2.0, num_inference_steps=2, sr_num_inference_steps=2)
    cost = estimate_cost(str(generators[kind]), settings, PLAN)
    rate = measure_rate(load_model(str(generators[kind])), cost, batch_size=4)
    assert rate.rows == {part.network.name: 8 if part.network.name in ("base", "unet", "transformer") else 4 for part in cost.parts}
    assert all(seconds > 0 for seconds in rate.seconds.values())
    assert rate.seconds_per_image(cost) == pytest.approx(sum(rate.seconds[p.network.name] * p.nfe for p in cost.parts))


def test_a_slow_network_is_timed_in_small_batches(generators):
    """Timing keeps to its budget: without one it makes do with the first pass of one image."""
    cost = estimate_cost(str(generators["sd1"]), SamplingSettings(guidance_scale=2.0), PLAN)
    assert set(measure_rate(load_model(str(generators["sd1"])), cost, batch_size=4, budget_s=0.0).rows.values()) == {1}


def test_the_precision_of_the_model_is_what_is_timed(generators):
    """A model in bfloat16 is given bfloat16, as it is when it samples."""
    model = load_model(str(generators["sd3"]))
    for part in (model.pipeline.transformer, model.pipeline.vae):
        part.to(torch.bfloat16)
    cost = estimate_cost(str(generators["sd3"]), SamplingSettings(guidance_scale=1.0), PLAN)
    assert measure_rate(model, cost, batch_size=2).rows == {"transformer": 2, "decoder": 2}


def _part(name, role, flops, nfe, **more):
    return PartCost(network=Network(name=name, role=role, folder=None, side=8), flops=flops, nfe=nfe, **more)


def _cost(num_images):
    parts = (_part("unet", "denoise", 8e11, 30.0, guided=True, shapes=2), _part("decoder", "decode", 2.5e12, 1.0))
    return Cost(parts=parts, num_images=num_images)


RATE = Rate(seconds={"unet": 0.1, "decoder": 1.0}, rows={"unet": 8, "decoder": 4})


def test_a_short_plan_in_words():
    """Every shard has its line; images, cost, time of one and of two workers and the break-even follow, with hand-made figures."""
    assert describe_plan(PLAN, _cost(12), RATE, workers=2) == [
        "train-000000.tar  4 images in 1 batch",
        "train-000001.tar  4 images in 1 batch",
        "train-000002.tar  4 images in 1 batch",
        "12 images of 2 classes in 3 shards, 3 batches of at most 4",
        "images per class: 6",
        "an image costs 26.5 TFLOP: unet 800 GFLOP x 30, decoder 2.5 TFLOP x 1 passes",
        "the plan costs 318 TFLOP",
        "about 48 s on this machine with one worker, 4 s an image, encoding and writing aside",
        "about 32 s with 2 such workers, the busiest of which samples 8 images",
    ]


def test_a_long_plan_in_few_words():
    """Of many shards the first, the last and their number are reported; of many classes the least, the most and the middle."""
    plan = make_plan({f"c{i}": 1000 * (i + 1) for i in range(11)}, seed=0, shard_size=100, batch_size=50)
    lines = describe_plan(plan, _cost(plan.num_images), RATE)
    assert lines == [
        "train-000000.tar  100 images in 2 batches",
        "... 658 more shards ...",
        "train-000659.tar  100 images in 2 batches",
        "66,000 images of 11 classes in 660 shards, 1,320 batches of at most 50",
        "images per class: 1,000 to 11,000, median 6,000",
        "an image costs 26.5 TFLOP: unet 800 GFLOP x 30, decoder 2.5 TFLOP x 1 passes",
        "the plan costs 1.749 EFLOP",
        "about 3.1 days on this machine with one worker, 4 s an image, encoding and writing aside",
    ]


def test_an_image_plan_in_words():
    """Classes are named where they differ; strengths, real images and other classes' images are counted."""
    quotas, sources = {"a": 5, "b": 3}, {"a": ["x", "y"], "b": ["z"]}
    plan = make_image_plan(quotas, sources, strengths=(0.5, 1.0), other_class_fraction=0.4, seed=0, shard_size=4, batch_size=4)
    assert describe_plan(plan, None, None) == [
        "train-000000.tar  4 images in 1 batch",
        "train-000001.tar  1 image in 1 batch",
        "train-000002.tar  3 images in 1 batch",
        "8 images of 2 classes in 3 shards, 3 batches of at most 4",
        "images per class: a 5, b 3",
        "images a strength: 0.5 5, 1 3",
        "from 3 real images; 3 towards another class than their source's",
    ]

"""Every family of one diffusers pipeline: fine-tunes, resumes, exports, and plain diffusers agrees with what it samples."""

import json
import shutil
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline
from stage_jobs import stage_job
from tiny_pipelines import build_tiny_pipeline

from gda.artifacts.tuning import SamplingSettings
from gda.demo_base.build import build_tiny_cascade
from gda.errors import ConfigError, DataError
from gda.generator.families import diffusers_pipeline
from gda.generator.families.opening import load_model
from gda.generator.families.protocol import SCHEDULERS, denoising_error, rows, snr_weights
from gda.generator.finetuning import train
from gda.generator.finetuning.train import finetune_stage
from gda.generator.sampling.sampler import Sampler
from gda.generator.weights.directory import BASE, SUPER_RESOLUTION, generated_size, read_card
from gda.generator.weights.export import export_generator
from gda.runtime.torch_rng import RandomStreams

KINDS = ("sd1", "sd2", "sdxl", "sd3")
DIFFUSION = KINDS[:3]
PROMPTS = ("red" * 10, "green" * 6, "blue" * 8, "grey" * 8)  # long enough that most tokens tell them apart
COLOURS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (120, 120, 120))
# Steps and rate by which a tiny network has learned four images: epsilon prediction hardly weighs the noise levels that decide the colour.
# Median distances over training seeds and kinds of kernels were 2.8 to 6.5 grey levels; at twice the rate single noises went astray.
LEARNED = {"sd1": (1500, 3e-3), "sd2": (700, 5e-3), "sdxl": (1500, 3e-3), "sd3": (300, 3e-3)}
NUM_NOISES = 8  # initial noises per prompt
NO_NOISE = {"prompt_dropout": 0.0, "ema_decay": 0.98}
SETTINGS = SamplingSettings(guidance_scale=2.0, num_inference_steps=3)


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    """One tiny random-weight pipeline a kind."""
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: build_tiny_pipeline(kind, root / kind) for kind in KINDS}


def _images():
    """Four images, each of one colour with a darker lower half: uint8 [4, 3, 16, 16]."""
    images = torch.tensor(COLOURS, dtype=torch.uint8)[:, :, None, None].repeat(1, 1, 16, 16)
    images[:, :, 8:] //= 2
    return images


def _job(path, work, *, steps=6, **changes):
    return stage_job(path, work, _images(), PROMPTS, steps=steps, **changes)


def _export(path, result, out):
    export_generator(
        str(path), {result.stage: result.weights}, out, prompts={p: p for p in PROMPTS}, snapshot_digest="d", steps={result.stage: 1}
    )
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_ends_in_identical_weights(pipelines, tmp_path, monkeypatch, kind):
    """Stopped after its second checkpoint and run again, every family ends bit for bit where the uninterrupted run ends."""
    whole = finetune_stage(_job(pipelines[kind], tmp_path / "whole"))
    ticks = []

    def stop_at_five(*_, **__):
        ticks.append(1)
        if len(ticks) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "tick", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        finetune_stage(_job(pipelines[kind], tmp_path / "cut"))
    monkeypatch.undo()
    resumed = finetune_stage(_job(pipelines[kind], tmp_path / "cut"))
    assert whole.losses == resumed.losses
    assert whole.weights.keys() == resumed.weights.keys()
    assert all(torch.equal(whole.weights[k], resumed.weights[k]) for k in whole.weights)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_diffusers_samples_the_same_from_an_export(pipelines, tmp_path, kind):
    """A fine-tuned export is a pipeline that diffusers loads by itself and that gives our images for our prompts and seeds."""
    path = pipelines[kind]
    out = _export(path, finetune_stage(_job(path, tmp_path / "work")), tmp_path / "generator")
    ours = Sampler(load_model(str(out)), PROMPTS[:2]).sample(PROMPTS[:2], [5, 6], SETTINGS)
    plain = DiffusionPipeline.from_pretrained(out)
    plain.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    peer = plain(
        list(PROMPTS[:2]), guidance_scale=2.0, num_inference_steps=3, generator=generators, output_type="pt", height=16, width=16
    ).images
    assert ours.dtype == torch.uint8
    assert ours.shape == (2, 3, 16, 16)
    assert (ours.float() - (peer * 255).round()).abs().max() <= 1
    before = Sampler(load_model(str(path)), PROMPTS[:2]).sample(PROMPTS[:2], [5, 6], SETTINGS)
    assert not torch.equal(ours, before)
    card = read_card(str(out))
    assert (card.family, card.base_digest) == (read_card(str(path)).family, read_card(str(path)).digest)
    assert card.digest != card.base_digest
    assert not any("_name_or_path" in p.read_text() for p in out.rglob("*.json"))


def _teach_autoencoder(folder):
    """Train the autoencoder to show the four images, with little noise and latents of unit scale: a random one shows nothing."""
    vae = AutoencoderKL.from_pretrained(folder)
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    images, generator = _images().float() / 127.5 - 1, torch.Generator().manual_seed(0)
    for _ in range(300):
        latent = vae.encode(images).latent_dist
        shown = vae.decode(latent.mean + 0.1 * torch.randn(latent.mean.shape, generator=generator)).sample
        loss = (shown - images).square().mean() + 0.01 * ((latent.logvar + 8).square().mean() + latent.mean.mean((0, 2, 3)).square().sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
    vae.register_to_config(scaling_factor=1 / float(latents.std()))
    vae.save_pretrained(folder)


def _distances(generator, settings):
    """Root mean square distances in grey levels, [noise, prompt, image], of what a generator samples to the four images."""
    sampler, wanted = Sampler(load_model(str(generator)), PROMPTS), _images().float().flatten(1)
    noises = [[len(PROMPTS) * i + j for j in range(len(PROMPTS))] for i in range(NUM_NOISES)]
    sampled = [sampler.sample(PROMPTS, seeds, settings).float().flatten(1) for seeds in noises]
    return torch.stack([torch.cdist(images, wanted) / wanted.shape[1] ** 0.5 for images in sampled])


def _share_of_own_image(distances):
    """Share of the samples that are nearest to the image of their own prompt."""
    return float((distances.argmin(2) == torch.arange(len(PROMPTS))).float().mean())


@pytest.mark.learning
@pytest.mark.parametrize("kind", KINDS)
def test_overfitting_four_images_reproduces_them(pipelines, tmp_path, kind):
    """A real learning test: trained on one image per prompt, each prompt gives its own image from most initial noises."""
    path = shutil.copytree(pipelines[kind], tmp_path / "base")
    _teach_autoencoder(path / "vae")
    steps, rate = LEARNED[kind]
    job = _job(path, tmp_path / "work", steps=steps, learning_rate=rate, batch_size=16, checkpointing_steps=10_000, **NO_NOISE)
    result = finetune_stage(job)
    settings = SamplingSettings(guidance_scale=1.0, num_inference_steps=20)
    learned, before = (_distances(g, settings) for g in (_export(path, result, tmp_path / "generator"), path))
    median = learned.median(0).values.diagonal()
    assert _share_of_own_image(learned) >= 0.9
    assert median.max() < 15
    assert before.median(0).values.diagonal().min() > 2 * median.max()


@pytest.mark.learning
def test_a_cascade_reproduces_four_images_from_noise(tmp_path):
    """The same learning test for the pixel cascade: both stages trained, each prompt gives its own image, base and enlargement."""
    path = build_tiny_cascade(tmp_path / "base")
    still = {"learning_rate": 3e-3, "batch_size": 16, "checkpointing_steps": 10_000, "jitter": 0.0} | NO_NOISE
    steps = {BASE: 500, SUPER_RESOLUTION: 300}
    weights = {
        stage: finetune_stage(stage_job(path, tmp_path / "work", _images(), PROMPTS, stage=stage, steps=count, **still)).weights
        for stage, count in steps.items()
    }
    out = tmp_path / "generator"
    export_generator(str(path), weights, out, prompts={p: p for p in PROMPTS}, snapshot_digest="d", steps=steps)
    distances = _distances(out, SamplingSettings(guidance_scale=1.0, num_inference_steps=20, sr_num_inference_steps=10))
    assert _share_of_own_image(distances) >= 0.9
    assert distances.median(0).values.diagonal().max() < 18  # grey levels; untrained it samples 100 and more


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_computed_once_unless_jitter_changes_the_image(pipelines, tmp_path, monkeypatch, kind):
    """Without jitter the four images pass the autoencoder once; with it every step does, and the run is another but as reproducible."""
    calls, encode = [], diffusers_pipeline.latent_moments
    monkeypatch.setattr(diffusers_pipeline, "latent_moments", lambda vae, images: calls.append(len(images)) or encode(vae, images))
    still = finetune_stage(_job(pipelines[kind], tmp_path / "a", steps=3))
    assert calls == [4]
    one = finetune_stage(_job(pipelines[kind], tmp_path / "b", steps=3, jitter=0.7))
    assert calls == [4, 4, 4, 4]
    two = finetune_stage(_job(pipelines[kind], tmp_path / "c", steps=3, jitter=0.7))
    assert one.losses == two.losses
    assert one.losses != still.losses


def test_the_empty_prompt_is_what_the_pipeline_itself_uses(pipelines):
    """XL's unconditional states are zeros because its pipeline is configured so; 1.x and 3 encode the empty prompt."""
    model = load_model(str(pipelines["sdxl"]))
    text = model.encode(["", "red"])
    assert not text["states"][0].any()
    assert not text["pooled"][0].any()
    assert text["states"][1].any()
    for kind in ("sd1", "sd3"):
        assert load_model(str(pipelines[kind])).encode([""])["states"].any()


def test_rows_of_a_batch_belong_to_their_prompts(pipelines):
    """Text states are picked by prompt, in any order and with repeats."""
    text = load_model(str(pipelines["sd3"])).encode(["blue", "red"])
    picked = rows(text, [1, 0, 1])
    assert all(torch.equal(picked[role][0], text[role][1]) and torch.equal(picked[role][1], text[role][0]) for role in text)


@pytest.mark.parametrize("kind", DIFFUSION)
def test_other_schedulers_sample_reproducibly(pipelines, kind):
    """A named scheduler replaces the model's own, keeps its schedule and prediction type, as in plain diffusers with that scheduler."""
    sampler = Sampler(load_model(str(pipelines[kind])), PROMPTS)
    for name in SCHEDULERS:
        settings = SETTINGS.model_copy(update={"scheduler": name})
        one, two = sampler.sample(PROMPTS, [1, 2, 3, 4], settings), sampler.sample(PROMPTS, [1, 2, 3, 4], settings)
        assert torch.equal(one, two)
        plain = DiffusionPipeline.from_pretrained(pipelines[kind])
        plain.set_progress_bar_config(disable=True)
        plain.scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(plain.scheduler.config)
        assert plain.scheduler.config["prediction_type"] == ("v_prediction" if kind == "sd2" else "epsilon")
        peer = plain(
            list(PROMPTS),
            guidance_scale=SETTINGS.guidance_scale,
            num_inference_steps=SETTINGS.num_inference_steps,
            generator=[torch.Generator().manual_seed(seed) for seed in (1, 2, 3, 4)],
            output_type="pt",
        ).images
        assert (one.float() - peer * 255).abs().max() <= 1


def test_a_flow_refuses_what_only_diffusion_has(pipelines, tmp_path):
    """Another model type's scheduler or loss weighting is one clear line, not a wrong image."""
    path = pipelines["sd3"]
    with pytest.raises(ConfigError, match=r"sample\.scheduler: must be 'model'"):
        Sampler(load_model(str(path)), PROMPTS).sample(PROMPTS[:1], [1], SETTINGS.model_copy(update={"scheduler": "ddim"}))
    with pytest.raises(ConfigError, match=r"finetune\.snr_gamma: must be null"):
        finetune_stage(_job(path, tmp_path, snr_gamma=5.0))


def test_min_snr_weights_are_those_of_the_paper():
    """min(SNR, gamma) over what the prediction type carries; an independent formula from the cumulative products."""
    for kind in ("epsilon", "v_prediction", "sample"):
        schedule = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type=kind)
        t = torch.tensor([0, 10, 500, 999])
        weights = snr_weights(schedule, t, 5.0)
        for step, weight in zip(t.tolist(), weights.tolist(), strict=True):
            kept = float(schedule.alphas_cumprod[step])
            snr = kept / (1 - kept)
            expected = min(snr, 5.0) / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[kind]
            assert weight == pytest.approx(expected, rel=1e-5)


def test_min_snr_changes_the_loss_as_its_weights_say():
    """Two images at two noise levels: the weighted loss is the weighted mean of their own errors."""
    schedule = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon")
    noise, t = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 700])
    predicted, clean = torch.zeros_like(noise), torch.zeros_like(noise)
    errors, weights = noise.square().mean((1, 2, 3)), snr_weights(schedule, t, 5.0)
    assert denoising_error(schedule, predicted, clean, noise, t, snr_gamma=5.0).tolist() == pytest.approx((errors * weights).tolist())
    assert denoising_error(schedule, predicted, clean, noise, t, snr_gamma=None).tolist() == pytest.approx(errors.tolist())
    assert weights[0] < 0.1 < weights[1] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_size_is_read_without_loading_weights(pipelines, kind):
    """The gate reads a generator's image size from its configurations; it equals that of the loaded model."""
    assert generated_size(pipelines[kind]) == load_model(str(pipelines[kind])).image_size == 16


def test_unusable_pipelines_are_one_clear_line(pipelines, tmp_path):
    """Unknown pipelines, pickled parts and a pipeline where a cascade is expected are refused with what is accepted."""
    other = shutil.copytree(pipelines["sd1"], tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"_class_name": "FancyPipeline"}))
    with pytest.raises(DataError, match=r"FancyPipeline.*known: IFPipeline, StableDiffusionPipeline"):
        load_model(str(other))
    pickled = shutil.copytree(pipelines["sd1"], tmp_path / "pickled")
    weights = next((pickled / "text_encoder").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(DataError, match=r"text_encoder/ weights must be safetensors, found model\.bin; convert with"):
        load_model(str(pickled))
    nested = tmp_path / "nested"
    shutil.copytree(pipelines["sd1"], nested / "base")
    with pytest.raises(DataError, match="any other pipeline lies at the top"):
        load_model(str(nested))


def test_a_stated_licence_is_kept_and_none_is_guessed(pipelines, tmp_path):
    """The front matter of the base's README names its licence on every card made from it; without one it is unknown."""
    stated = shutil.copytree(pipelines["sd1"], tmp_path / "stated")
    (stated / "README.md").write_text("---\ntags: [x]\nlicense: openrail++\n---\n# A model\nlicense: mit\n")
    assert read_card(str(stated)).licence == "openrail++"
    assert read_card(str(pipelines["sd1"])).licence == "unknown"
    for text in ("# A model\n", "# A model\n---\nlicense: mit\n---\n"):
        unstated = shutil.copytree(pipelines["sd1"], tmp_path / "unstated", dirs_exist_ok=True)
        (unstated / "README.md").write_text(text)
        assert read_card(str(unstated)).licence == "unknown"
    out = tmp_path / "generator"
    assert export_generator(str(stated), {}, out, prompts={}, snapshot_digest="d", steps={}).licence == "openrail++"


class _Recorder:
    """Stands where a denoiser stands, keeps what it is given and predicts ones."""

    def __call__(self, *args, **given):
        self.args, self.given = args, given
        return SimpleNamespace(sample=torch.ones(4, 4, 8, 8, requires_grad=True))


def test_a_flow_is_trained_on_the_straight_path(pipelines):
    """Between image and noise at shifted logit-normal times; the target is noise minus image (replayed from the same samples)."""
    model, network = load_model(str(pipelines["sd3"])), _Recorder()
    moments, text = model.prepare(_images().float() / 127.5 - 1), model.encode(list(PROMPTS))
    loss = model.loss("transformer", network, moments, text, RandomStreams(range(4)), snr_gamma=None)
    replay, config = RandomStreams(range(4)), model.pipeline.vae.config
    mean, log_variance = moments.chunk(2, dim=1)
    latents = mean + (log_variance / 2).exp() * replay.normal(4, 8, 8)
    clean = (latents - config.shift_factor) * config.scaling_factor
    u = torch.sigmoid(replay.normal())
    sigma = 3 * u / (1 + 2 * u)  # the tiny pipeline's shift is 3, as in Stable Diffusion 3
    noise = replay.normal(4, 8, 8)
    assert torch.allclose(network.given["timestep"], 1000 * sigma)
    mixed = clean + sigma[:, None, None, None] * (noise - clean)
    assert torch.allclose(network.given["hidden_states"], mixed, atol=1e-6)
    assert torch.equal(network.given["pooled_projections"], text["pooled"])
    assert loss.tolist() == pytest.approx((1 - (noise - clean)).square().mean((1, 2, 3)).tolist(), rel=1e-5)


def test_a_latent_unet_is_trained_on_scaled_noisy_latents(pipelines):
    """Latents at the denoiser's scale, noised by the base's own schedule; XL is given size and crop."""
    model, network = load_model(str(pipelines["sdxl"])), _Recorder()
    moments, text = model.prepare(_images().float() / 127.5 - 1), model.encode(list(PROMPTS))
    loss = model.loss("unet", network, moments, text, RandomStreams(range(4)), snr_gamma=None)
    replay = RandomStreams(range(4))
    mean, log_variance = moments.chunk(2, dim=1)
    clean = (mean + (log_variance / 2).exp() * replay.normal(4, 8, 8)) * model.pipeline.vae.config.scaling_factor
    t = replay.integers(1000)
    noise = replay.normal(4, 8, 8)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)[t].float()[:, None, None, None]
    assert torch.equal(network.args[1], t)
    assert torch.allclose(network.args[0], kept.sqrt() * clean + (1 - kept).sqrt() * noise, atol=1e-5)
    assert network.given["added_cond_kwargs"]["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 4
    assert loss.tolist() == pytest.approx((1 - noise).square().mean((1, 2, 3)).tolist(), rel=1e-5)

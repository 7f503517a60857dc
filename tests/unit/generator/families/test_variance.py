"""The learned variance: its loss against the formulas of the papers, and that a network learns it."""

import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from relisted import recard
from torch.distributions import Normal, kl_divergence

from gda.demo_base.build import build_tiny_cascade
from gda.errors import DataError
from gda.generator.families.cascade import load_cascade
from gda.generator.families.protocol import denoising_error, prediction_target
from gda.generator.families.variance import bound_term, denoising_losses
from gda.generator.weights.directory import BASE, SUPER_RESOLUTION
from gda.runtime.torch_rng import RandomStreams

PREDICTIONS = ("epsilon", "v_prediction", "sample")
TIMES = (0, 0, 1, 2, 30, 500, 998, 999)


def _schedule(prediction="epsilon", variance="learned_range", steps=1000):
    return DDPMScheduler(num_train_timesteps=steps, beta_schedule="squaredcos_cap_v2", prediction_type=prediction, variance_type=variance)


def _problem(times=TIMES, prediction="epsilon", error=0.3):
    """Images with black, white and grey pixels, noise, times, and an output that errs by about `error` with variances all over."""
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor(times)
    shape = (len(t), 3, 4, 4)
    clean = (torch.randint(0, 256, shape, generator=generator) / 127.5 - 1).contiguous()
    clean[:, :, 0], clean[:, :, 1] = -1.0, 1.0
    noise = torch.randn(shape, generator=generator)
    target = prediction_target(_schedule(prediction), clean, noise, t)
    predicted = target + error * torch.randn(shape, generator=generator)
    variance = torch.rand(shape, generator=generator) * 2 - 1
    return clean, noise, t, torch.cat([predicted, variance], dim=1)


def _bound_by_the_book(schedule, output, clean, noise, t):
    """Bits a dimension of one image, float64, written as the papers write it: x_0 first, then two Gaussians, then their divergence."""
    output, clean, noise = output.double(), clean.double(), noise.double()
    betas = schedule.betas.double()
    kept = torch.cumprod(1 - betas, 0)
    before = kept[t - 1] if t else torch.tensor(1.0, dtype=torch.float64)
    noisy = kept[t].sqrt() * clean + (1 - kept[t]).sqrt() * noise
    predicted, v = output[:3], output[3:]
    x0 = {
        "epsilon": (noisy - (1 - kept[t]).sqrt() * predicted) / kept[t].sqrt(),
        "v_prediction": kept[t].sqrt() * noisy - (1 - kept[t]).sqrt() * predicted,
        "sample": predicted,
    }[schedule.config["prediction_type"]]

    def mean(x):  # Ho et al. 2020, equation 7
        return before.sqrt() * betas[t] / (1 - kept[t]) * x + (1 - betas[t]).sqrt() * (1 - before) / (1 - kept[t]) * noisy

    s = max(t, 1)  # the first step's smallest variance is the second's
    smallest = betas[s] * (1 - kept[s - 1]) / (1 - kept[s])
    share = (v + 1) / 2
    ours = Normal(mean(x0), torch.exp(0.5 * (share * betas[t].log() + (1 - share) * smallest.log())))
    if t:
        return float(kl_divergence(Normal(mean(clean), smallest.sqrt()), ours).mean()) / math.log(2)
    above = torch.where(clean > 0.999, 1.0, ours.cdf(clean + 1 / 255))
    below = torch.where(clean < -0.999, 0.0, ours.cdf(clean - 1 / 255))
    return -float((above - below).clamp(min=1e-12).log().mean()) / math.log(2)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_bound_is_the_papers_bound(prediction):
    """Each image's term is the divergence of the two Gaussians, at t = 0 the grey levels' likelihood, also at the ends of the schedule."""
    schedule = _schedule(prediction)
    clean, noise, t, output = _problem(prediction=prediction)
    terms = bound_term(schedule, output, clean, noise, t)
    expected = [_bound_by_the_book(schedule, output[i], clean[i], noise[i], int(t[i])) for i in range(len(t))]
    assert terms.dtype == torch.float32
    assert terms.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1000, 50])
def test_the_loss_is_the_squared_error_and_a_thousandth_of_the_whole_bound(prediction, steps):
    """L_simple + 0.001 T L_t: one value per image, independent of the others; min-SNR weights only the first part."""
    schedule = _schedule(prediction, steps=steps)
    clean, noise, t, output = _problem(times=(0, 1, 7, 49), prediction=prediction)
    bound = 0.001 * steps * bound_term(schedule, output, clean, noise, t)
    for gamma in (None, 5.0):
        simple = denoising_error(schedule, output[:, :3], clean, noise, t, snr_gamma=gamma)
        losses = denoising_losses(schedule, output, clean, noise, t, snr_gamma=gamma)
        assert torch.allclose(losses, simple + bound, rtol=1e-6)
        assert (bound > 1e-7).all()
        alone = denoising_losses(schedule, output[1:2], clean[1:2], noise[1:2], t[1:2], snr_gamma=gamma)
        assert torch.allclose(alone, losses[1:2], rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_bound_teaches_the_variance_and_never_the_mean(prediction):
    """The prediction's gradient is the squared error's to the bit; every variance gets a finite gradient, at either end of time too."""
    schedule = _schedule(prediction)
    clean, noise, t, output = _problem(prediction=prediction, error=1.0)
    output.requires_grad_()
    (hybrid,) = torch.autograd.grad(denoising_losses(schedule, output, clean, noise, t, snr_gamma=None).sum(), output)
    simple_loss = denoising_losses(_schedule(prediction, "fixed_small"), output, clean, noise, t, snr_gamma=None).sum()
    (simple,) = torch.autograd.grad(simple_loss, output)
    assert torch.equal(hybrid[:, :3], simple[:, :3])
    assert not simple[:, 3:].any()
    assert torch.isfinite(hybrid).all()
    assert all(hybrid[i, 3:].abs().max() > 0 for i in range(len(t)))


def test_an_output_of_half_precision_is_reckoned_in_float32():
    """Mixed precision rounds the network's output and nothing after it."""
    clean, noise, t, output = _problem(times=(1, 30, 500))
    rounded = output.bfloat16()
    losses = denoising_losses(_schedule(), rounded, clean, noise, t, snr_gamma=None)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, denoising_losses(_schedule(), rounded.float(), clean, noise, t, snr_gamma=None))


def test_descent_finds_the_variance_that_the_errors_call_for():
    """With a mean that is off by o deviations the best log-variance is log(1 + mean o^2) above the smallest: known beforehand."""
    schedule, t = _schedule(), torch.full((64,), 2)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 1, 8, 8, generator=generator)
    betas = schedule.betas.double()
    kept = torch.cumprod(1 - betas, 0)
    smallest = betas[2] * (1 - kept[1]) / (1 - kept[2])
    deviations_a_unit = float(betas[2] / ((1 - kept[2]) * (1 - betas[2])).sqrt() / smallest.sqrt())
    error = 0.4 * torch.randn(noise.shape, generator=generator)
    best = math.log1p(deviations_a_unit**2 * float(error.square().mean())) / float((betas[2] / smallest).log())
    assert 0.1 < best < 0.9
    v = torch.tensor(-1.0, requires_grad=True)
    optimizer = torch.optim.Adam([v], lr=0.05)
    for _ in range(200):
        output = torch.cat([noise + error, v.expand_as(noise)], dim=1)
        loss = bound_term(schedule, output, torch.zeros_like(noise), noise, t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (v.item() + 1) / 2 == pytest.approx(best, abs=0.01)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return build_tiny_cascade(tmp_path_factory.mktemp("learned") / "tiny", learned_variance=True)


@pytest.mark.learning
@pytest.mark.parametrize("stage", [BASE, SUPER_RESOLUTION])
def test_a_networks_variance_head_learns(learned, stage):
    """A few steps on a few images move the predicted variance, and with the means they end at, the bound is lower than before."""
    cascade = load_cascade(str(learned))
    network = cascade.network(stage).requires_grad_(True)
    images = (torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).round() / 127.5 - 1
    text = {k: v.detach() for k, v in cascade.encode(["a", "b"] * 4).items()}
    side = cascade.low_size if stage == BASE else cascade.train_size
    clean = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
    noise, t = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)), torch.arange(8) * 5 + 1

    def output():
        noisy, level = cascade.noise_schedule.add_noise(clean, noise, t), None
        if stage == SUPER_RESOLUTION:
            noisy, level = torch.cat([noisy, clean], dim=1), torch.zeros_like(t)
        with torch.no_grad():
            return network(noisy, t, encoder_hidden_states=text["states"], class_labels=level).sample

    start = output()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(50):
        streams = RandomStreams([1000 * step + i for i in range(8)])
        loss = cascade.loss(stage, network, images, text, streams, snr_gamma=None).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    end = output()
    mixed = torch.cat([end[:, :3], start[:, 3:]], dim=1)
    schedule = cascade.noise_schedule
    before, after = (bound_term(schedule, given, clean, noise, t).mean() for given in (mixed, end))
    assert (end - start)[:, 3:].abs().mean() > 0.05
    assert after < 0.98 * before


def _edited(folder, out, changes):
    """A copy of a cascade with configurations changed."""
    shutil.copytree(folder, out)
    for name, fields in changes.items():
        path = out / name / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    recard(out)
    return out


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_a_base_of_fixed_variance_has_the_plain_loss(tiny, gamma):
    """Its loss is the squared error of v, sampled and weighed as written out here: the second half of the channels has no part in it."""
    cascade = load_cascade(str(tiny))
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    text, seeds = cascade.encode(["a", "b", ""]), [3, 4, 5]
    losses = cascade.loss(BASE, cascade.base, images, text, RandomStreams(seeds), snr_gamma=gamma)
    streams = RandomStreams(seeds)
    small = F.interpolate(images, (8, 8), mode="bilinear", antialias=True)
    t, noise = streams.integers(1000), streams.normal(3, 8, 8)
    kept = cascade.noise_schedule.alphas_cumprod[t][:, None, None, None]
    v = kept.sqrt() * noise - (1 - kept).sqrt() * small
    predicted = cascade.base(kept.sqrt() * small + (1 - kept).sqrt() * noise, t, encoder_hidden_states=text["states"]).sample[:, :3]
    snr = (kept / (1 - kept)).flatten()
    weight = 1.0 if gamma is None else snr.clamp(max=gamma) / (snr + 1)
    assert torch.allclose(losses, (predicted - v).square().mean((1, 2, 3)) * weight, rtol=1e-5)


def test_super_resolution_learns_by_its_own_schedules(tiny, tmp_path):
    """Target and noise follow its scheduler, the small image's noise the image noising scheduler, independent of the base's."""
    changes = {
        "super_resolution/scheduler": {"prediction_type": "epsilon", "beta_schedule": "linear"},
        "super_resolution/image_noising_scheduler": {"beta_schedule": "scaled_linear", "num_train_timesteps": 400},
    }
    cascade = load_cascade(str(_edited(tiny, tmp_path / "edited", changes)))
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    text, seeds = cascade.encode(["a", "b", ""]), [3, 4, 5]
    losses = cascade.loss(SUPER_RESOLUTION, cascade.super_resolution, images, text, RandomStreams(seeds), snr_gamma=None)
    streams = RandomStreams(seeds)
    t, noise = streams.integers(1000), streams.normal(3, 16, 16)
    level, image_noise = streams.integers(400), streams.normal(3, 16, 16)
    small = F.interpolate(images, (8, 8), mode="bilinear", antialias=True)
    up = F.interpolate(small, (16, 16), mode="bilinear", align_corners=True)
    of_image = DDPMScheduler(num_train_timesteps=400, beta_schedule="scaled_linear")
    given = torch.cat([DDPMScheduler(beta_schedule="linear").add_noise(images, noise, t), of_image.add_noise(up, image_noise, level)], 1)
    predicted = cascade.super_resolution(given, t, encoder_hidden_states=text["states"], class_labels=level).sample[:, :3]
    assert torch.allclose(losses, (predicted - noise).square().mean((1, 2, 3)), rtol=1e-5)


def test_the_variance_is_each_stages_own(learned, tmp_path):
    """A stage whose scheduler has a fixed variance has the plain loss next to one that learns it."""
    fixed = _edited(learned, tmp_path / "fixed", {"super_resolution/scheduler": {"variance_type": "fixed_small"}})
    ours, peer = load_cascade(str(learned)), load_cascade(str(fixed))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def losses(cascade, stage):
        return cascade.loss(stage, cascade.network(stage), images, cascade.encode(["a", "b"]), RandomStreams([1, 2]), snr_gamma=None)

    assert torch.equal(losses(ours, BASE), losses(peer, BASE))
    assert (losses(ours, SUPER_RESOLUTION) > losses(peer, SUPER_RESOLUTION)).all()


def test_a_variance_that_we_do_not_know_is_refused(learned, tmp_path):
    """`learned`, which libraries read differently, and a learned range without channels for it are reported in one line, with the stage."""
    odd = _edited(learned, tmp_path / "odd", {"super_resolution/scheduler": {"variance_type": "learned"}})
    with pytest.raises(
        DataError, match=r"super_resolution/scheduler/scheduler_config\.json: variance_type must .*learned_range, found 'learned'"
    ):
        load_cascade(str(odd))
    narrow = shutil.copytree(learned, tmp_path / "narrow")
    cascade = load_cascade(str(learned))
    unet = type(cascade.base).from_config({**cascade.base.config, "out_channels": 3})
    unet.save_pretrained(narrow / "base" / "unet")
    recard(narrow)
    with pytest.raises(DataError, match=r"base: variance_type 'learned_range' needs a network of 6 output channels, this one has 3"):
        load_cascade(str(narrow))

"""Post-hoc averages: the fitted average is the one that would have been kept, and a generator can be published with it."""

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, IFPipeline, IFSuperResolutionPipeline, SD3Transformer2DModel, UNet2DConditionModel
from relisted import recard
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_pipelines import build_tiny_pipeline
from trees import tree

from gda.artifacts.cards import Family, GeneratorCard
from gda.artifacts.document import dump_document, read_document
from gda.cli import main as cli
from gda.errors import ConfigError, DataError, MissingError, UsageError
from gda.generator.weights.directory import read_card, weights_digest
from gda.generator.weights.posthoc import (
    PowerAverages,
    StoredAverage,
    fit,
    gamma_to_sigma_rel,
    reconstruct,
    residual,
    sigma_rel_to_gamma,
    stored_averages,
    write_snapshot,
)
from gda.generator.weights.reaverage import average_generator, averaged, averaging_digest

STEPS = 400
WIDTH = 200


def _walk(offset: float = 0.0) -> np.ndarray:
    """A random walk from `offset`, a row per step: float32 [STEPS, WIDTH]."""
    steps = np.random.default_rng(0).standard_normal((STEPS, WIDTH), dtype=np.float32)
    return np.float32(offset) + steps.cumsum(0, dtype=np.float32)


def _values(row: np.ndarray, step: int) -> dict[str, torch.Tensor]:
    """What a network might hold: a matrix, a number without dimensions, and a counter that is no weight."""
    return {"layer.weight": torch.from_numpy(row).reshape(2, -1), "scale": torch.tensor(float(row[0])), "seen": torch.tensor([step])}


def _train(folder: Path, walk: np.ndarray, *, every: int) -> PowerAverages:
    averages = PowerAverages(_values(walk[0], 0))
    for step, row in enumerate(walk, start=1):
        averages.update(_values(row, step), step)
        if step % every == 0:
            write_snapshot(folder, averages, step)
    return averages


def _share_of_steps(sigma_rel: float, step: int) -> np.ndarray:
    """What each step contributes to an average after `step`, by playing the update rule through: float64 [step]."""
    shares = np.zeros(step)
    for i in range(1, step + 1):
        decay = (1 - 1 / i) ** (sigma_rel_to_gamma(sigma_rel) + 1)
        shares *= decay
        shares[i - 1] = 1 - decay
    return shares


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x, dtype=np.float64).mean()))


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Snapshots every 25 steps of a walk that starts at 1,000, as fine-tuned weights are a large constant and a small change."""
    folder = tmp_path_factory.mktemp("walk")
    _train(folder, _walk(1000.0), every=25)
    return folder


@pytest.mark.parametrize(("gamma", "sigma_rel"), [(6.94, 0.10), (16.97, 0.05), (0.0, 12**-0.5)])
def test_the_pairs_of_the_paper(gamma, sigma_rel):
    """Width and exponent are the paper's: 6.94 for 0.10, 16.97 for 0.05, and the plain mean is the widest."""
    assert gamma_to_sigma_rel(gamma) == pytest.approx(sigma_rel, rel=5e-4)
    if gamma:
        assert sigma_rel_to_gamma(sigma_rel) == pytest.approx(gamma, abs=0.005)


def test_width_and_exponent_are_each_others_inverse():
    """From the narrowest to nearly the widest, and the width is the standard deviation of the profile that it names."""
    for sigma_rel in (1e-7, 1e-3, 0.02, 0.05, 0.10, 0.2, 0.28, 0.28867):
        assert gamma_to_sigma_rel(sigma_rel_to_gamma(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-12)
    t = (np.arange(200_000) + 0.5) / 200_000
    density = t ** sigma_rel_to_gamma(0.2)
    density /= density.sum()
    assert np.sqrt((density * t**2).sum() - (density * t).sum() ** 2) == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 12**-0.5, 0.5, float("nan"), 1e-200])
def test_widths_that_no_profile_has_are_refused(sigma_rel):
    """A width outside the range names the field, the value and the bound."""
    with pytest.raises(ConfigError, match=r"sigma_rel: expected .* < 0\.2887, got"):
        sigma_rel_to_gamma(sigma_rel)


def test_the_update_rule_is_the_weighted_sum():
    """Kept averages equal the profile's integral over each step, computed without the rule; the first step replaces what was there."""
    walk = _walk()
    averages = PowerAverages(_values(walk[0] + 9, 0))
    averages.update(_values(walk[0], 1), 1)
    for sigma_rel in averages.sigma_rels:
        assert torch.equal(averages.of(sigma_rel)["layer.weight"], _values(walk[0], 1)["layer.weight"])
    for step in range(2, STEPS + 1):
        averages.update(_values(walk[step - 1], step), step)
    for sigma_rel in (0.05, 0.10):
        edges = (np.arange(STEPS + 1) / STEPS) ** (sigma_rel_to_gamma(sigma_rel) + 1)
        wanted = np.diff(edges) @ walk.astype(np.float64)
        assert np.abs(averages.of(sigma_rel)["layer.weight"].flatten().numpy() - wanted).max() < 1e-4
        assert averages.of(sigma_rel)["seen"].item() == STEPS
    with pytest.raises(ValueError, match="counted from 1"):
        averages.update(_values(walk[0], 0), 0)


def test_averages_do_not_follow_the_network():
    """The trainer's tensors are copied, so that an optimizer's step in place does not move the averages."""
    values = _values(_walk()[0], 0)
    averages = PowerAverages(values)
    for value in values.values():
        value.add_(1)
    assert all(torch.equal(values[name], v + 1) for name, v in averages.of(0.05).items())


def test_interrupted_averages_continue_to_the_same_bits(tmp_path):
    """Saved at step 170 into a checkpoint and loaded into fresh averages, they end bit for bit where uninterrupted ones do."""
    walk = _walk()
    whole = _train(tmp_path / "whole", walk, every=STEPS)
    first = _train(tmp_path / "first", walk[:170], every=STEPS)
    saved = {name: v.clone() for name, v in first.tensors().items()}
    resumed = PowerAverages(_values(walk[3], 0))
    resumed.load(saved)
    for step in range(171, STEPS + 1):
        resumed.update(_values(walk[step - 1], step), step)
    assert resumed.tensors().keys() == whole.tensors().keys()
    assert len(whole.tensors()) == 6
    assert all(torch.equal(v, whole.tensors()[name]) for name, v in resumed.tensors().items())
    assert all(torch.equal(v, saved[name]) for name, v in first.tensors().items())


# What is left over of the difference that averaging makes (last weights against averaged ones), with snapshots every 25 of 400 steps.
@pytest.mark.parametrize(
    ("sigma_rel", "tolerance"), [(0.03, 0.02), (0.04, 0.005), (0.06, 0.001), (0.08, 0.001), (0.12, 0.001), (0.15, 0.001), (0.2, 0.005)]
)
def test_the_fitted_average_is_the_one_that_would_have_been_kept(walked, sigma_rel, tolerance):
    """Any width is rebuilt from two stored ones, also below and above both, whatever constant the weights start from."""
    walk = _walk(1000.0).astype(np.float64)
    wanted = _share_of_steps(sigma_rel, STEPS) @ walk
    rebuilt = reconstruct(walked, sigma_rel)
    error = _rms(rebuilt["layer.weight"].flatten().numpy() - wanted) / _rms(walk[-1] - wanted)
    assert error < tolerance
    assert error < residual(walked, sigma_rel)
    stored = min(_rms(_share_of_steps(kept, STEPS) @ walk - wanted) for kept in (0.05, 0.10))
    assert stored > 20 * error * _rms(walk[-1] - wanted)
    assert rebuilt["scale"].shape == ()
    assert float(rebuilt["scale"]) == pytest.approx(float(rebuilt["layer.weight"][0, 0]))
    assert rebuilt["seen"].tolist() == [STEPS]


def test_an_earlier_step_is_rebuilt_without_what_came_after(walked):
    """The average as after step 200 equals the one that a run of 200 steps would have kept."""
    walk = _walk(1000.0)[:200].astype(np.float64)
    wanted = _share_of_steps(0.08, 200) @ walk
    rebuilt = reconstruct(walked, 0.08, step=200)["layer.weight"].flatten().numpy()
    assert _rms(rebuilt - wanted) / _rms(walk[-1] - wanted) < 0.005
    assert {s.step for s in fit(stored_averages(walked), 0.08, 200).stored} == set(range(25, 201, 25))
    assert max(s.step for s in fit(stored_averages(walked), 0.08, 190).stored) == 200


def test_the_residual_is_the_distance_of_the_profiles(walked):
    """The closed form agrees with the two profiles laid side by side, and the weights add up to 1."""
    for sigma_rel, step in ((0.03, 400), (0.08, 390), (0.2, 400), (0.28, 250)):
        fitted = fit(stored_averages(walked), sigma_rel, step)
        assert sum(fitted.weights) == pytest.approx(1.0, abs=1e-10)
        reach = max(s.step for s in fitted.stored)
        t = (np.arange(400_000) + 0.5) / 400_000 * reach
        made = sum(w * _density(t, s.sigma_rel, s.step) for w, s in zip(fitted.weights, fitted.stored, strict=True))
        request = _density(t, sigma_rel, step)
        assert fitted.residual == pytest.approx(np.linalg.norm(made - request) / np.linalg.norm(request), rel=1e-3)


def _density(t: np.ndarray, sigma_rel: float, step: int) -> np.ndarray:
    gamma = sigma_rel_to_gamma(sigma_rel)
    return np.where(t <= step, (gamma + 1) / step * (t / step) ** gamma, 0.0)


def test_fewer_snapshots_fit_worse(walked, tmp_path):
    """A sparser set has a larger residual and error, so that the residual warns of what it should."""
    walk = _walk(1000.0)
    _train(tmp_path / "sparse", walk, every=200)
    wanted = _share_of_steps(0.15, STEPS) @ walk.astype(np.float64)
    sparse, dense = (reconstruct(f, 0.15)["layer.weight"].flatten().numpy() for f in (tmp_path / "sparse", walked))
    assert residual(tmp_path / "sparse", 0.15) > 0.1 > 10 * residual(walked, 0.15)
    assert _rms(sparse - wanted) > 10 * _rms(dense - wanted)


def test_many_snapshots_do_not_spoil_the_fit():
    """With both widths stored at every one of 300 steps the weights stay small, add up to 1, and the profile is matched closely."""
    every_step = [StoredAverage(path=Path("x"), step=k, sigma_rel=s, digests={}) for k in range(1, 301) for s in (0.05, 0.10)]
    for sigma_rel in (0.08, 0.2):
        fitted = fit(every_step, sigma_rel)
        assert fitted.residual < 1e-3
        assert np.abs(fitted.weights).sum() < 3
        assert sum(fitted.weights) == pytest.approx(1.0, abs=1e-12)


def test_a_snapshot_that_lies_there_twice_changes_nothing(walked, tmp_path):
    """A copied file makes the fit ambiguous, not the result."""
    folder = shutil.copytree(walked, tmp_path / "copy")
    shutil.copy(folder / "step-00000375-sigma_rel-0.1.safetensors", folder / "again.safetensors")
    once, twice = reconstruct(walked, 0.08), reconstruct(folder, 0.08)
    assert torch.allclose(once["layer.weight"], twice["layer.weight"], rtol=1e-6)
    assert residual(folder, 0.08) == pytest.approx(residual(walked, 0.08))


def test_a_stored_width_comes_back_bit_for_bit(walked):
    """Where a stored snapshot is requested, no arithmetic touches it."""
    wanted = load_file(walked / "step-00000400-sigma_rel-0.05.safetensors")
    rebuilt = reconstruct(walked, 0.05)
    assert rebuilt.keys() == wanted.keys()
    assert all(np.array_equal(rebuilt[name].numpy(), v) for name, v in wanted.items())
    assert residual(walked, 0.05) == 0.0


def test_steps_beyond_the_snapshots_are_refused(walked):
    """Nothing is known of the steps after the last snapshot."""
    for step in (0, 401):
        with pytest.raises(ConfigError, match=f"expected 1 to 400.*got {step}"):
            reconstruct(walked, 0.08, step=step)


def test_writing_a_step_again_gives_the_same_bytes(tmp_path):
    """A resumed run writes some steps twice; readers must not see a difference."""
    averages = PowerAverages(_values(_walk()[0], 0))
    for folder in "abcdef":
        write_snapshot(tmp_path / folder, averages, 7)
        write_snapshot(tmp_path / folder, averages, 7)
    for name in ("step-00000007-sigma_rel-0.05.safetensors", "step-00000007-sigma_rel-0.1.safetensors"):
        assert len({(tmp_path / folder / name).read_bytes() for folder in "abcdef"}) == 1
    assert len(list((tmp_path / "a").iterdir())) == 2


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path):
    """Killed between writing and renaming, a snapshot does not exist; the next attempt writes it whole."""
    code = (
        "import os, torch, pathlib; from gda.generator.weights.posthoc import PowerAverages, write_snapshot\n"
        "os.replace = lambda *_: os._exit(9)\n"
        f"write_snapshot(pathlib.Path({str(tmp_path)!r}), PowerAverages({{'w': torch.ones(3)}}), 5)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, env=dict(os.environ)).returncode == 9
    assert list(tmp_path.iterdir())
    with pytest.raises(DataError, match="no snapshots"):
        stored_averages(tmp_path)
    write_snapshot(tmp_path, PowerAverages({"w": torch.ones(3)}), 5)
    assert reconstruct(tmp_path, 0.1)["w"].tolist() == [1.0, 1.0, 1.0]


def test_snapshots_are_read_tensor_by_tensor(tmp_path):
    """Memory holds the result and a tensor or two, not the 40 stored averages (160 MiB here)."""
    averages = PowerAverages({f"w{i}": torch.zeros(2**18) for i in range(4)})
    for step in range(1, 21):
        write_snapshot(tmp_path, averages, step)
    tracemalloc.start()
    reconstruct(tmp_path, 0.08)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 2**20


@pytest.mark.parametrize("harm", ["cut", "empty", "flipped", "foreign", "renamed"])
def test_a_damaged_snapshot_is_named(walked, tmp_path, harm):
    """A file that was cut short, altered, or is something else stops the command with its name; nothing is averaged from it."""
    folder = shutil.copytree(walked, tmp_path / "copy")
    path = folder / "step-00000375-sigma_rel-0.1.safetensors"
    data = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(data[:-10])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "flipped":
        data[-5] ^= 1
        path.write_bytes(data)
    elif harm == "foreign":
        save_file(load_file(path), path)
    else:
        path.write_bytes(bytes(data).replace(b'"scale":{', b'"sca1e":{'))
    with pytest.raises(DataError, match=path.name):
        reconstruct(folder, 0.08)


@pytest.mark.parametrize("step", [10, 360])
def test_snapshots_of_another_network_are_named(walked, tmp_path, step):
    """Files of two runs in one folder are not mixed, whether the names of their tensors differ or their shapes."""
    values = _values(_walk()[0], 0)
    fewer, smaller = {name: v for name, v in values.items() if name != "scale"}, values | {"layer.weight": torch.zeros(2, 3)}
    for number, other in enumerate((fewer, smaller)):
        folder = shutil.copytree(walked, tmp_path / str(number))
        write_snapshot(folder, PowerAverages(other), step)
        with pytest.raises(DataError, match=rf"step-{step:08d}-sigma_rel-0\.05"):
            reconstruct(folder, 0.08)


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _fine_tuned(generator: Path, family: Family, networks: dict[str, type], *, every: int = 2, steps: int = 8) -> None:
    """Snapshots of a network that drifts, its last average in the weights file, and a card: a generator as finetune leaves it."""
    for folder, kind in networks.items():
        network = kind.from_pretrained(generator / folder)
        averages = PowerAverages(dict(network.named_parameters()))
        stage = folder.split("/")[0]
        generate = torch.Generator().manual_seed(1)
        for step in range(1, steps + 1):
            with torch.no_grad():
                for p in network.parameters():
                    p.add_(0.02 * torch.randn(p.shape, generator=generate))
            averages.update(dict(network.named_parameters()), step)
            if step % every == 0:
                write_snapshot(generator / "ema" / stage, averages, step)
    digest, stages = weights_digest(generator), [folder.split("/")[0] for folder in networks]
    card = GeneratorCard(family=family, digest=digest, num_train_steps=dict.fromkeys(stages, steps), licence="mit")
    (generator / "generator.json").write_bytes(dump_document(card))
    (generator / "README.md").write_text(f"| digest | {digest} |\n")
    (generator / "fingerprint.json").write_text("{}")


@pytest.fixture(scope="module")
def flow_generator(tmp_path_factory):
    """A tiny SD3, whose transformer has a buffer next to its parameters."""
    path = build_tiny_pipeline("sd3", tmp_path_factory.mktemp("flow") / "generator")
    _fine_tuned(path, "flow_transformer", {"transformer": SD3Transformer2DModel})
    return path


def test_the_command_publishes_a_generator_that_diffusers_loads(in_folder, flow_generator, capsys):
    """The stored average is in the weights file, buffers and all else are as they were, and plain diffusers samples with it."""
    before = tree(flow_generator)
    arguments = ["ema", "--generator", str(flow_generator), "--sigma-rel", "0.1", "--out", "out"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == "ema: wrote out: power, sigma_rel 0.1 at step 8 of transformer; profile error 0.00% (transformer)\n"
    wanted = load_file(flow_generator / "ema/transformer/step-00000008-sigma_rel-0.1.safetensors")
    old = load_file(flow_generator / "transformer/diffusion_pytorch_model.safetensors")
    new = load_file(in_folder / "out/transformer/diffusion_pytorch_model.safetensors")
    assert new.keys() == old.keys()
    assert new.keys() - wanted.keys() == {"pos_embed.pos_embed"}
    assert np.array_equal(new["pos_embed.pos_embed"], old["pos_embed.pos_embed"])
    assert all(np.array_equal(new[name], wanted[name]) for name in wanted)
    assert not np.array_equal(new["proj_out.weight"], old["proj_out.weight"])
    with safe_open(in_folder / "out/transformer/diffusion_pytorch_model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}  # as finetune writes it
    card, was = (read_document(p / "generator.json", GeneratorCard) for p in (in_folder / "out", flow_generator))
    assert card.digest == weights_digest(in_folder / "out") != was.digest
    assert card.averaging == "power, sigma_rel 0.1 at step 8 of transformer"
    assert (card.licence, card.family, card.num_train_steps) == ("mit", "flow_transformer", {"transformer": 8})
    readme = (in_folder / "out/README.md").read_text()
    assert card.digest in readme
    assert was.digest not in readme
    assert not (in_folder / "out/ema").exists()
    assert before == tree(flow_generator)
    pipeline = DiffusionPipeline.from_pretrained(in_folder / "out")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a", num_inference_steps=2, height=16, width=16, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert np.isfinite(image).all()
    assert torch.equal(pipeline.transformer.proj_out.weight.detach(), torch.from_numpy(wanted["proj_out.weight"]))


def test_the_same_command_again_changes_nothing_and_another_is_refused(in_folder, flow_generator, capsys):
    """Create-only: what is there is kept, and a different width must name another folder."""
    average_generator(flow_generator, 0.08, Path("out"))
    before = {p: p.stat().st_mtime_ns for p in Path("out").rglob("*")}
    assert average_generator(flow_generator, 0.08, Path("out")).reused
    assert before == {p: p.stat().st_mtime_ns for p in Path("out").rglob("*")}
    with pytest.raises(UsageError, match=r"config\.sigma_rel"):
        average_generator(flow_generator, 0.09, Path("out"))
    Path("own").mkdir()
    Path("own/file").write_text("own")
    with pytest.raises(UsageError, match="was not made by this command"):
        average_generator(flow_generator, 0.08, Path("own"))
    assert cli.main(["lineage", "out"]) == 0
    message = capsys.readouterr().out
    assert "made by ema" in message
    assert read_card(str(flow_generator)).digest[:16] in message


def test_other_snapshots_of_the_same_generator_are_another_fingerprint(in_folder, flow_generator):
    """Runs that stored at other steps end in the same weights, but what is fitted to their snapshots differs."""
    copy = shutil.copytree(flow_generator, in_folder / "copy")
    average_generator(copy, 0.08, Path("out"), force=True)
    for path in (copy / "ema/transformer").glob("step-00000004*"):
        path.unlink()
    with pytest.raises(UsageError, match=r"inputs\.snapshots"):
        average_generator(copy, 0.08, Path("out"), force=True)


def test_a_poor_fit_is_refused_unless_forced(in_folder, flow_generator, capsys):
    """Snapshots too sparse for a width are reported with the error and what would do; --force writes it and says the error."""
    arguments = ["ema", "--generator", str(flow_generator), "--sigma-rel", "0.28", "--out", "out"]
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert "too sparse for sigma_rel 0.28 at step 8" in message
    assert "--force" in message
    assert "near it: 6, 8" in message
    assert not Path("out").exists()
    assert cli.main([*arguments, "--force"]) == 0
    error = residual(flow_generator / "ema/transformer", 0.28)
    assert error > 0.1
    assert f"profile error {error:.2%} (transformer)" in capsys.readouterr().out


def test_both_stages_of_a_cascade_are_averaged_each_at_its_own_step(in_folder, tiny):
    """A stage that was trained for fewer steps is taken at its last; IF's own pipelines load what comes out."""
    path = shutil.copytree(tiny, in_folder / "generator")
    _fine_tuned(path, "pixel_cascade", {"super_resolution/unet": UNet2DConditionModel}, steps=4)
    _fine_tuned(path, "pixel_cascade", {"base/unet": UNet2DConditionModel, "super_resolution/unet": UNet2DConditionModel}, steps=8)
    for late in (path / "ema/super_resolution").glob("step-0000000[68]*"):
        late.unlink()
    average_generator(path, 0.05, Path("out"), step=6)
    card = read_document(Path("out/generator.json"), GeneratorCard)
    assert card.num_train_steps == {"base": 6, "super_resolution": 4}
    for stage, kind, step in (("base", IFPipeline, 6), ("super_resolution", IFSuperResolutionPipeline, 4)):
        wanted = load_file(path / f"ema/{stage}/step-{step:08d}-sigma_rel-0.05.safetensors")
        network = kind.from_pretrained(f"out/{stage}", safety_checker=None, feature_extractor=None, watermarker=None).unet
        assert all(np.array_equal(p.detach().numpy(), wanted[name]) for name, p in network.named_parameters())
    with pytest.raises(ConfigError, match="expected 1 to 8"):
        average_generator(path, 0.05, Path("other"), step=9)


def test_weights_of_another_type_stay_of_that_type(in_folder, flow_generator):
    """A generator that is kept in half precision is not doubled in size."""
    copy = shutil.copytree(flow_generator, in_folder / "copy")
    network = SD3Transformer2DModel.from_pretrained(copy / "transformer", torch_dtype=torch.float16)
    network.save_pretrained(copy / "transformer")
    recard(copy)
    average_generator(copy, 0.08, Path("out"))
    assert {v.dtype for v in load_file("out/transformer/diffusion_pytorch_model.safetensors").values()} == {np.dtype("float16")}


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("none", "ema_snapshot_steps"),
        ("base", "was not fine-tuned"),
        ("shape", "proj_out.weight has shape (1,)"),
        ("name", "lora_A has shape (1,)"),
        ("flipped", "step-00000006"),
    ],
)
def test_a_generator_without_usable_snapshots_is_bad_data(in_folder, flow_generator, capsys, harm, words):
    """Missing, foreign and damaged snapshots exit with 3, name what is wrong, and publish nothing."""
    copy = shutil.copytree(flow_generator, in_folder / "copy")
    folder = copy / "ema/transformer"
    if harm == "none":
        shutil.rmtree(folder)
    elif harm == "base":
        card = read_document(copy / "generator.json", GeneratorCard)
        (copy / "generator.json").write_bytes(dump_document(card.model_copy(update={"num_train_steps": {}})))
    elif harm in ("shape", "name"):
        shutil.rmtree(folder)
        write_snapshot(folder, PowerAverages({"proj_out.weight" if harm == "shape" else "lora_A": torch.zeros(1)}), 8)
    else:
        path = folder / "step-00000006-sigma_rel-0.1.safetensors"
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
    assert cli.main(["ema", "--generator", str(copy), "--sigma-rel", "0.1" if harm in ("shape", "name") else "0.08", "--out", "out"]) == 3
    message = capsys.readouterr().err
    assert words in message
    assert len(message.splitlines()) == 1
    assert not Path("out").exists()


def test_what_cannot_be_requested_is_reported_before_snapshots_are_looked_for(in_folder):
    """A width out of range is a usage error even where there are no snapshots, and a folder that is missing is never taken for a hub id."""
    (in_folder / "generator").mkdir()
    with pytest.raises(ConfigError, match="sigma_rel"):
        average_generator(Path("generator"), 0.3, Path("out"))
    with pytest.raises(MissingError, match=r"models/absent: no such generator directory$"):
        average_generator(Path("models/absent"), 0.1, Path("out"))


def test_an_average_is_kept_under_what_it_was_made_from(in_folder, flow_generator):
    """The same width is made once; another width, or other snapshots of the same generator, has a folder of its own."""
    path = averaged(str(flow_generator), 0.08, Path("cache"))
    assert read_card(str(path)).averaging == "power, sigma_rel 0.08 at step 8 of transformer"
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    assert averaged(str(flow_generator), 0.08, Path("cache")) == path
    assert before == {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    assert path.name == averaging_digest(str(flow_generator), 0.08)[:32]
    copy = shutil.copytree(flow_generator, in_folder / "copy")
    assert averaging_digest(str(copy), 0.08) == averaging_digest(str(flow_generator), 0.08), "where it lies makes no difference"
    for file in (copy / "ema/transformer").glob("step-00000002*"):
        file.unlink()
    others = {averaged(str(flow_generator), 0.09, Path("cache")), averaged(str(copy), 0.08, Path("cache"))}
    assert len(others | {path}) == 3
    with pytest.raises(ConfigError, match="too sparse"):
        averaged(str(flow_generator), 0.28, Path("cache"))


def test_a_process_that_comes_while_an_average_is_made_waits_for_it(in_folder, flow_generator):
    """Workers that start together do not fail each other: the second gets what the first makes."""
    name = averaging_digest(str(flow_generator), 0.08)[:32]
    out, locks = Path("cache") / name, Path(".gda/locks")
    locks.mkdir(parents=True)
    lock = os.open(locks / f"{name}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    found: list[Path] = []
    waiting = threading.Thread(target=lambda: found.append(averaged(str(flow_generator), 0.08, Path("cache"))))
    waiting.start()
    waiting.join(1.0)
    assert waiting.is_alive()
    assert not out.exists()
    os.close(lock)
    waiting.join(60)
    assert found == [out]
    assert (out / "generator.json").is_file()

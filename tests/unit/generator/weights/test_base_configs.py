"""A base is what its name says: configurations that its family does not support are refused before anything is trained."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EDMDPMSolverMultistepScheduler
from PIL import Image
from relisted import recard
from tiny_pipelines import build_tiny_pipeline

from gda.artifacts.tuning import SamplingSettings
from gda.cli.main import main
from gda.demo_base.build import build_tiny_cascade
from gda.errors import DataError
from gda.generator.families.diffusers_pipeline import decode_latents, encode_latents, sample_latents
from gda.generator.families.opening import load_model
from gda.generator.finetuning.prepared import Texts
from gda.generator.planning.networks import networks_of
from gda.generator.sampling.sampler import Sampler
from gda.generator.weights.config_types import check_types
from gda.generator.weights.directory import files_of, generated_size, read_card
from gda.runtime.torch_rng import RandomStreams

STATISTICS = {"latents_mean": [-1.6, 1.9, -1.4, 2.5], "latents_std": [8.5, 5.9, 6.5, 5.2], "scaling_factor": 0.5}
INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
VAE, UNET = "vae/config.json", "unet/config.json"


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """One base a kind, with random weights; never changed."""
    root = tmp_path_factory.mktemp("configs")
    found = {kind: build_tiny_pipeline(kind, root / kind) for kind in ("sd1", "sdxl", "sd3")}
    return found | {"cascade": build_tiny_cascade(root / "cascade")}


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory):
    """A snapshot of two classes of noise."""
    root, rng = tmp_path_factory.mktemp("snapshot"), np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            folder = root / "in" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    assert main(["snapshot", str(root / "in"), "--out", str(root / "real"), "--quiet"]) == 0
    return root / "real"


def _changed(base, out, file, **fields):
    """A copy of the base with fields of one JSON file set."""
    shutil.copytree(base, out)
    _edit(out / file, **fields)
    return out


def _edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _finetune(snapshot, base, out, *more):
    steps = ("finetune.num_train_steps=1", "finetune.batch_size=2", "finetune.model_name=null", *more)
    words = ["finetune", "--snapshot", str(snapshot), "--base", str(base), "--out", str(out), "--quiet"]
    return main(words + [word for step in steps for word in ("--set", step)])


@pytest.mark.parametrize(
    ("kind", "file", "fields", "message"),
    [
        ("sdxl", SCHEDULER, {"_class_name": "EDMEulerScheduler"}, "_class_name must be one of: DDPMScheduler"),
        ("sd1", SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name must be one of: DDPMScheduler"),
        ("sd1", SCHEDULER, {"_class_name": ["x", "y"]}, "_class_name must be one of"),
        ("sd1", SCHEDULER, {"use_flow_sigmas": True}, "use_flow_sigmas must be one of: false, null, found True"),
        ("sd1", SCHEDULER, {"prediction_type": "flow_prediction"}, "prediction_type must be one of: epsilon"),
        ("sd1", SCHEDULER, {"beta_schedule": "laplace"}, "beta_schedule must be one of: linear"),
        ("sd1", SCHEDULER, {"beta_end": "0.012"}, "beta_end must be a finite number above 0, found '0.012'"),
        ("sd1", SCHEDULER, {"num_train_timesteps": 1e3}, "num_train_timesteps must be a whole number"),
        ("sd1", SCHEDULER, {"num_train_timesteps": 2**31}, "num_train_timesteps must be a whole number"),
        ("sd1", SCHEDULER, {"trained_betas": [0.1]}, "trained_betas must be null or a list of 1000"),
        ("sd1", SCHEDULER, {"variance_type": "learned_range"}, "variance_type must be one of: null, fixed_small"),
        ("sdxl", SCHEDULER, {"timestep_type": "continuous"}, "timestep_type must be discrete"),
        ("sd3", SCHEDULER, {"_class_name": "DDIMScheduler"}, "_class_name must be FlowMatchEulerDiscreteScheduler"),
        ("sd3", SCHEDULER, {"use_dynamic_shifting": True}, "use_dynamic_shifting must be one of: false, null"),
        ("sd3", SCHEDULER, {"shift": "3"}, "shift must be a finite number above 0"),
        ("sd1", VAE, STATISTICS, r"latents_mean must be null \(StableDiffusionPipeline does not use it\)"),
        ("sd3", VAE, STATISTICS, r"latents_mean must be null \(StableDiffusion3Pipeline does not use it\)"),
        ("sdxl", VAE, STATISTICS | {"latents_std": None}, "latents_std must be given with the other"),
        ("sdxl", VAE, STATISTICS | {"latents_std": [1.0, 0.0, 1.0, 1.0]}, "latents_std must be null or a list of 4 finite numbers above 0"),
        ("sdxl", VAE, STATISTICS | {"latents_mean": 0.0}, "latents_mean must be null or a list of 4"),
        ("sd1", VAE, {"shift_factor": 0.06}, "shift_factor must be null or 0"),
        ("sd3", VAE, {"shift_factor": None}, "shift_factor must be a finite number"),
        ("sd1", VAE, {"scaling_factor": "0.18"}, "scaling_factor must be a finite number above 0"),
        ("sd1", VAE, {"block_out_channels": 16}, "block_out_channels must be a list"),
        ("sd1", VAE, {"_class_name": "AutoencoderTiny"}, "_class_name must be AutoencoderKL"),
        ("sd1", UNET, {"sample_size": [8, 8]}, "sample_size must be one whole number"),
        ("sd1", UNET, {"sample_size": "8"}, "sample_size must be one whole number"),
        ("sd1", UNET, {"in_channels": 9}, "in_channels must be 4, the latent_channels"),
        ("sd1", UNET, {"layers_per_block": 2**31}, "layers_per_block must be a whole number"),
        ("sd1", UNET, {"cross_attention_dim": 768}, "cross_attention_dim must be 32"),
        ("sd1", UNET, {"time_cond_proj_dim": 256}, "time_cond_proj_dim must be null"),
        ("sd1", UNET, {"quantization_config": {"x": 1}}, "quantization_config must be null"),
        ("sdxl", UNET, {"addition_time_embed_dim": 5}, "projection_class_embeddings_input_dim must be 46"),
        ("sd1", INDEX, {"_class_name": ["pipeline", "MyPipeline"]}, "_class_name must be the name of a pipeline"),
        ("sd1", INDEX, {"unet": ["my_unet", "MyUNet"]}, r"unet must be \[diffusers, UNet2DConditionModel\]"),
        ("sd1", INDEX, {"unet": "UNet2DConditionModel"}, "unet must be a list of library and class"),
        ("sd1", INDEX, {"vae": [None, None]}, "vae must be a part of StableDiffusionPipeline"),
        ("sd1", INDEX, {"controlnet": ["diffusers", "ControlNetModel"]}, "controlnet/ is missing"),
        ("sdxl", INDEX, {"force_zeros_for_empty_prompt": "yes"}, "force_zeros_for_empty_prompt must be one of: true, false"),
        ("sd1", "text_encoder/config.json", {"model_type": "t5"}, "model_type must be one of: clip_text_model, clip"),
        ("sd1", "text_encoder/config.json", {"hidden_size": "32"}, "hidden_size must be a whole number"),
        ("sd1", "tokenizer/tokenizer_config.json", {"model_max_length": 512}, "model_max_length must be a whole number from 1 to 77"),
        ("cascade", "base/" + SCHEDULER, {"_class_name": "EDMEulerScheduler"}, "_class_name must be one of: DDPMScheduler"),
        ("cascade", "super_resolution/image_noising_" + SCHEDULER, {"beta_start": None}, "beta_start must be a finite number"),
        ("cascade", "base/" + UNET, {"sample_size": [8, 8]}, "sample_size must be one whole number"),
        ("cascade", "super_resolution/" + INDEX, {"_class_name": "IFPipeline"}, "_class_name must be IFSuperResolutionPipeline"),
    ],
)  # fmt: skip
def test_an_unsupported_field_is_refused_with_file_value_and_what_is_accepted(bases, tmp_path, kind, file, fields, message):
    """One line names the file and the field, before any weight is read."""
    base = _changed(bases[kind], tmp_path / "base", file, **fields)
    with pytest.raises(DataError, match=message) as caught:
        read_card(str(base))
    assert "\n" not in str(caught.value)
    assert file in str(caught.value) or "missing" in message or file.startswith(INDEX)


@pytest.mark.parametrize(
    ("kind", "file", "fields"),
    [
        ("sd1", SCHEDULER, {"_class_name": "PNDMScheduler", "skip_prk_steps": True}),
        ("sd1", SCHEDULER, {"variance_type": "fixed_small", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
        ("sd1", SCHEDULER, {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "use_flow_sigmas": False}),
        ("sd1", VAE, {"latents_mean": None, "latents_std": None, "shift_factor": None}),
        ("sd1", UNET, {"upcast_attention": None, "attention_head_dim": [2, 2], "dropout": 0}),
        ("sd1", UNET, {"field_of_another_version": {"x": 1}}),
        ("sdxl", UNET, {"transformer_layers_per_block": [1, 1], "upcast_attention": None}),
        ("sdxl", VAE, STATISTICS),
        ("sd3", SCHEDULER, {"use_dynamic_shifting": False, "shift": 1}),
        ("cascade", "base/" + SCHEDULER, {"variance_type": "learned_range"}),
    ],
)
def test_what_hubs_hold_is_taken(bases, tmp_path, kind, file, fields):
    """The healthy twins: fields of other schedulers of the same process, nulls, and lists where a class takes both."""
    base = _changed(bases[kind], tmp_path / "base", file, **fields)
    recard(base)
    read_card(str(base))
    check_types(files_of(str(base)))


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (UNET, {"norm_num_groups": "8"}, "norm_num_groups must be of type int"),
        (UNET, {"down_block_types": "DownBlock2D"}, "down_block_types must be of type"),
        (VAE, {"force_upcast": "no"}, "force_upcast must be of type"),
        (SCHEDULER, {"dynamic_thresholding_ratio": [1]}, "dynamic_thresholding_ratio must be of type float"),
    ],
)
def test_a_field_of_another_json_type_is_named_before_loading(bases, tmp_path, file, fields, message):
    """Whatever field it is, its type is the one that its class declares."""
    with pytest.raises(DataError, match=message):
        load_model(str(_changed(bases["sd1"], tmp_path / "base", file, **fields)))


@pytest.mark.parametrize("fields", [{"hidden_act": 3}, {"layer_norm_eps": "small"}, {"attention_dropout": [0.1]}, {"bos_token_id": {}}])
def test_a_text_encoders_field_of_another_type_is_bad_data(bases, tmp_path, fields):
    """Text encoders' configurations are checked by their library, whose refusal is one line too, and no defect of ours."""
    with pytest.raises(DataError, match="base: cannot be loaded as"):
        load_model(str(_changed(bases["sd1"], tmp_path / "base", "text_encoder/config.json", **fields)))


@pytest.mark.parametrize("content", [b"[]", b"null", b"{", b"\xff", b'{"a":' * 3000])
@pytest.mark.parametrize("file", [INDEX, SCHEDULER, VAE, UNET])
def test_a_file_that_is_no_json_object_is_bad_data(bases, tmp_path, file, content):
    """Broken files are named, and are no defect of ours."""
    base = shutil.copytree(bases["sd1"], tmp_path / "base")
    (base / file).write_bytes(content)
    with pytest.raises(DataError, match=file):
        read_card(str(base))


def test_the_size_of_a_base_is_one_number_wherever_it_is_read(bases, tmp_path):
    """The gate and the cost of sampling read configurations alone, and meet the same refusal."""
    base = _changed(bases["sd1"], tmp_path / "base", UNET, sample_size=[8, 8])
    for read in (generated_size, networks_of):
        with pytest.raises(DataError, match=r"unet/config\.json: sample_size must be one whole number"):
            read(base)
    assert generated_size(bases["sd1"]) == 16


def test_latents_are_encoded_by_the_statistics_that_they_are_decoded_by(bases, tmp_path):
    """Encoding, in training and for image-to-image, is undone by decoding, as plain diffusers decodes."""
    base = _changed(bases["sdxl"], tmp_path / "base", VAE, **STATISTICS)
    model = load_model(str(base))
    vae, images = model.pipeline.vae, torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = sample_latents(vae, images, [torch.Generator().manual_seed(i) for i in range(2)])
        mean, log_variance = vae.encode(images).latent_dist.parameters.chunk(2, 1)
        noise = torch.stack([torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(i)) for i in range(2)])
        raw = mean + torch.exp(0.5 * log_variance) * noise
        assert torch.allclose(decode_latents(vae, latents), (vae.decode(raw).sample * 0.5 + 0.5).clamp(0, 1), atol=1e-4)
        trained = encode_latents(vae, model.prepare(images), RandomStreams(range(2)))
    statistics = {name: torch.tensor(STATISTICS[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std")}
    sampled = mean + torch.exp(0.5 * log_variance) * RandomStreams(range(2)).normal(*mean.shape[1:])
    assert torch.allclose(trained, (sampled - statistics["latents_mean"]) * 0.5 / statistics["latents_std"], atol=1e-5)
    plain = DiffusionPipeline.from_pretrained(base)
    plain.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(5)]
    peer = plain(["cat"], guidance_scale=2.0, num_inference_steps=2, generator=generators, output_type="pt", height=16, width=16).images
    ours = Sampler(model, ["cat"]).sample(["cat"], [5], SamplingSettings(guidance_scale=2.0, num_inference_steps=2))
    assert (ours.float() - (peer * 255).round()).abs().max() <= 1


def test_the_command_line_refuses_before_training_and_takes_the_twin(bases, snapshot, tmp_path, capsys):
    """An EDM base ends with exit 3 and the field; the same base with its own schedule is fine-tuned."""
    edm = shutil.copytree(bases["sdxl"], tmp_path / "edm")
    EDMDPMSolverMultistepScheduler().save_pretrained(edm / "scheduler")
    _edit(edm / INDEX, scheduler=["diffusers", "EDMDPMSolverMultistepScheduler"])
    assert _finetune(snapshot, edm, tmp_path / "refused") == 3
    assert "scheduler_config.json: _class_name must be one of" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
    assert _finetune(snapshot, bases["sdxl"], tmp_path / "taken") == 0


def test_bases_that_differ_in_the_empty_prompt_are_two_bases(bases, tmp_path):
    """The flag stands in the index alone: digest, fine-tuned fingerprint and kept text states tell the two apart."""
    message = _changed(bases["sdxl"], tmp_path / "message", INDEX, force_zeros_for_empty_prompt=False)
    assert read_card(str(message)).digest != read_card(str(bases["sdxl"])).digest
    cache, device = tmp_path / "cache", torch.device("cpu")
    zeros = Texts(load_model(str(bases["sdxl"])), ["cat"], cache=cache, device=device).take([""])
    warm = Texts(load_model(str(message)), ["cat"], cache=cache, device=device).take([""])
    cold = Texts(load_model(str(message)), ["cat"], cache=None, device=device).take([""])
    assert not torch.equal(zeros["states"], cold["states"])
    assert torch.equal(warm["states"], cold["states"])


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "null"])
def test_kept_text_states_are_those_of_the_base_in_hand(bases, tmp_path, part):
    """Another tokenizer's settings, another encoder's or a part that is null give other states, warm as cold."""
    base = shutil.copytree(bases["sd3"], tmp_path / "base")
    if part == "tokenizer":
        _edit(base / "tokenizer" / "tokenizer_config.json", pad_token="!")
    elif part == "text_encoder":
        _edit(base / "text_encoder" / "config.json", layer_norm_eps=0.5)
    else:
        _edit(base / INDEX, text_encoder_3=[None, None], tokenizer_3=[None, None])
    cache, device = tmp_path / "cache", torch.device("cpu")
    before = Texts(load_model(str(bases["sd3"])), ["cat"], cache=cache, device=device).take(["cat"])
    warm = Texts(load_model(str(base)), ["cat"], cache=cache, device=device).take(["cat"])
    cold = Texts(load_model(str(base)), ["cat"], cache=None, device=device).take(["cat"])
    assert not torch.equal(before["states"], cold["states"])
    assert all(torch.equal(warm[role], cold[role]) for role in cold)

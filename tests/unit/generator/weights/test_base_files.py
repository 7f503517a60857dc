"""Only the files in use of a base are opened and copied: no pickles, no code, no other variants, and parts that are null stay so."""

import builtins
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_pipelines import build_tiny_pipeline

from gda.cli.main import main
from gda.demo_base.build import build_tiny_cascade
from gda.errors import DataError, MissingError
from gda.generator.families.opening import load_model
from gda.generator.weights.directory import copy_parts, files_of, read_card, resolve, weights_digest
from gda.generator.weights.export import export_generator

WEIGHTS = "diffusion_pytorch_model.safetensors"
MARK = "opened"


class _Opened:
    """A pickle that leaves a mark where it is opened."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """An sd1 pipeline of plain safetensors; never changed."""
    return build_tiny_pipeline("sd1", tmp_path_factory.mktemp("files") / "sd1")


@pytest.fixture
def base(plain, tmp_path):
    """A copy to change."""
    return shutil.copytree(plain, tmp_path / "base")


@pytest.fixture(scope="session")
def sd3(tmp_path_factory):
    """An sd3 pipeline with its three text encoders; never changed."""
    return build_tiny_pipeline("sd3", tmp_path_factory.mktemp("files") / "sd3")


def _edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _export(base, out, weights=None):
    export_generator(str(base), {"unet": weights or {}}, out, prompts={"a": "a"}, snapshot_digest="d", steps={"unet": 1})
    return out


def _names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _rename_to_variant(base, variant):
    for file in sorted(base.rglob("*.safetensors")):
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


def _pickle(path):
    path.write_bytes(pickle.dumps(_Opened(path.parents[2] / MARK)))


@pytest.mark.parametrize("name", ["merges.txt", "vocab.txt", "spiece.model"])
def test_another_vocabulary_is_another_base(base, name):
    """The same prompt would be other tokens: the digest, by which finished work is found again, must not be the same."""
    digests = []
    for text in ("a b", "a c"):
        (base / "tokenizer" / name).write_text(text)
        digests.append(read_card(str(base)).digest)
    assert digests[0] != digests[1]


def test_what_a_clone_of_a_repository_holds_besides_stays_there(base, plain, tmp_path):
    """Pickles, other variants, another framework's weights, code and notes are neither digested nor exported."""
    clean = read_card(str(base)).digest
    unet = base / "unet"
    for name in ("bin", "fp16.bin", "non_ema.bin", "fp16.safetensors", "non_ema.safetensors"):
        (unet / f"diffusion_pytorch_model.{name}").write_bytes(b"stale")
    for name in (
        "unet/flax_model.msgpack",
        "unet/unet.py",
        "unet/notes.txt",
        "unet/results.json",
        "tokenizer/evil.py",
        "pipeline.py",
        "v1.ckpt",
    ):
        (base / name).write_text("stale")
    (base / "feature_extractor").mkdir()
    (base / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    assert read_card(str(base)).digest == clean == weights_digest(plain)
    tuned = {name: tensor + 1 for name, tensor in load_file(unet / WEIGHTS).items()}
    out = _export(base, tmp_path / "out", tuned)
    assert _names(out) == sorted([*_names(plain), "README.md", "generator.json"])
    loaded = UNet2DConditionModel.from_pretrained(out / "unet").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tuned.items())
    with pytest.raises(OSError, match="fp16"):
        UNet2DConditionModel.from_pretrained(out / "unet", variant="fp16", use_safetensors=False)
    assert DiffusionPipeline.from_pretrained(out).components.keys() == DiffusionPipeline.from_pretrained(plain).components.keys()


def test_a_cascades_stages_are_copied_alike(tmp_path):
    """The same for a cascade, whose super-resolution stage never needs a text encoder of its own."""
    cascade = build_tiny_cascade(tmp_path / "cascade")
    clean = read_card(str(cascade)).digest
    (cascade / "base" / "unet" / "diffusion_pytorch_model.fp16.bin").write_bytes(b"stale")
    (cascade / "base" / "pytorch_lora_weights.safetensors").write_bytes(b"stale")
    shutil.copytree(cascade / "base" / "text_encoder", cascade / "super_resolution" / "text_encoder")
    _edit(cascade / "super_resolution" / "model_index.json", text_encoder=["transformers", "T5EncoderModel"])
    (cascade / "generator.json").unlink()
    copy_parts(str(cascade), tmp_path / "out")
    assert weights_digest(tmp_path / "out") == clean
    assert not (tmp_path / "out" / "super_resolution" / "text_encoder").exists()
    assert load_model(str(cascade)).stages == ("base", "super_resolution")


def test_an_image_checker_that_is_a_pickle_is_no_reason_to_refuse(base, tmp_path):
    """It is never opened; what comes out is done without it and loads in plain diffusers."""
    (base / "safety_checker").mkdir()
    (base / "safety_checker" / "config.json").write_text("{}")
    _pickle(base / "safety_checker" / "pytorch_model.bin")
    _edit(base / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    load_model(str(base))
    assert DiffusionPipeline.from_pretrained(_export(base, tmp_path / "out")).safety_checker is None
    assert not (base.parent / MARK).exists()


@pytest.mark.parametrize("name", ["decoy", "diffusion_pytorch_model", "model.fp16.decoy"])
def test_a_pickle_behind_a_decoy_is_refused_unopened(base, name):
    """Safetensors of a name that the library does not load do not vouch for the pickle that it would."""
    folder = base / "text_encoder"
    (folder / "model.safetensors").rename(folder / f"{name}.safetensors")
    _pickle(folder / "pytorch_model.bin")
    if name == "model.fp16.decoy":  # the only variant that there is, and whole: taken, and still not the pickle
        assert load_model(str(base)).stages == ("unet",)
    else:
        with pytest.raises(DataError, match=r"text_encoder/ weights must be safetensors, found .*pytorch_model\.bin.*model\.safetensors"):
            load_model(str(base))
    assert not (base.parent / MARK).exists()


def test_a_pickle_behind_a_cascades_decoy_is_refused_unopened(tmp_path):
    """The same where a cascade's text encoder is loaded by itself, and where its card claims that all is well."""
    cascade = build_tiny_cascade(tmp_path / "a" / "cascade")
    folder = cascade / "base" / "text_encoder"
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    _pickle(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="base/text_encoder/ weights must be safetensors, found decoy"):
        load_model(str(cascade))
    assert not list(tmp_path.rglob(MARK))


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", 3, ["x"]])
def test_an_index_of_shards_names_safetensors_next_to_it(base, shard):
    """A pickle, or a path out of the folder, is not followed."""
    unet = base / "unet"
    (unet / WEIGHTS).rename(unet / "diffusion_pytorch_model-00001-of-00001.safetensors")
    (unet / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": shard}}))
    with pytest.raises(DataError, match=r"index\.json: weight_map names .*; accepted: safetensors shards in the same folder"):
        load_model(str(base))


def test_shards_of_a_directory_are_loaded_and_a_missing_one_is_named(base, plain, tmp_path):
    """The healthy twin: an index whose shards are all there."""
    unet = base / "unet"
    tensors = load_file(unet / WEIGHTS)
    (unet / WEIGHTS).unlink()
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, name in enumerate(names):
        save_file({k: tensors[k] for k in sorted(tensors)[i::2]}, unet / name, metadata={"format": "pt"})
    weight_map = {k: names[i] for i in (0, 1) for k in sorted(tensors)[i::2]}
    (unet / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    loaded = load_model(str(base)).network("unet").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    out = _export(base, tmp_path / "out", tensors)
    assert _names(out / "unet") == ["config.json", WEIGHTS]
    (unet / names[1]).unlink()
    with pytest.raises(DataError, match=rf"unet/{names[1]}: is missing"):
        read_card(str(base))


def test_links_are_followed_and_come_out_as_files(base, plain, tmp_path):
    """Weights that lie elsewhere, as in a hub cache or behind a data tool's links, are read; an export holds no link."""
    shutil.move(base / "unet", tmp_path / "elsewhere")
    (base / "unet").symlink_to(tmp_path / "elsewhere")
    shutil.move(base / "vae" / "config.json", tmp_path / "config.json")
    (base / "vae" / "config.json").symlink_to("../../config.json")
    assert read_card(str(base)).digest == read_card(str(plain)).digest
    out = _export(base, tmp_path / "out")
    assert not any(path.is_symlink() for path in out.rglob("*"))
    (tmp_path / "config.json").unlink()
    with pytest.raises(DataError, match=r"vae must be a part with config\.json, which vae/ lacks"):
        read_card(str(base))


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (
            "tokenizer/tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": [None, "evil.EvilTok"]}, "tokenizer_class": "EvilTok"},
            "auto_map",
        ),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}, "auto_map must be null .*never run"),
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}, "auto_map must be null .*never run"),
        ("model_index.json", {"unet": ["evil", "Evil"]}, "unet must be"),
        ("model_index.json", {"_class_name": ["evil", "Evil"]}, "code that a directory brings is never run"),
        ("text_encoder/adapter_config.json", {"base_model_name_or_path": "/elsewhere", "peft_type": "LORA"}, "merge the adapter"),
    ],
)
def test_code_of_a_base_is_not_run_and_nobody_is_prompted(base, tmp_path, monkeypatch, file, fields, message):
    """A part that names a module of the directory is refused, whichever part it is, without a prompt on the terminal."""
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("prompted the user"))
    for folder in ("tokenizer", "text_encoder", "unet", "."):
        (base / folder / "evil.py").write_text(f"open({str(tmp_path / MARK)!r}, 'w')\n")
    if not (base / file).exists():
        (base / file).write_text("{}")
    _edit(base / file, **fields)
    with pytest.raises(DataError, match=message):
        load_model(str(base))
    assert not (tmp_path / MARK).exists()


def test_a_cascades_tokenizer_runs_no_code(tmp_path, monkeypatch):
    """The same by the way that a cascade's tokenizer is loaded, whose class the library looks up by itself."""
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("prompted the user"))
    cascade = build_tiny_cascade(tmp_path / "cascade")
    tokenizer = cascade / "base" / "tokenizer"
    (tokenizer / "evil.py").write_text(f"open({str(tmp_path / MARK)!r}, 'w')\n")
    assert load_model(str(cascade)).stages  # a module that nothing names is no reason to refuse
    _edit(tokenizer / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.EvilTok"]}, tokenizer_class="EvilTok")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: auto_map must be null"):
        load_model(str(cascade))
    assert not (tmp_path / MARK).exists()


def test_the_only_variant_of_a_directory_is_found(base, plain, tmp_path):
    """What saving or downloading one variant leaves is loaded, and exported under plain names."""
    _rename_to_variant(base, "fp16")
    assert read_card(str(base)).digest == read_card(str(plain)).digest
    assert load_model(str(base)).stages == ("unet",)
    out = _export(base, tmp_path / "out")
    assert not list(out.rglob("*fp16*"))
    DiffusionPipeline.from_pretrained(out)


def test_plain_weights_go_before_a_variant_and_two_variants_are_not_guessed(base, plain):
    """A part takes its variant only where it has no plain weights; two variants without plain ones are named."""
    for part in ("unet", "vae"):
        shutil.copy(base / part / WEIGHTS, base / part / "diffusion_pytorch_model.fp16.safetensors")
    (base / "vae" / WEIGHTS).unlink()
    used = files_of(str(base)).used
    assert (used[f"unet/{WEIGHTS}"], used[f"vae/{WEIGHTS}"]) == (f"unet/{WEIGHTS}", "vae/diffusion_pytorch_model.fp16.safetensors")
    shutil.copy(base / "vae" / "diffusion_pytorch_model.fp16.safetensors", base / "vae" / "diffusion_pytorch_model.bf16.safetensors")
    with pytest.raises(DataError, match=r"vae/ has weights of variants alone: bf16, fp16; .*a directory with the files of one variant"):
        read_card(str(base))


@pytest.mark.parametrize("removed", [False, True])
def test_stable_diffusion_3_without_its_t5_is_done_without_it(sd3, tmp_path, removed):
    """Null parts are passed as none, stay null in the export, and its card states how plain diffusers loads it."""
    base = shutil.copytree(sd3, tmp_path / "base")
    _edit(base / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    if removed:
        shutil.rmtree(base / "text_encoder_3")
        shutil.rmtree(base / "tokenizer_3")
    model = load_model(str(base))
    assert model.pipeline.text_encoder_3 is None
    assert model.encode(["a", ""])["states"].shape[0] == 2
    out = tmp_path / "out"
    export_generator(str(base), {}, out, prompts={"a": "a"}, snapshot_digest="d", steps={})
    assert not (out / "text_encoder_3").exists()
    assert json.loads((out / "model_index.json").read_text())["text_encoder_3"] == [None, None]
    assert 'from_pretrained(".", text_encoder_3=None, tokenizer_3=None)' in (out / "README.md").read_text()
    assert StableDiffusion3Pipeline.from_pretrained(out, text_encoder_3=None, tokenizer_3=None).text_encoder_3 is None
    assert load_model(str(out)).pipeline.text_encoder_3 is None


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "tokenizer_3"])
def test_a_part_that_cannot_be_null_is_named(sd3, tmp_path, part):
    """An encoder without its tokenizer, and parts that the pipeline cannot do without, are one line."""
    base = shutil.copytree(sd3, tmp_path / "base")
    _edit(base / "model_index.json", **{part: [None, None]})
    with pytest.raises(DataError, match=rf"model_index\.json: {part} must be"):
        read_card(str(base))


@pytest.mark.parametrize("name", ["sd.safetensors", "checkpoints/sd.safetensors", "sd.ckpt"])
def test_a_single_file_is_refused_with_the_way_to_convert_it(tmp_path, monkeypatch, name):
    """A checkpoint in one file, also where its path looks like a hub id, and a folder that holds one alone."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"x")
    for base in (name, str(file.parent)):
        with pytest.raises(DataError, match=r"single-file checkpoint; .*from_single_file\(.*\)\.save_pretrained\('DIRECTORY'\)"):
            read_card(base)
    with pytest.raises(MissingError, match="no such generator directory"):
        resolve(str(tmp_path / "nothing"))


def test_a_card_of_another_family_is_not_believed(base):
    """`generator.json` may come with a download: its family must be that of the index."""
    card = read_card(str(base)).model_dump(mode="json")
    (base / "generator.json").write_text(json.dumps({**card, "family": "flow_transformer"}))
    with pytest.raises(DataError, match="family"):
        read_card(str(base))


def test_the_command_line_says_it_in_one_line_and_exits_3(base, tmp_path, capsys):
    """A pickle in place of a text encoder ends `gda finetune` with the reason, before the snapshot is looked at twice."""
    folder = base / "text_encoder"
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    from PIL import Image

    for split in ("train", "val", "test"):
        for label, value in (("cat", 0), ("dog", 200)):
            path = tmp_path / "in" / split / label
            path.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (16, 16), (value, i * 20, len(split) * 9)).save(path / f"{i}.png")
    assert main(["snapshot", str(tmp_path / "in"), "--out", str(tmp_path / "real"), "--quiet"]) == 0
    assert main(["finetune", "--snapshot", str(tmp_path / "real"), "--base", str(base), "--out", str(tmp_path / "gen"), "--quiet"]) == 3
    assert "weights must be safetensors" in capsys.readouterr().err

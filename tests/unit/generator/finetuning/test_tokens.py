"""Textual inversion: what is learned and what is not, what the export says, and that two classes without a name come apart."""

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, IFPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from stage_jobs import stage_job
from tiny_pipelines import build_tiny_pipeline
from transformers import T5EncoderModel
from trees import tree

from gda.artifacts.snapshot import ClassInfo
from gda.artifacts.tuning import SamplingSettings
from gda.config.sections import FinetuneConfig
from gda.errors import ConfigError, DataError
from gda.generator.families.opening import load_model
from gda.generator.finetuning import train
from gda.generator.finetuning.methods import prepare_network
from gda.generator.finetuning.prepared import unit
from gda.generator.finetuning.run import TrainingRun
from gda.generator.finetuning.tokens import (
    EMBEDS,
    Tokens,
    TokenTable,
    add_tokens,
    class_tokens,
    export_tokens,
    make_inversion,
    put_rows,
    text_parts,
    token_prompts,
    token_tables,
)
from gda.generator.finetuning.train import finetune_stage, step_streams
from gda.generator.sampling.sampler import Sampler
from gda.generator.weights.directory import copy_parts
from gda.generator.weights.export import export_generator
from gda.runtime.process_group import ProcessGroup

KINDS = ("sd1", "sdxl", "sd3", "cascade")
TEMPLATE = "a Photo of a {class_name}, on white"
CLASSES = (ClassInfo(name="crane bird", prompt_name="crane bird"), ClassInfo(name="鹤", prompt_name="鹤"))
TOKENS = {"crane bird": "<crane-bird>", "鹤": "<class-1>"}
NAMES = {info.name: info.prompt_name for info in CLASSES}
NAMELESS = ("鹤", "龟")
SETTINGS = SamplingSettings(guidance_scale=2.0, num_inference_steps=3)
ALONE = ProcessGroup(rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tiny):
    """One tiny random-weight generator a kind; the cascade without super-resolution."""
    root = tmp_path_factory.mktemp("bases")
    shutil.copytree(tiny / "base", root / "cascade" / "base")
    return {kind: root / kind if kind == "cascade" else build_tiny_pipeline(kind, root / kind) for kind in KINDS}


def _settings(**changed):
    return FinetuneConfig.model_validate({"method": "textual_inversion", "prompt_template": TEMPLATE, "warmup_steps": 0} | changed)


def _inversion(base, *, seed=0, **changed):
    """A method whose network is prepared as the trainer prepares it."""
    model, config = load_model(str(base)), _settings(**changed)
    network = model.network(model.stages[0]).requires_grad_(False)
    prepare_network(network, config, ALONE)
    return make_inversion(model, model.stages[0], config, tokens=TOKENS, initial=NAMES, seed=seed)


def _images(count):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(4)) * 2 - 1


def _backward(method, message, step=0):
    """Backward of one step's loss, and the loss."""
    model, stage = method.model, method.model.stages[0]
    rows, streams = model.prepare(_images(len(message))), step_streams(0, stage, step, slice(0, len(message)))
    loss = model.loss(stage, method.network, rows, method.text(message), streams, snr_gamma=None).mean()
    loss.backward()
    return float(loss.detach())


def _trained(base, *, steps=3, **changed):
    """A method after some steps, and its averages."""
    method = _inversion(base, **{"learning_rate": 0.05} | changed)
    message = list(token_prompts(TOKENS, _settings()).values())
    run = TrainingRun(method, _settings(learning_rate=0.05), steps, ALONE, None)
    for step in range(steps):
        run.update(_backward(method, message, step))
    return method, run.averaged()


def _exported(base, out, averaged=None):
    """The base with tokens of `averaged`, or else of random rows: as a finetune run writes it after its processes are gone."""
    model = load_model(str(base))
    add_tokens(model, TOKENS, seed=0, initial=NAMES)
    if averaged is None:
        generator = torch.Generator().manual_seed(1)
        averaged = {role: torch.randn(table.learned.shape, generator=generator) for role, table in token_tables(model).items()}
    copy_parts(str(base), out)
    export_tokens(out, model, averaged)
    put_rows(model, averaged)
    return out, model


def _same(one, two):
    assert one.keys() == two.keys()
    return all(torch.equal(one[key], two[key]) for key in one)


def test_tokens_are_ascii_unique_and_new_to_every_tokenizer(bases):
    """Any class name gets a token that no text of the base is read as: letters are folded, the place resolves what is left."""
    names = ("Crane bird", "crane--bird", "crane-bird-1", "鹤", "PAD", "Æble_Grød 3/4", "x" * 200)
    classes = [ClassInfo(name=name, prompt_name=name) for name in names]
    for kind, pad in (("sd1", "<pad>"), ("sd3", "<pad-4>"), ("cascade", "<pad-4>")):
        model = load_model(str(bases[kind]))
        tokens = class_tokens(classes, model)
        expected = ["<crane-bird>", "<crane-bird-1>", "<crane-bird-1-2>", "<class-3>", pad, "<ble-grd-3-4>", f"<{'x' * 64}>"]
        assert tokens == dict(zip(names, expected, strict=True))
        add_tokens(model, tokens, seed=0, initial={name: name for name in names})
        again = class_tokens(classes, model)
        assert not set(again.values()) & set(tokens.values())


def test_prompts_are_the_template_with_the_token():
    """A token stands where the name would; the prompt file, which is about names, is not read."""
    prompts = token_prompts(TOKENS, _settings(prompt_file="nowhere.yaml"))
    assert prompts == {"crane bird": "a Photo of a <crane-bird>, on white", "鹤": "a Photo of a <class-1>, on white"}
    with pytest.raises(ConfigError, match=r"prompt_template: must contain \{class_name\}"):
        token_prompts(TOKENS, _settings(prompt_template="a photo"))


def test_every_text_encoder_that_is_there_is_listed_with_its_tokenizer(bases, tmp_path):
    """Each family's encoders get the tokens, and one that is not loaded is no error."""
    roles = {kind: [part.role for part in text_parts(load_model(str(bases[kind])))] for kind in KINDS}
    three = ["text_encoder", "text_encoder_2", "text_encoder_3"]
    assert roles == {"sd1": three[:1], "sdxl": three[:2], "sd3": three, "cascade": three[:1]}
    model = load_model(str(bases["sd3"]))
    model.pipeline.text_encoder_3 = None
    assert [part.role for part in text_parts(model)] == three[:2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_one_id_and_other_prompts_are_untouched(bases, kind):
    """In every tokenizer a token is one word, ids follow each other, and prompts without tokens give the base's states bit for bit."""
    model, plain = load_model(str(bases[kind])), load_model(str(bases[kind]))
    add_tokens(model, TOKENS, seed=0, initial=NAMES)
    for part, before in zip(text_parts(model), text_parts(plain), strict=True):
        first = len(before.tokenizer)
        ids = part.tokenizer("a <class-1>x <crane-bird>,").input_ids
        assert [i for i in ids if i >= first] == [first + 1, first]
        assert part.tokenizer("a cat <-> b").input_ids == before.tokenizer("a cat <-> b").input_ids
    assert _same(model.encode(["a cat", ""]), plain.encode(["a cat", ""]))
    message = model.encode(["a <crane-bird>", "a <class-1>"])
    assert all(not torch.equal(states[0], states[1]) for states in message.values())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_start_near_what_is_known_of_the_name_at_the_tables_norm(bases, kind):
    """Known words give the direction, unknown names differ, the norm is typical, and nothing depends on the global generator."""
    words = {"a": "Red", "b": "red", "c": "鹤", "d": "龟"}
    tokens = {name: f"<{name}>" for name in words}

    def start(seed):
        model = load_model(str(bases[kind]))
        torch.manual_seed(7 + seed)
        state = torch.get_rng_state()
        add_tokens(model, tokens, seed=seed, initial=words)
        assert torch.equal(torch.get_rng_state(), state)
        return model, {role: table.learned.detach() for role, table in token_tables(model).items()}

    model, rows = start(0)
    torch.randn(3)
    assert _same(rows, start(0)[1])
    assert not _same(rows, start(1)[1])
    for part in text_parts(model):
        table, learned = token_tables(model)[part.role], rows[part.role]
        known = table.frozen.weight[part.tokenizer("red", add_special_tokens=False).input_ids]
        # T5 says a space before the word, which is left out.
        mean = known[-3:].mean(0)
        cosine = torch.nn.functional.cosine_similarity(learned, mean[None])
        assert cosine[:2].min() > 0.98
        assert cosine[2:].abs().max() < 0.8
        assert (learned[0] - learned[1]).norm() > 0.05
        assert (learned[2] - learned[3]).norm() > 0.5
        assert table.scale == pytest.approx(float(table.frozen.weight.norm(dim=1).median()))
        torch.testing.assert_close(learned.norm(dim=1), torch.ones(4))


def test_ids_that_t5s_longer_table_has_rows_for_are_looked_up_among_the_learned(bases, tmp_path):
    """T5's table has more rows than its tokenizer has words: new ids fall on rows that mean nothing, which the export fills."""
    base = shutil.copytree(bases["cascade"], tmp_path / "base")
    encoder = T5EncoderModel.from_pretrained(base / "base" / "text_encoder")
    known = encoder.get_input_embeddings().num_embeddings
    encoder.resize_token_embeddings(known + 3)
    encoder.get_input_embeddings().weight.data[known:] = 1000.0
    encoder.save_pretrained(base / "base" / "text_encoder")
    for count, length in ((2, known + 3), (5, known + 5)):
        tokens = {str(i): f"<t-{i}>" for i in range(count)}
        model = load_model(str(base))
        add_tokens(model, tokens, seed=0, initial=tokens)
        table = token_tables(model)["text_encoder"]
        assert (table.first, len(table.learned)) == (known, count)
        assert table.scale == pytest.approx(float(table.frozen.weight[:known].norm(dim=1).median()), rel=1e-6)
        copy_parts(str(base), tmp_path / str(count))
        export_tokens(tmp_path / str(count), model, {"text_encoder": table.learned.detach()})
        folder = tmp_path / str(count) / "base" / "text_encoder"
        assert json.loads((folder / "config.json").read_text())["vocab_size"] == length
        assert _same(load_model(str(tmp_path / str(count))).encode(list(tokens.values())), model.encode(list(tokens.values())))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_the_rows_that_were_used_in_every_encoder_and_nothing_else(bases, kind):
    """Each encoder's row of a token in the batch gets a gradient, others zeros, and no other tensor of the model any."""
    method = _inversion(bases[kind])
    _backward(method, ["a <crane-bird>", "", "a <crane-bird>"])
    parameters = method.parameters()
    assert list(parameters) == [part.role for part in text_parts(method.model)]
    for parameter in parameters.values():
        assert parameter.grad[0].abs().sum() > 0
        assert not parameter.grad[1].any()
    modules = [method.network, *(part.encoder for part in text_parts(method.model))]
    others = [p for module in modules for p in module.parameters() if all(p is not own for own in parameters.values())]
    assert not any(p.requires_grad or p.grad is not None for p in others)
    assert method.network.training


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_empty_prompts_has_a_gradient_of_zeros(bases, kind):
    """Where every prompt was dropped a step still runs, and every process has something to exchange."""
    method = _inversion(bases[kind])
    _backward(method, ["", ""])
    for parameter in method.parameters().values():
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_give_the_same_gradient(bases, kind):
    """Gradient checkpointing of a network with nothing to train still passes the gradient to its text."""
    grads = []
    for checkpointing in (False, True):
        method = _inversion(bases[kind], gradient_checkpointing=checkpointing)
        _backward(method, ["a <crane-bird>"])
        grads.append({role: parameter.grad for role, parameter in method.parameters().items()})
    for role in grads[0]:
        torch.testing.assert_close(grads[0][role], grads[1][role])
        assert grads[1][role][0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_training_changes_the_learned_rows_alone(bases, kind):
    """After some steps network, autoencoder and encoders are the base's, and every row has moved in every encoder."""
    method, averaged = _trained(bases[kind])
    plain, start = load_model(str(bases[kind])), _inversion(bases[kind]).values()
    stage = plain.stages[0]
    assert _same(method.network.state_dict(), plain.network(stage).state_dict())
    assert method.weights(averaged) == {}
    for part, before in zip(text_parts(method.model), text_parts(plain), strict=True):
        assert (method.values()[part.role] - start[part.role]).norm(dim=1).min() > 0.05
        assert (averaged[part.role] - start[part.role]).norm(dim=1).min() > 0.01
        part.encoder.set_input_embeddings(part.encoder.get_input_embeddings().frozen)
        assert _same(part.encoder.state_dict(), before.encoder.state_dict())


def test_values_are_the_parameters_by_reference_in_one_order(bases):
    """What is averaged is what is trained: an optimizer's change is seen in both at once."""
    method = _inversion(bases["sd3"])
    values = method.values()
    assert list(values) == list(method.parameters())
    for parameter in method.parameters().values():
        parameter.data.add_(1.0)
    assert all(torch.equal(values[role], parameter) for role, parameter in method.parameters().items())
    assert not any(value.requires_grad for value in values.values())


def test_text_is_float32_whatever_the_networks_precision(bases):
    """Text states are those that sampling and other methods use; T5 does not survive half precision."""
    method, message = _inversion(bases["sdxl"]), ["a <crane-bird>", "", "a <class-1>", "a <crane-bird>"]
    plain = method.text(message)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = method.text(message)
    assert _same(plain, reduced)
    assert {states.dtype for states in plain.values()} == {torch.float32}
    whole = method.model.encode(message)
    for role, states in plain.items():
        torch.testing.assert_close(states, whole[role])


def test_gradients_of_all_processes_are_averaged(bases):
    """With another process whose gradient is three times this one's, both go on with twice."""

    class Neighbour(ProcessGroup):
        def average(self, tensors):
            for tensor in tensors:
                tensor.mul_(2)

    method = _inversion(bases["sd3"])
    _backward(method, ["a <crane-bird>"])
    own = {role: parameter.grad.clone() for role, parameter in method.parameters().items()}
    method.exchange(Neighbour(rank=0, size=2, device=torch.device("cpu")))
    assert len(own) == 3
    assert all(torch.equal(parameter.grad, 2 * own[role]) for role, parameter in method.parameters().items())


@pytest.mark.parametrize("kind", KINDS)
def test_averages_are_put_into_another_copy_of_the_model_as_often_as_configured(bases, kind):
    """An evaluation samples with the averages of its own step: the second copy says what the first one would say with them."""
    method, averaged = _trained(bases[kind])
    prompts, other = list(token_prompts(TOKENS, _settings()).values()), load_model(str(bases[kind]))
    for given in ({role: value * 2 for role, value in averaged.items()}, averaged):
        method.install(other, given)
        put_rows(method.model, given)
        assert _same(other.encode(prompts), method.model.encode(prompts))
    assert all(isinstance(part.encoder.get_input_embeddings(), TokenTable) for part in text_parts(other))


def _sampled_by_diffusers(kind, folder, prompts, seeds, pipeline=None):
    """uint8-valued images by plain diffusers of prompts as text."""
    loader, folder = (IFPipeline, folder / "base") if kind == "cascade" else (DiffusionPipeline, folder)
    pipeline = pipeline or loader.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    given = {"clean_caption": False} if kind == "cascade" else {"height": 16, "width": 16}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipeline(prompts, guidance_scale=2.0, num_inference_steps=3, generator=generators, output_type="pt", **given).images
    return ((images.clamp(-1, 1) + 1) * 127.5 if kind == "cascade" else images * 255).round()


@pytest.mark.parametrize("kind", KINDS)
def test_plain_diffusers_samples_from_an_export_what_we_sample(bases, tmp_path, kind):
    """The tokens are ordinary words of the export: ours and plain diffusers' images agree, and are those of the trained rows."""
    prompts = list(token_prompts(TOKENS, _settings()).values())
    averaged = _trained(bases[kind], steps=8)[1]
    out, model = _exported(bases[kind], tmp_path / "out", averaged)
    ours = Sampler(load_model(str(out)), prompts).sample(prompts, [5, 6], SETTINGS)
    assert torch.equal(ours, Sampler(model, prompts).sample(prompts, [5, 6], SETTINGS))
    assert (ours.float() - _sampled_by_diffusers(kind, out, prompts, [5, 6])).abs().max() <= 1
    assert not torch.equal(ours, Sampler(load_model(str(bases[kind])), prompts).sample(prompts, [5, 6], SETTINGS))
    assert not list(out.rglob("*.bin"))
    assert not any(str(tmp_path) in p.read_text() or "_name_or_path" in p.read_text() for p in out.rglob("*.json"))


def test_the_tokens_alone_can_be_loaded_onto_the_base(bases, tmp_path):
    """For one CLIP encoder there is a file per token that `load_textual_inversion` takes; the base then samples what the export samples."""
    prompts = list(token_prompts(TOKENS, _settings()).values())
    out, _ = _exported(bases["sd1"], tmp_path / "out")
    files = sorted((out / EMBEDS).iterdir())
    assert [file.name for file in files] == ["class-1.safetensors", "crane-bird.safetensors"]
    pipeline = StableDiffusionPipeline.from_pretrained(bases["sd1"])
    before = _sampled_by_diffusers("sd1", bases["sd1"], prompts, [5, 6], pipeline)
    pipeline.load_textual_inversion([str(file) for file in files])
    loaded = _sampled_by_diffusers("sd1", bases["sd1"], prompts, [5, 6], pipeline)
    assert (loaded - _sampled_by_diffusers("sd1", out, prompts, [5, 6])).abs().max() <= 1
    assert (loaded - before).abs().max() > 5
    for kind in ("sdxl", "cascade"):
        assert not (_exported(bases[kind], tmp_path / kind)[0] / EMBEDS).exists()


@pytest.mark.parametrize("kind", ["sd1", "sd3"])
def test_equal_rows_give_equal_bytes(bases, tmp_path, kind):
    """An export can be made again bit for bit, wherever the base lies."""
    moved = shutil.copytree(bases[kind], tmp_path / "elsewhere" / "base")
    one, two = _exported(bases[kind], tmp_path / "one")[0], _exported(moved, tmp_path / "two")[0]
    files = tree(one)
    assert files == tree(two)
    assert len(files) > 8
    assert not {"is_local", "local_files_only"} & json.loads((one / "tokenizer" / "tokenizer_config.json").read_text()).keys()


def test_what_is_not_a_token_is_exported_as_the_base_has_it(bases, tmp_path):
    """A base in half precision and in shards stays so: only the rows are added, and pickled and older files of it are not left next to."""
    base = tmp_path / "base"
    StableDiffusion3Pipeline.from_pretrained(bases["sd3"], torch_dtype=torch.float16).save_pretrained(base, max_shard_size="20KB")
    assert len(list((base / "text_encoder_3").glob("*.safetensors"))) > 1
    (base / "text_encoder" / "pytorch_model.bin").write_bytes(b"old")
    (base / "tokenizer" / "vocab.json").write_text("{}")
    config = json.loads((base / "text_encoder" / "config.json").read_text()) | {"nothing": None}
    (base / "text_encoder" / "config.json").write_text(json.dumps(config))
    out, model = _exported(base, tmp_path / "out")
    assert not list(out.rglob("*.bin"))
    assert not (out / "tokenizer" / "vocab.json").exists()
    assert json.loads((out / "text_encoder" / "config.json").read_text()) == config | {"vocab_size": config["vocab_size"] + len(TOKENS)}
    for role, table in token_tables(model).items():
        before, after = ({k: v for f in (root / role).glob("*.safetensors") for k, v in load_file(f).items()} for root in (base, out))
        tables = [name for name in after if after[name].shape != before[name].shape]
        assert len(tables) == 1
        assert _same({k: v for k, v in before.items() if k not in tables}, {k: v for k, v in after.items() if k not in tables})
        grown = after[tables[0]]
        assert grown.dtype == torch.float16
        assert torch.equal(grown[: table.first], before[tables[0]])
        torch.testing.assert_close(grown[table.first :].float(), table.learned.detach() * table.scale, rtol=1e-3, atol=1e-3)
        for file in (out / role).glob("*.index.json"):
            assert json.loads(file.read_text())["metadata"]["total_size"] == sum(v.numel() * v.element_size() for v in after.values())
    prompts = list(token_prompts(TOKENS, _settings()).values())
    peer = StableDiffusion3Pipeline.from_pretrained(out, torch_dtype=torch.float32).encode_prompt(prompts, None, None)
    torch.testing.assert_close(load_model(str(out)).encode(prompts)["states"], peer[0].detach())


def test_an_encoder_without_a_known_table_is_refused(bases, tmp_path):
    """A file whose embedding goes by another name is named, not exported without its tokens."""
    base = shutil.copytree(bases["sd1"], tmp_path / "base")
    model = load_model(str(base))
    add_tokens(model, TOKENS, seed=0, initial=NAMES)
    path = base / "text_encoder" / "model.safetensors"
    save_file({k.replace("token_embedding", "words"): v for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"text_encoder: expected one input embedding, named .*shared\.weight.*, found 0"):
        export_tokens(base, model, {"text_encoder": token_tables(model)["text_encoder"].learned.detach()})


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_the_pooled_state_is_read_at_the_end_and_not_at_the_new_token(bases, tmp_path, kind):
    """An old CLIP configuration finds the end by the highest id, which a token's is: here and in the export it is the real end."""
    base = shutil.copytree(bases[kind], tmp_path / "base")
    for role in ("text_encoder", "text_encoder_2"):
        path = base / role / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 2}))
    today, old = _exported(bases[kind], tmp_path / "today")[1], load_model(str(base))
    assert torch.equal(old.encode(["a cat"])["pooled"], today.encode(["a cat"])["pooled"])
    out, model = _exported(base, tmp_path / "out")
    # States before a word do not depend on it: pooled at the token, all three would be one.
    prompts = ["a <class-1>", "a <class-1> cat", "a <class-1> cat on white"]
    pooled = model.encode(prompts)["pooled"]
    assert torch.equal(pooled, today.encode(prompts)["pooled"])
    assert torch.pdist(pooled).min() > 0.01 * pooled.norm(dim=1).max()
    assert torch.equal(load_model(str(out)).encode(prompts)["pooled"], pooled)
    plain = DiffusionPipeline.from_pretrained(out)
    given = (None, None) if kind == "sd3" else ()
    assert torch.equal(plain.encode_prompt(prompts, *given)[2], pooled)


def test_what_cannot_be_trained_is_refused(bases, tiny):
    """Tokens belong to the first stage, must be new, and must not fall off the end of a prompt."""
    model = load_model(str(tiny))
    given = {"tokens": TOKENS, "initial": NAMES, "seed": 0}
    with pytest.raises(ConfigError, match="with the base stage alone, got super_resolution"):
        make_inversion(model, "super_resolution", _settings(), **given)
    with pytest.raises(ConfigError, match=r"<crane-bird> of class 'crane bird' is not among the 77 tokens"):
        make_inversion(model, "base", _settings(prompt_template="x" * 80 + " {class_name}"), **given)
    with pytest.raises(DataError, match="text_encoder: its tokenizer already knows a, b,"):
        add_tokens(load_model(str(tiny)), {"a": "a", "b": "b", "c": "<c>"}, seed=0, initial={"a": "a", "b": "b", "c": "c"})


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_ends_in_identical_rows(bases, tmp_path, monkeypatch, kind):
    """Stopped after its second checkpoint and run again, the tokens end bit for bit where the uninterrupted run's end."""
    prompts = list(token_prompts(TOKENS, _settings()).values()) * 2
    images = ((_images(4) + 1) * 127).to(torch.uint8)

    changed = {"method": "textual_inversion", "prompt_template": TEMPLATE}

    def job(work):
        plain = stage_job(bases[kind], tmp_path / work, images, prompts, **changed)
        return dataclasses.replace(plain, tokens=Tokens(names=TOKENS, initial=NAMES))

    whole = finetune_stage(job("whole"))
    ticks = []

    def stop_at_five(*_, **__):
        ticks.append(1)
        if len(ticks) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "tick", stop_at_five)
        with pytest.raises(KeyboardInterrupt):
            finetune_stage(job("cut"))
    resumed = finetune_stage(job("cut"))
    assert whole.losses == resumed.losses
    assert len(whole.losses) == 6
    assert whole.weights == {}
    assert _same(whole.averaged, resumed.averaged)
    start = _inversion(bases[kind]).values()
    assert not any(torch.equal(whole.averaged[role], start[role]) for role in start)


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (120, 120, 120)}


@pytest.fixture(scope="module")
def taught(bases, tmp_path_factory):
    """A single-stage cascade that has learned what four colours are called."""
    root = tmp_path_factory.mktemp("taught")
    images = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)[:, :, None, None].repeat(1, 1, 8, 8)
    given = {"learning_rate": 3e-3, "batch_size": 8, "checkpointing_steps": 10_000, "prompt_dropout": 0.0, "jitter": 0.0}
    result = finetune_stage(stage_job(bases["cascade"], root / "work", images, tuple(COLOURS), steps=150, ema_decay=0.98, **given))
    says, weights = {name: name for name in COLOURS}, {result.stage: result.weights}
    export_generator(str(bases["cascade"]), weights, root / "out", prompts=says, snapshot_digest="d", steps={result.stage: 150})
    return root / "out"


@pytest.mark.learning
def test_two_classes_that_the_encoder_cannot_tell_apart_learn_their_own_colours(taught):
    """Names of identical ids: a network that depends on text gives both one image; with a token each, each class samples its own."""
    wanted = torch.tensor([COLOURS["red"], COLOURS["blue"]])
    images = unit(wanted.to(torch.uint8)[:, :, None, None].repeat(8, 1, 8, 8))
    config = _settings(prompt_template="{class_name}", learning_rate=0.01, ema_decay=0.9)
    classes = [ClassInfo(name=name, prompt_name=name) for name in NAMELESS]
    model = load_model(str(taught))
    tokens = class_tokens(classes, model)
    method = make_inversion(model, "base", config, tokens=tokens, initial={name: name for name in NAMELESS}, seed=0)
    run, prompts = TrainingRun(method, config, 100, ALONE, None), list(token_prompts(tokens, config).values())

    def loss(text, step):
        return model.loss("base", method.network, images, text, step_streams(0, "base", step, slice(0, 16)), snr_gamma=None).mean()

    def lasting(names):
        with torch.no_grad():
            return sum(float(loss(model.encode(list(names) * 8), 1000 + step)) for step in range(8)) / 8

    def distances(names):
        sampled = Sampler(model, names).sample(names, [1, 1], SamplingSettings(guidance_scale=1.0, num_inference_steps=12))
        return torch.cdist(sampled.float().mean((2, 3)), wanted.float())

    collided, untrained = lasting(NAMELESS), lasting(prompts)
    for step in range(100):
        value = loss(method.text(prompts * 8), step)
        value.backward()
        run.update(float(value.detach()))
    put_rows(model, run.averaged())
    nameless, learned = distances(list(NAMELESS)), distances(prompts)
    assert torch.equal(nameless[0], nameless[1])
    assert nameless.max() > 100
    assert learned.diagonal().max() < 40
    assert learned.fliplr().diagonal().min() > 200
    trained = lasting(prompts)
    assert trained < 0.3 * collided
    assert trained < untrained  # by how much depends on where the tokens begin, which may be near
    assert trained < 1.2 * lasting(("red", "blue"))

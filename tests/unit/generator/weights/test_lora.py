"""Adapters on every family's network: what they change, what they leave alone, and what plain diffusers makes of their files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, IFPipeline, IFSuperResolutionPipeline
from safetensors import safe_open
from tiny_pipelines import IMAGE_SIZE, LATENT_SIZE, TEXT_WIDTH, build_latent_unet, build_tiny_pipeline, build_transformer
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from gda.config.sections import FinetuneConfig
from gda.demo_base.build import build_unet
from gda.errors import ConfigError, DataError
from gda.generator.weights.lora import LORA_FILE, add_adapter, discarded, factor, write_lora

LATENT = ("sd1", "sd2", "sdxl", "sd3")
CASCADE = ("base", "super_resolution")
KINDS = LATENT + CASCADE
BUILDERS = {
    "sd1": lambda: build_latent_unet(linear=False),
    "sd2": lambda: build_latent_unet(linear=True),
    "sdxl": lambda: build_latent_unet(linear=True, pooled_width=TEXT_WIDTH // 2),
    "sd3": build_transformer,
    "base": lambda: build_unet(8, (32,), text_width=32),
    "super_resolution": lambda: build_unet(16, (16, 32), text_width=32, super_resolution=True),
}
CONVOLUTIONS = {"sd1": ("to_q", "proj_in", "conv1"), "base": ("to_k", "conv2", "conv_in"), "sd3": ("to_v", "pos_embed.proj")}


def _network(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return BUILDERS[kind]().requires_grad_(False)


def _settings(**changed):
    return FinetuneConfig.model_validate({"method": "lora", "lora_rank": 3, "lora_alpha": 6.0} | changed)


def _adapted(kind, *, seed=0, **changed):
    """An adapter whose B is not zero: as training leaves it."""
    network = _network(kind)
    adapter = add_adapter(network, _settings(**changed), seed=seed)
    _move(adapter, seed)
    return network, adapter


def _move(adapter, seed, size=0.1):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapter.parameters().items():
        if "lora_B" in name:
            parameter.data.copy_(size * torch.randn(parameter.shape, generator=generator))


def _predict(kind, network):
    """A prediction for fixed inputs, in the way that the kind's pipeline calls its network."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    t, text = torch.tensor([3, 700]), normal(2, 5, TEXT_WIDTH)
    if kind == "sd3":
        return network(normal(2, 4, LATENT_SIZE, LATENT_SIZE), text, normal(2, TEXT_WIDTH), t).sample
    if kind == "base":
        return network(normal(2, 3, 8, 8), t, text).sample
    if kind == "super_resolution":
        return network(normal(2, 6, 16, 16), t, text, class_labels=torch.tensor([0, 5])).sample
    added = {"text_embeds": normal(2, TEXT_WIDTH // 2), "time_ids": torch.full((2, 6), 16.0)} if kind == "sdxl" else None
    return network(normal(2, 4, LATENT_SIZE, LATENT_SIZE), t, text, added_cond_kwargs=added).sample


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: build_tiny_pipeline(kind, root / kind) for kind in LATENT}


def _average(one, two):
    return {name: (value + two.products()[name]) / 2 for name, value in one.products().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing(kind):
    """B starts at zero: the first step of training sees exactly the base's output."""
    network = _network(kind)
    plain = _predict(kind, network)
    adapter = add_adapter(network, _settings(), seed=0)
    assert torch.equal(_predict(kind, network), plain)
    assert all(not product.any() for product in adapter.products().values())
    _move(adapter, 0)
    assert not torch.allclose(_predict(kind, network), plain, atol=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_gets_gradients_and_all_of_it_does(kind, checkpointing):
    """Nothing of the base is trained, no factor is idle, and checkpointed activations give the same gradients."""
    network, adapter = _adapted(kind)
    if checkpointing:
        network.enable_gradient_checkpointing()
    _predict(kind, network.train()).square().mean().backward()
    trained = {id(parameter) for parameter in adapter.parameters().values()}
    assert trained == {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    assert trained == {id(parameter) for parameter in network.parameters() if parameter.grad is not None}
    assert all(parameter.grad.any() for parameter in adapter.parameters().values())
    if checkpointing:
        other, plain = _adapted(kind)
        _predict(kind, other.train()).square().mean().backward()
        for name, parameter in plain.parameters().items():
            torch.testing.assert_close(adapter.parameters()[name].grad, parameter.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_those_of_a_plain_network_that_predicts_the_same(kind):
    """Exported weights have all the original names, and the same output as the adapted network."""
    network, adapter = _adapted(kind)
    merged, plain = adapter.merged(adapter.products()), _network(kind)
    assert list(merged) == list(plain.state_dict())
    before = _predict(kind, plain)
    plain.load_state_dict(merged)
    torch.testing.assert_close(_predict(kind, plain), _predict(kind, network), atol=1e-5, rtol=0)
    assert (before - _predict(kind, plain)).abs().max() > 1e-3
    assert not any(value.requires_grad for value in (*merged.values(), *adapter.products().values()))


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_are_merged_and_factored_too(kind):
    """A product of a convolution has its kernel's shape, adds to it, and comes apart into a convolution and a 1 x 1 convolution."""
    network, adapter = _adapted(kind, lora_target_modules=CONVOLUTIONS[kind])
    products, plain = adapter.products(), _network(kind)
    assert any(product.ndim == 4 for product in products.values())
    plain.load_state_dict(adapter.merged(products))
    torch.testing.assert_close(_predict(kind, plain), _predict(kind, network), atol=1e-5, rtol=0)
    factors = factor(products, rank=3, tolerance=0.0)
    assert discarded(products, factors) < 1e-10
    for name, parameter in adapter.parameters().items():
        layer, _, which = name.removesuffix(".weight").rpartition(".")
        a, b = factors[layer]
        assert (a if which == "lora_A" else b).shape == parameter.shape


def test_a_layer_that_the_products_leave_out_keeps_its_weight():
    """Merging part of the products changes those layers alone; a product of a layer without an adapter is refused."""
    _, adapter = _adapted("sd1")
    first, second, *_ = adapter.layers
    merged, frozen = adapter.merged({first: adapter.products()[first]}), _network("sd1").state_dict()
    assert [name for name in merged if not torch.equal(merged[name], frozen[name])] == [f"{first}.weight"]
    assert second in adapter.layers
    with pytest.raises(ValueError, match=r"conv_out"):
        adapter.merged({"conv_out": torch.zeros(1)})


@pytest.mark.parametrize("kind", KINDS)
def test_a_removed_adapter_leaves_the_base(kind):
    """After `remove` the network has its own names and output again, and can be given another adapter."""
    network, adapter = _adapted(kind)
    adapter.remove()
    plain = _network(kind)
    assert list(network.state_dict()) == list(plain.state_dict())
    assert torch.equal(_predict(kind, network), _predict(kind, plain))
    assert not hasattr(network, "peft_config")
    again = add_adapter(network, _settings(lora_rank=1), seed=5)
    with pytest.raises(ValueError, match=r"remove\(\)"):
        add_adapter(network, _settings(), seed=5)
    assert {parameter.shape[0] for name, parameter in again.parameters().items() if "lora_A" in name} == {1}


def test_the_start_is_a_function_of_the_seed_alone():
    """Neither the state of the global generator nor the other targets matter, and the global generator is left as it was."""
    one = add_adapter(_network("sd1"), _settings(), seed=4).parameters()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    two = add_adapter(_network("sd1"), _settings(lora_target_modules=("to_k",)), seed=4).parameters()
    assert torch.equal(torch.get_rng_state(), state)
    other = add_adapter(_network("sd1"), _settings(), seed=5).parameters()
    assert len(two) == len(one) // 4
    assert all(torch.equal(one[name], two[name]) for name in two)
    assert all(torch.equal(one[name], other[name]) == ("lora_B" in name) for name in one)
    bounds = [float(value.abs().max()) * value.shape[1] ** 0.5 for name, value in one.items() if "lora_A" in name]
    assert 0.9 < min(bounds) < max(bounds) <= 1.0  # uniform up to 1 / sqrt(fan-in)
    starts = [value.flatten()[:8] for name, value in one.items() if "lora_A" in name]
    assert all(not torch.equal(starts[0], start) for start in starts[1:])


def test_parameters_are_named_in_the_networks_order_and_float32():
    """A checkpoint of one run fits the next: names carry no trace of how they are held, and half-precision bases train in float32."""
    network = _network("sd3").to(torch.bfloat16)
    adapter = add_adapter(network, _settings(), seed=0)
    names = list(adapter.parameters())
    assert names[:2] == ["transformer_blocks.0.attn.to_q.lora_A.weight", "transformer_blocks.0.attn.to_q.lora_B.weight"]
    assert [name for name in network.state_dict() if "lora" in name] == [name.replace(".weight", ".default.weight") for name in names]
    assert {value.dtype for value in adapter.parameters().values()} == {torch.float32}
    assert {value.dtype for value in adapter.products().values()} == {torch.float32}
    assert {value.dtype for value in adapter.merged(adapter.products()).values()} == {torch.bfloat16}


def test_the_scale_is_alpha_over_rank_and_one_without_alpha():
    """Twice the alpha is twice the product; without alpha the product is B @ A."""
    products = {alpha: _adapted("sd1", lora_alpha=alpha)[1].products() for alpha in (None, 3.0, 6.0)}
    for name, product in products[None].items():
        assert torch.equal(product, products[3.0][name])
        torch.testing.assert_close(product * 2, products[6.0][name])


def test_a_rank_above_a_layers_side_is_lowered_to_it_at_the_same_scale():
    """A rank that a small layer cannot use costs no memory there, and neither its scale nor the other layers change."""
    network, adapter = _adapted("sd1", lora_rank=24, lora_alpha=48.0, lora_target_modules=("to_q", "conv_out"))
    ranks = {name.split(".lora_")[0]: value.shape[0] for name, value in adapter.parameters().items() if "lora_A" in name}
    assert ranks.pop("conv_out") == 4
    assert set(ranks.values()) == {24}
    plain = _network("sd1")
    plain.load_state_dict(adapter.merged(adapter.products()))
    torch.testing.assert_close(_predict("sd1", plain), _predict("sd1", network), atol=1e-5, rtol=0)
    assert adapter.scale == 2.0


@pytest.mark.parametrize("wrapper", ["compile", "ddp"])
def test_a_wrapped_network_trains_the_same_adapter(wrapper, request):
    """Wrapping is by reference: an optimizer over the adapter's parameters moves what the wrapped network computes with."""
    network, adapter = _adapted("sd1")
    if wrapper == "ddp":
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        request.addfinalizer(distributed.destroy_process_group)
    wrapped = DistributedDataParallel(network) if wrapper == "ddp" else torch.compile(network, backend="eager")
    before = adapter.products()
    optimizer = torch.optim.SGD(adapter.parameters().values(), lr=1.0)
    first = _predict("sd1", wrapped).square().mean()
    first.backward()
    optimizer.step()
    assert _predict("sd1", wrapped).square().mean() < first
    assert torch.equal(_predict("sd1", wrapped), _predict("sd1", network))
    assert all(not torch.equal(value, before[name]) for name, value in adapter.products().items())


@pytest.mark.parametrize(
    ("kind", "targets", "message"),
    [
        ("sd1", ("to_q", "to_query"), r"'to_query' matches no layer of UNet2DConditionModel; its layers: .*to_out\.0, to_q, .* and 5 more"),
        ("sd3", ("conv1",), r"'conv1' matches no layer of SD3Transformer2DModel"),
        ("sd1", ("o_q",), r"'o_q' matches no layer"),
        ("sd1", ("norm1",), r"norm1, a GroupNorm; adapters go on Linear and on Conv2d"),
        ("sd1", ("attn1",), r"attn1, a Attention"),
        ("sd1", ("to_out",), r"to_out, a ModuleList.*to_out\.0"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused_with_what_there_is(kind, targets, message):
    """A misspelt or unsuitable target is an error that lists the layers, not a run that trains less than was requested."""
    network = _network(kind)
    with pytest.raises(ConfigError, match=r"finetune\.lora_target_modules: .*" + message):
        add_adapter(network, _settings(lora_target_modules=targets), seed=0)
    assert list(network.state_dict()) == list(_network(kind).state_dict())


@pytest.mark.parametrize("layer", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect"}])
def test_convolutions_whose_product_would_not_be_their_change_are_refused(layer):
    """The adapter of a grouped, dilated or reflecting convolution computes something else than a changed weight would."""
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, **layer), nn.Linear(4, 4))
    with pytest.raises(ConfigError, match="'0' matches 0, a Conv2d"):
        add_adapter(network, _settings(lora_target_modules=("0",)), seed=0)


@pytest.mark.parametrize("kind", ["sd1", "sd3"])
def test_the_average_of_products_is_not_the_product_of_averages(kind):
    """Why products are averaged: averaged factors are another change; and the average has more rank than its parts."""
    (_, one), (_, two) = _adapted(kind, seed=1), _adapted(kind, seed=2)
    average = _average(one, two)
    for name, value in one.parameters().items():
        value.data.lerp_(two.parameters()[name].data, 0.5)
    of_averages = one.products()
    for name, product in average.items():
        assert (product - of_averages[name]).norm() > 0.3 * product.norm()
        assert torch.linalg.matrix_rank(product) == 6


@pytest.mark.parametrize("tolerance", [1e-8, 1e-2, 0.2])
@pytest.mark.parametrize("kind", ["sd1", "sd3"])
def test_factors_keep_what_is_tolerated_at_the_smallest_rank(kind, tolerance):
    """Each layer loses at most the tolerated share of its squared norm, and one rank less would lose more."""
    average = _average(_adapted(kind, seed=1)[1], _adapted(kind, seed=2)[1])
    factors, shares = factor(average, rank=64, tolerance=tolerance), []
    assert list(factors) == list(average)
    for name, (a, b) in factors.items():
        product, kept = average[name], len(a)
        squares = torch.linalg.svdvals(product.double()).square()
        shares.append(float((product - b @ a).double().square().sum() / squares.sum()))
        assert shares[-1] <= tolerance + 1e-10
        assert squares[kept - 1 :].sum() / squares.sum() > tolerance
        assert a.dtype == b.dtype == torch.float32
    assert discarded(average, factors) == pytest.approx(max(shares), abs=1e-7)


def test_the_cap_on_the_rank_holds_and_what_it_costs_is_reported():
    """Capped factors are the best of that rank, and `discarded` gives the share that they leave out."""
    average = _average(_adapted("sd1", seed=1)[1], _adapted("sd1", seed=2)[1])
    factors = factor(average, rank=2)
    assert {len(a) for a, _ in factors.values()} == {2}
    squares = [torch.linalg.svdvals(product.double()).square() for product in average.values()]
    assert discarded(average, factors) == pytest.approx(float(max(s[2:].sum() / s.sum() for s in squares)), rel=1e-4)


def test_zero_products_get_rank_one_of_zeros_and_others_signs_that_are_fixed():
    """A layer that was not trained is written as zeros; a product's factors do not depend on the sign that a solver chose."""
    product = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    factors = factor({"zero": torch.zeros(5, 3), "kernel": torch.zeros(5, 2, 3, 3), "one": product, "two": product.T}, rank=9)
    assert [tuple(part.shape) for part in factors["zero"]] == [(1, 3), (5, 1)]
    assert [tuple(part.shape) for part in factors["kernel"]] == [(1, 2, 3, 3), (5, 1, 1, 1)]
    assert not any(part.any() for name in ("zero", "kernel") for part in factors[name])
    for name, short in (("one", factors["one"][0].T), ("two", factors["two"][1])):
        assert torch.equal(short.abs().amax(0), short.amax(0)), name
    assert discarded({"zero": torch.zeros(5, 3)}, {"zero": factors["zero"]}) == 0.0


def test_products_and_limits_that_cannot_be_factored_are_refused():
    """A diverged adapter is named rather than written; a rank of 0 and a share of 1 are mistakes of the caller."""
    with pytest.raises(DataError, match=r"adapter of there is not finite"):
        factor({"here": torch.ones(2, 2), "there": torch.tensor([[1.0, torch.nan]])}, rank=1)
    for wrong in ({"rank": 0}, {"rank": 1, "tolerance": 1.0}, {"rank": 1, "tolerance": -0.1}):
        with pytest.raises(ValueError, match="at least 1"):
            factor({"here": torch.ones(2, 2)}, **wrong)


def _loaded(path: Path):
    pipeline = DiffusionPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _sampled(pipeline, **given):
    generator = torch.Generator().manual_seed(7)
    images = pipeline("a cat", num_inference_steps=3, generator=generator, output_type="np", **given).images
    return np.round(np.asarray(images) * 255)


@pytest.mark.parametrize("kind", LATENT)
def test_plain_diffusers_samples_from_our_file_what_the_merged_pipeline_samples(pipelines, tmp_path, kind):
    """Layers of different ranks, loaded onto the base by `load_lora_weights`: the image of the merged weights."""
    component = "transformer" if kind == "sd3" else "unet"
    pipeline, size = _loaded(pipelines[kind]), {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    base = _sampled(pipeline, **size)
    adapter = add_adapter(getattr(pipeline, component), _settings(), seed=0)
    _move(adapter, 0, size=0.3)
    for lost, layer in enumerate(adapter.layers[:2], start=1):
        adapter.parameters()[f"{layer}.lora_B.weight"].data[:, :lost] = 0
    products = adapter.products()
    adapter.remove()
    factors = factor(products, rank=64)
    assert len({len(a) for a, _ in factors.values()}) == 3
    write_lora(tmp_path / "adapter", {component: factors})
    pipeline.load_lora_weights(tmp_path / "adapter")
    peer = _sampled(pipeline, **size)
    merged = _loaded(pipelines[kind])
    getattr(merged, component).load_state_dict(_merge(merged, component, products))
    ours = _sampled(merged, **size)
    assert np.abs(ours - peer).max() <= 1
    assert np.abs(ours - base).max() > 5


def _merge(pipeline, component, products):
    whole = getattr(pipeline, component).state_dict()
    return whole | {f"{name}.weight": whole[f"{name}.weight"] + product for name, product in products.items()}


@pytest.mark.parametrize("stage", CASCADE)
def test_each_stage_of_a_cascade_loads_its_own_file(tiny, tmp_path, stage):
    """One folder per stage: plain `IFPipeline` and `IFSuperResolutionPipeline` sample from it what the merged stage samples."""
    base = IFPipeline.from_pretrained(tiny / "base")
    given: dict[str, object] = {"num_images_per_prompt": 1, "guidance_scale": 1.0}
    if stage == "super_resolution":
        states, empty = base.encode_prompt("a cat", device="cpu")
        small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        given |= {"prompt_embeds": states, "negative_prompt_embeds": empty, "image": small, "noise_level": 0}
    prompt = "a cat" if stage == "base" else None

    def generate(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        sampled = pipeline(prompt, num_inference_steps=3, generator=torch.Generator().manual_seed(7), output_type="np", **given)
        return np.round(np.asarray(sampled.images) * 255)

    def load():
        return (IFPipeline if stage == "base" else IFSuperResolutionPipeline).from_pretrained(tiny / stage)

    pipeline = load()
    plain = generate(pipeline)
    adapter = add_adapter(pipeline.unet, _settings(), seed=0)
    _move(adapter, 0, size=0.5)
    products = adapter.products()
    adapter.remove()
    write_lora(tmp_path / stage, {"unet": factor(products, rank=64)})
    pipeline.load_lora_weights(tmp_path / stage)
    merged = load()
    merged.unet.load_state_dict(_merge(merged, "unet", products))
    assert np.abs(generate(merged) - generate(pipeline)).max() <= 1
    assert np.abs(generate(merged) - plain).max() > 5


def test_several_adapters_lie_side_by_side_and_are_chosen_by_name(pipelines, tmp_path):
    """One folder per class: diffusers loads several under their names, and the chosen one alone decides the image."""
    pipeline, size = _loaded(pipelines["sd1"]), {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    for seed, name in enumerate(("cat", "dog")):
        adapter = _adapted("sd1", seed=seed, lora_rank=1 + seed)[1]
        write_lora(tmp_path / name, {"unet": factor(adapter.products(), rank=64)})
        pipeline.load_lora_weights(tmp_path / name, adapter_name=name)
    sampled: dict[str, list[np.ndarray]] = {}
    for name in ("cat", "dog", "cat"):
        pipeline.set_adapters(name)
        sampled.setdefault(name, []).append(_sampled(pipeline, **size))
    first, again = sampled["cat"]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, sampled["dog"][0])


def test_a_file_holds_several_components_and_the_same_bytes_each_time(tmp_path):
    """The digest of an exported adapter is that of its values; its ranks are stated as diffusers states them."""
    factors = {"a.to_q": (torch.ones(2, 4), torch.ones(6, 2)), "a.to_k": (torch.ones(1, 4), torch.ones(6, 1))}
    given = {"unet": factors, "transformer": {"b": (torch.ones(2, 4), torch.ones(6, 2))}}
    contents = {write_lora(tmp_path / str(i), given).read_bytes() for i in range(8)}
    assert len(contents) == 1
    with safe_open(tmp_path / "0" / LORA_FILE, "pt") as file:
        described = json.loads(file.metadata()["lora_adapter_metadata"])
        assert len(list(file.keys())) == 6
        assert file.get_tensor("unet.a.to_k.lora_A.weight").shape == (1, 4)
    assert described["transformer.r"] == described["transformer.lora_alpha"] == 2
    assert described["unet.rank_pattern"] == described["unet.alpha_pattern"]


@pytest.mark.parametrize("components", [(), ("unet",), ("vae",)])
def test_files_that_diffusers_would_not_load_are_not_written(tmp_path, components):
    """An empty file or one of an unknown component is a mistake of the caller, found before anything is written."""
    layers = {"a": (torch.ones(2, 4), torch.ones(6, 2))}
    with pytest.raises(ValueError, match="unet or transformer"):
        write_lora(tmp_path / "wrong", {name: layers if name == "vae" else {} for name in components})
    assert not (tmp_path / "wrong").exists()

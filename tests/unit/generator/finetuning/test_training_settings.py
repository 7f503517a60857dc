"""Settings of a run arrive where they act: at the rows that the network is given, and at the precision it computes in."""

from typing import Any

import pytest
import torch
from stage_jobs import stage_job
from tiny_pipelines import build_tiny_pipeline

from gda.generator.families.latent import LatentUNet
from gda.generator.finetuning.train import finetune_stage


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    """A tiny Stable Diffusion 1."""
    return build_tiny_pipeline("sd1", tmp_path_factory.mktemp("sd1") / "sd1")


def _watched(sd1, work, monkeypatch, **changes):
    """The rows that the network is given in two steps, the types that it answers in, and the result."""
    images = (torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    rows, kinds = [], set()
    real = LatentUNet.loss

    def watch(model, stage, network, prepared, *args, **given):
        def call(*inputs: Any, **named: Any) -> Any:
            output = network(*inputs, **named)
            kinds.add(output.sample.dtype)
            return output

        rows.append(prepared)
        watched: Any = call
        return real(model, stage, watched, prepared, *args, **given)

    with monkeypatch.context() as patch:
        patch.setattr(LatentUNet, "loss", watch)
        result = finetune_stage(stage_job(sd1, work, images, ("a", "b") * 3, steps=2, **changes))
    return torch.cat(rows), kinds, result


def test_horizontal_flip_mirrors_some_of_the_rows(sd1, tmp_path, monkeypatch):
    """With the setting some rows are other ones than without, and some are the same."""
    plain, _, _ = _watched(sd1, tmp_path / "plain", monkeypatch)
    mirrored, _, _ = _watched(sd1, tmp_path / "mirrored", monkeypatch, horizontal_flip=True)
    same = (plain == mirrored).flatten(1).all(1)
    assert same.any()
    assert not same.all()


@pytest.mark.parametrize(("precision", "kind"), [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_network_computes_in_the_precision_requested(sd1, tmp_path, monkeypatch, precision, kind):
    """Passes of the network are in the type that is configured; weights stay float32."""
    _, kinds, result = _watched(sd1, tmp_path, monkeypatch, mixed_precision=precision)
    assert kinds == {kind}
    assert {value.dtype for value in result.weights.values()} == {torch.float32}


def test_gradients_are_clipped_at_their_own_scale(sd1, tmp_path, monkeypatch):
    """Half precision scales the loss up by thousands; the limit on the gradient's norm is for what it is without that."""
    norms: dict[str, list[float]] = {"no": [], "fp16": []}
    clip = torch.nn.utils.clip_grad_norm_
    for precision, found in norms.items():

        def keep(parameters, limit, found=found):
            found.append(float(clip(parameters, limit)))

        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
            _watched(sd1, tmp_path / precision, monkeypatch, mixed_precision=precision)
    assert len(norms["no"]) == 2
    assert norms["fp16"] == pytest.approx(norms["no"], rel=0.05)

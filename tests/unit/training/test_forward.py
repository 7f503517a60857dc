"""Precision and compilation of the training passes: what they change, what they must not change, and how training resumes with them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from together_cases import StoppedError
from torch import nn
from training_world import TINY, coloured

from gda.config.sections import ClassifyConfig
from gda.errors import ConfigError, MissingError
from gda.training.loop.classifier import TrainRecipe, predict_logits, top1, train_classifier
from gda.training.networks.export import model_digest

BF16 = replace(TINY, image_size=32, mixed_precision="bf16", ema_decay=0.9)
COMPILED = replace(TINY, compile=True)


def train(recipe: TrainRecipe = TINY, **rest: object) -> tuple[nn.Module, list[tuple[int, float]]]:
    return train_classifier([coloured(30)], recipe, num_classes=3, seed=0, **rest)  # type: ignore[arg-type]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Compile networks without the code generator, which takes a minute; the training loop gets the same wrapper."""
    by_torch, names = torch.compile, []

    def trace_alone(model: nn.Module, **options: object) -> object:
        names.append(type(model).__name__)
        return by_torch(model, backend="aot_eager", **options)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "compile", trace_alone)
    return names


def test_passes_in_bf16_leave_weights_and_predictions_in_fp32() -> None:
    """The passes differ only by bf16 rounding; all stored tensors and predictions are float32."""
    seen: set[tuple[bool, torch.dtype]] = set()
    plain, losses = train(replace(BF16, mixed_precision="no"))

    def note(module: nn.Module, _: object, out: torch.Tensor) -> None:
        if isinstance(module, nn.Linear) and module.out_features == 3:
            seen.add((module.training, out.dtype))

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        model, rounded = train(BF16)
        logits = predict_logits(model, coloured(6).images, image_size=32)
    finally:
        handle.remove()
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert logits.dtype == torch.float32
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}
    assert model_digest(model) != model_digest(plain)
    assert [loss for _, loss in rounded] == pytest.approx([loss for _, loss in losses], abs=0.05)


@pytest.mark.learning
def test_colours_are_learned_in_bf16() -> None:
    """If colour equals class, bf16 passes still reach accuracy 1.0."""
    unseen = coloured(60, seed=2)
    model, _ = train(replace(BF16, ema_decay=0.0, num_train_steps=60, model_args={"channels": [8, 8, 8, 16], "stem_width": 4}))
    assert top1(predict_logits(model, unseen.images, image_size=32), unseen.labels) == 1.0


@pytest.mark.parametrize("recipe", [BF16, COMPILED], ids=["bf16", "compiled"])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path, traced: list[str], recipe: TrainRecipe) -> None:
    """Precision and compilation keep no state between steps: a resumed training ends in the bits of an uninterrupted one."""

    def stop(update: int, _: float) -> None:
        if update == 8:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(recipe, checkpoint=tmp_path / "c", checkpoint_every=3, progress=stop)
    seen: list[int] = []
    resumed, curve = train(recipe, checkpoint=tmp_path / "c", checkpoint_every=3, progress=lambda step, _: seen.append(step))
    whole, whole_curve = train(recipe)
    assert seen == [7, 8, 9, 10, 11, 12]
    assert model_digest(resumed) == model_digest(whole)
    assert curve == whole_curve


def test_a_compiled_training_gives_a_plain_model(traced: list[str]) -> None:
    """Losses agree up to rounding, and the model has the names and class of an uncompiled one."""
    still = replace(TINY, model_args={"channels": [8, 8, 8, 16], "stem_width": 4})
    plain, losses = train(still)
    assert traced == []
    model, compiled = train(replace(still, compile=True))
    assert traced == ["ResNet"]
    assert type(model) is type(plain)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [loss for _, loss in compiled] == pytest.approx([loss for _, loss in losses], abs=1e-3)


def test_forked_processes_train_after_a_compilation() -> None:
    """This process may train first; it must not leave torch's autograd in a state in which forked processes cannot train."""
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("forking_after_compiling.py"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.usefixtures("no_compiler")
def test_a_machine_without_a_compiler() -> None:
    """Without a compiler, training with compile ends with one line that names the setting."""
    with pytest.raises(
        MissingError, match=r"classify\.compile: the network cannot be compiled here \(.*; train with classify.compile=false"
    ):
        train(replace(COMPILED, num_train_steps=1))


def test_digests_change_only_where_a_setting_does() -> None:
    """Another precision or compilation is another training."""
    request = ClassifyConfig(mixed_precision="bf16", compile=True)
    assert (request.decided()["mixed_precision"], request.decided()["compile"]) == ("bf16", True)
    assert {"mixed_precision": "bf16", "compile": True}.items() <= TrainRecipe.from_config(request, num_train_steps=1).identity().items()


def test_bf16_where_its_gradients_are_wrong_is_refused() -> None:
    """On 16-pixel images the last stage of this network strides over one pixel: torch's gradients there vary each time, even to NaN."""
    with pytest.raises(ConfigError, match=r"classify\.mixed_precision: .* as test_resnet does on images of 16; set it to no, or raise"):
        train(replace(BF16, image_size=16))


def test_compilation_and_auxiliary_batch_norms_are_refused_together() -> None:
    """Compilation fixes the network, and auxiliary batch norms change it between passes."""
    with pytest.raises(ValidationError, match="auxiliary_batch_norm exchanges the batch norms of a network, which compile fixes"):
        ClassifyConfig(compile=True, auxiliary_batch_norm=True)

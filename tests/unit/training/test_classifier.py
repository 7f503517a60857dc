"""The training loop: it learns, resumes bit for bit, and refuses invalid input."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from killing import in_child
from training_world import TINY, coloured, kill_at

from gda.artifacts.cards import ClassifierCard
from gda.config.sections import Arm, ClassifyConfig
from gda.errors import ConfigError, DataError, UsageError
from gda.runtime.parallel import run_parallel
from gda.training.loop.classifier import TrainRecipe, export_classifier, load_classifier, predict_logits, top1, train_classifier
from gda.training.networks.export import model_digest
from gda.training.recipes.augment import Strength


def train(recipe: TrainRecipe = TINY, *, seed: int = 0, **rest: object) -> torch.nn.Module:
    return train_classifier([coloured(30)], recipe, num_classes=3, seed=seed, **rest)[0]  # type: ignore[arg-type]


def digest_for_seed(seed: int) -> str:
    return model_digest(train(seed=seed))


def card() -> ClassifierCard:
    return ClassifierCard(
        arm=Arm.REAL, seed=0, model=TINY.model, image_size=TINY.image_size, classes=("r", "g", "b"), snapshot_digest="0" * 64
    )


@pytest.mark.learning
def test_colours_are_learned() -> None:
    """Colour equals class, so a loop that pairs images with their labels ends at accuracy 1.0 on images it has not seen."""
    recipe = replace(TINY, model_args={"channels": [8, 8, 8, 16], "stem_width": 4}, num_train_steps=60)
    model, curve = train_classifier([coloured(15, 0.5), coloured(15, 0.5, seed=1)], recipe, num_classes=3, seed=0)
    unseen = coloured(60, seed=2)
    assert top1(predict_logits(model, unseen.images, image_size=16), unseen.labels) == 1.0
    assert [update for update, _ in curve] == [10, 20, 30, 40, 50, 60]
    assert curve[-1][1] < curve[0][1]


def test_same_seed_same_bits_in_one_process_or_two() -> None:
    """Weights depend only on the seed, not on parallel processes or earlier random numbers."""
    alone = [digest_for_seed(seed) for seed in (0, 1)]
    torch.manual_seed(1234)
    assert run_parallel(digest_for_seed, [0, 1], workers=2) == alone
    assert alone[0] != alone[1]


def test_training_leaves_the_global_generator_alone() -> None:
    """timm needs torch's global generator; the caller's state must come back untouched."""
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    train(replace(TINY, num_train_steps=2))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("strength", ["standard", "strong"])
def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path, strength: Strength) -> None:
    """kill -9 between checkpoints: the same call continues from the last one and ends in identical weights and curve."""
    recipe = replace(TINY, augment=strength)
    assert in_child(lambda: train(recipe, checkpoint=tmp_path / "c", checkpoint_every=3, progress=kill_at)) == -signal.SIGKILL
    seen: list[int] = []
    sources = [coloured(30)]
    resumed, curve = train_classifier(
        sources, recipe, num_classes=3, seed=0, checkpoint=tmp_path / "c", checkpoint_every=3, progress=lambda step, _: seen.append(step)
    )
    whole, whole_curve = train_classifier(sources, recipe, num_classes=3, seed=0)
    assert seen == [7, 8, 9, 10, 11, 12]
    assert model_digest(resumed) == model_digest(whole)
    assert curve == whole_curve


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """If the newest checkpoint is truncated or has a flipped bit, the run repeats some steps, does not fail, and reports it."""
    whole = train(checkpoint=tmp_path / "c", checkpoint_every=5)
    newest = max((tmp_path / "c").iterdir())
    data = bytearray(newest.read_bytes())
    data[-1000] ^= 1
    newest.write_bytes(bytes(data) if damage == "flip" else bytes(data[:-1]))
    seen: list[int] = []
    again = train(checkpoint=tmp_path / "c", checkpoint_every=5, progress=lambda step, _: seen.append(step))
    assert seen[0] == 6
    assert model_digest(again) == model_digest(whole)
    assert newest.name in caplog.text
    assert "not a whole checkpoint" in caplog.text


def test_a_checkpoint_of_other_work_is_refused(tmp_path: Path) -> None:
    """Resuming with another seed, recipe or other images would give weights that match no recipe."""
    train(checkpoint=tmp_path, checkpoint_every=5)
    with pytest.raises(UsageError, match="belongs to another recipe, seed or data set"):
        train(checkpoint=tmp_path, seed=1)
    with pytest.raises(UsageError, match="belongs to another"):
        train(replace(TINY, learning_rate=1e-3), checkpoint=tmp_path)
    with pytest.raises(UsageError, match="belongs to another"):
        train_classifier([coloured(30, seed=9)], TINY, num_classes=3, seed=0, checkpoint=tmp_path)


def test_a_diverging_loss_stops_the_run() -> None:
    """A loss that is not finite ends training and reports the step, instead of publishing NaN weights."""
    with pytest.raises(DataError, match=r"diverged: the loss is nan at update \d+; lower classify.learning_rate"):
        train(replace(TINY, learning_rate=1e30, warmup_steps=0, num_train_steps=40))


def test_timm_loads_an_exported_classifier_with_equal_logits(tmp_path: Path) -> None:
    """Plain timm loads the directory and computes exactly the logits that gda evaluated; so does gda's own loader."""
    model = train()
    export_classifier(model, tmp_path / "real+synthetic-0", card())
    images = coloured(20, seed=3).images
    expected = predict_logits(model, images, image_size=16)
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'real+synthetic-0'}", pretrained=True)
    assert torch.equal(predict_logits(by_timm, images, image_size=16), expected)
    assert torch.equal(predict_logits(load_classifier(tmp_path / "real+synthetic-0"), images, image_size=16), expected)
    preprocessing = timm.data.resolve_data_config(model=by_timm)
    assert (*preprocessing["input_size"], *preprocessing["mean"], *preprocessing["std"]) == (3, 16, 16, *[0.5] * 6)


def test_a_fixed_size_transformer_trains_and_loads(tmp_path: Path) -> None:
    """Architectures with a fixed input size get the configured size, and keep it through export."""
    recipe = replace(TINY, model="test_vit", model_args={"patch_size": 8}, num_train_steps=2)
    model = train(recipe)
    export_classifier(model, tmp_path, card().model_copy(update={"model": "test_vit"}))
    images = coloured(6).images
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(predict_logits(loaded, images, image_size=16), predict_logits(model, images, image_size=16))


def test_weights_that_are_not_safetensors_are_never_opened(tmp_path: Path) -> None:
    """A pickle next to the configuration, or under the safetensors name, is refused without being read as a pickle."""
    export_classifier(train(replace(TINY, num_train_steps=1)), tmp_path, card())
    weights = tmp_path / "model.safetensors"
    torch.save(load_classifier(tmp_path).state_dict(), tmp_path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(DataError, match=r"pytorch_model\.bin is a pickle, which is never opened"):
        load_classifier(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(weights)
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load_classifier(tmp_path)


def test_unknown_architecture_names_close_matches() -> None:
    """A misspelt architecture gives one line with close matches."""
    with pytest.raises(ConfigError) as caught:
        train(replace(TINY, model="resnet10tt"))
    assert str(caught.value).startswith("classify.model: unknown architecture 'resnet10tt'; did you mean resnet10t")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object"),
        ('{"pretrained": true}', "'pretrained' is set by gda"),
        ('{"num_classes": 3}', "'num_classes' is set by gda"),
    ],
)
def test_model_arguments_are_checked(text: str, message: str) -> None:
    """Arguments that are no JSON object, or would fetch weights or change the classes, are refused by name."""
    with pytest.raises(ConfigError, match=message) as caught:
        TrainRecipe.from_config(ClassifyConfig(model_args_json=text), num_train_steps=1)
    assert "classify.model_args_json" in str(caught.value)


def test_arguments_and_sizes_that_a_model_does_not_take_are_one_line() -> None:
    """timm's exceptions for bad arguments or too small images become a configuration error that names the field."""
    with pytest.raises(ConfigError, match=r"classify\.model_args_json: test_resnet does not take .*no_such"):
        train(replace(TINY, model_args={"no_such": 1}))
    with pytest.raises(ConfigError, match=r"classify\.model: resnet10t with .* does not work on images of 16 pixels .*layer4"):
        train(replace(TINY, model="resnet10t", model_args={"layers": [1, 1, 1], "channels": [8, 8, 8]}))
    with pytest.raises(ConfigError, match=r"classify\.model: test_vit with .* on images of 16 pixels"):
        train(replace(TINY, model="test_vit", model_args={"patch_size": 8, "img_size": 32, "dynamic_img_size": False}))


def test_the_default_arguments_do_not_leak_to_another_model() -> None:
    """With a model name alone, the model has timm's own size, not the demo's narrow defaults."""
    assert ClassifyConfig(model="resnet50").model_args_json == "{}"
    assert ClassifyConfig(model="resnet50", model_args_json='{"drop_rate": 0.1}').model_args_json == '{"drop_rate": 0.1}'
    assert json.loads(ClassifyConfig().model_args_json)


def test_images_of_another_size_are_resized() -> None:
    """Callers with 28-pixel images and a 16-pixel classifier get predictions of resized images, not an error."""
    model = train(replace(TINY, num_train_steps=1))
    flat = torch.full((2, 3, 28, 28), 77, dtype=torch.uint8)
    expected = predict_logits(model, flat[..., :16, :16], image_size=16)
    assert torch.equal(predict_logits(model, flat, image_size=16), expected)

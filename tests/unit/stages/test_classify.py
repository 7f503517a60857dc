"""classify: what each arm is trained on, what is published, and what is left for companion seeds."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from classify_world import CLASSES, verdict_on, write_set
from killing import in_child
from safetensors.torch import load_file

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.document import read_document
from gda.artifacts.outcome import Outcome
from gda.config.arm import ARMS, Arm
from gda.config.load import Config
from gda.config.sections import ClassifyConfig
from gda.data.store.in_memory import ImageSet, load_images
from gda.data.store.snapshot import Snapshot
from gda.data.test_split.ledger import read_ledger
from gda.errors import ConfigError, DataError, UsageError
from gda.io.atomic import work_root
from gda.stages import classify
from gda.training.arms.arm_data import Loaded, load_data
from gda.training.arms.arm_request import make_arm_request
from gda.training.loop.classifier import predict_logits

CONFIG = Config(
    classify=ClassifyConfig(
        model="resnetv2_18",
        model_args_json='{"layers": [1], "channels": [16], "stem_chs": 8}',
        image_size=16,
        num_train_steps=40,
        mixed_num_train_steps=50,
        batch_size=12,
        learning_rate=5e-3,
        warmup_steps=2,
    )
)


@pytest.fixture(autouse=True)
def own_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in its own folder."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return write_set(tmp_path / "real", "real", {"train": 8, "val": 8, "test": 2})


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    return write_set(tmp_path / "synthetic", "synthetic", {"train": 10}, seed=1)


def card_of(outcome: Outcome) -> ClassifierCard:
    return read_document(outcome.output / "classifier.json", ClassifierCard)


@pytest.mark.learning
def test_a_real_arm_is_a_directory_that_timm_loads(real: Path, tmp_path: Path) -> None:
    """Colour equals class, so validation accuracy is 1.0; timm gives back the published logits from the directory alone."""
    out = tmp_path / "classifiers" / "real-0"
    outcome = classify.run(CONFIG, snapshot=real, arm=Arm.REAL, seed=0, out=out)
    card = card_of(outcome)
    assert (card.val_top1, card.num_train_steps, card.classes) == (1.0, 40, ("blue", "green", "red"))
    assert (card.skipped, card.synthetic_digest, card.base_licence) == (None, None, "CC0-1.0")
    assert outcome.digest == card.digest
    assert outcome.metrics["val_top1"] == 1.0
    assert [update for update, _ in outcome.curves["loss"]] == [10, 20, 30, 40]
    assert {path.name for path in out.iterdir()} == {
        "classifier.json", "config.json", "model.safetensors", "fingerprint.json", "val_predictions.safetensors"
    }  # fmt: skip
    published = load_file(out / "val_predictions.safetensors")
    assert published["logits"].shape == (24, 3)
    assert (published["logits"].dtype, published["labels"].dtype) == (torch.float32, torch.int64)
    assert torch.equal(published["logits"].argmax(dim=1), published["labels"])

    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    images = load_images(Snapshot.open(real), "val", size=16).images
    assert torch.equal(predict_logits(model, images, image_size=16), published["logits"])


@pytest.mark.parametrize("arm", [Arm.REAL, Arm.REAL_LONG, Arm.REAL_STRONG])
def test_real_arms_never_open_synthetic_data(real: Path, tmp_path: Path, arm: Arm) -> None:
    """A real arm gives the same bits with no synthetic set, or with paths to nonsense: it depends on the real snapshot alone."""
    plain = classify.run(CONFIG, snapshot=real, arm=arm, seed=0, out=tmp_path / "a")
    nonsense = {"synthetic": tmp_path / "nowhere", "verdict": tmp_path / "nothing.json"}
    outcome = classify.run(CONFIG, snapshot=real, arm=arm, seed=0, out=tmp_path / "b", **nonsense)  # type: ignore[arg-type]
    assert outcome.digest == plain.digest
    assert card_of(outcome).synthetic_digest is None
    assert card_of(outcome).num_train_steps == (40 if arm is Arm.REAL else 50)


def test_the_test_split_is_never_opened(real: Path, tmp_path: Path) -> None:
    """Training and choosing must not see test images: with their shard reduced to rubbish nothing changes, and no ledger appears."""
    before = classify.run(CONFIG, snapshot=real, arm=Arm.REAL, seed=0, out=tmp_path / "a")
    (real / "test-000000.tar").write_bytes(b"rubbish")
    shutil.rmtree(tmp_path / "a")
    load_data.cache_clear()
    after = classify.run(CONFIG, snapshot=real, arm=Arm.REAL, seed=0, out=tmp_path / "a")
    assert (after.digest, after.reused) == (before.digest, False)
    assert read_ledger() == []


def test_each_arm_is_trained_on_its_own_images(synthetic: Path, tmp_path: Path) -> None:
    """With the real training images all mislabelled, the real arm gets every validation image wrong and the synthetic arm none."""
    real = write_set(tmp_path / "mislabelled", "real", {"train": 8, "val": 8}, mislabelled=("train",))
    verdict = verdict_on(real, synthetic, tmp_path / "verdict.json")
    top1 = {}
    for arm in (Arm.REAL, Arm.SYNTHETIC, Arm.MIXED):
        outcome = classify.run(CONFIG, snapshot=real, arm=arm, seed=0, out=tmp_path / f"{arm}-0", synthetic=synthetic, verdict=verdict)
        card = card_of(outcome)
        assert card.num_train_steps == (50 if arm is Arm.MIXED else 40)
        assert (card.synthetic_digest is None) == (arm is Arm.REAL)
        top1[arm] = card.val_top1
    assert (top1[Arm.REAL], top1[Arm.SYNTHETIC]) == (0.0, 1.0)


def test_classes_of_both_sets_must_agree(real: Path, tmp_path: Path) -> None:
    """Labels are positions: a synthetic set with its classes in another order would train every image wrong."""
    turned = write_set(tmp_path / "turned", "synthetic", {"train": 2}, classes=tuple(CLASSES[i] for i in (1, 2, 0)))
    fewer = write_set(tmp_path / "fewer", "synthetic", {"train": 2}, classes=CLASSES[:2])
    with pytest.raises(DataError, match=r"not those of .*another order"):
        classify.run(CONFIG, snapshot=real, arm=Arm.ZERO_SHOT, seed=0, out=tmp_path / "z", synthetic=turned)
    with pytest.raises(DataError, match=r"not those of .*'red'"):
        classify.run(CONFIG, snapshot=real, arm=Arm.ZERO_SHOT, seed=0, out=tmp_path / "z", synthetic=fewer)


def test_the_mixed_batch_follows_the_ratio() -> None:
    """`classify.ratio` is synthetic to real: 3 means a quarter of every batch is real, and a lone source fills it."""
    images = ImageSet(
        images=torch.zeros(2, 3, 4, 4, dtype=torch.uint8), labels=torch.zeros(2, dtype=torch.int64), keys=("a", "b"), classes=("x",)
    )
    mixed = Loaded(real=images, others=images, kept=1.0, val=images, synthetic=True)
    assert [source.share for source in mixed.sources(3.0)] == [0.25, 0.75]
    assert [source.share for source in Loaded(real=images, others=images, kept=1 / 3, val=images, synthetic=True).sources(3.0)] == [
        0.5,
        0.5,
    ]
    assert [source.share for source in Loaded(real=None, others=images, kept=1.0, val=images, synthetic=True).sources(3.0)] == [1.0]


@pytest.mark.parametrize("arm", [Arm.SYNTHETIC, Arm.MIXED])
def test_a_refused_set_makes_a_skipped_card(real: Path, synthetic: Path, tmp_path: Path, arm: Arm) -> None:
    """A refusal is a result: the gated arms publish a card with the verdict's reasons, no weights, and say so again when re-run."""
    verdict = verdict_on(real, synthetic, tmp_path / "verdict.json", reasons=("FID 99 is above its limit of 6.",))
    for reused in (False, True):
        outcome = classify.run(CONFIG, snapshot=real, arm=arm, seed=0, out=tmp_path / "out", synthetic=synthetic, verdict=verdict)
        assert (outcome.refused, outcome.reused) == (True, reused)
    card = card_of(outcome)
    assert card.skipped == "because the synthetic set was refused: FID 99 is above its limit of 6."
    assert (card.num_train_steps, card.val_top1, len(card.digest)) == (0, None, 64)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"classifier.json", "fingerprint.json"}


def test_zero_shot_bypasses_the_gate(real: Path, synthetic: Path, tmp_path: Path) -> None:
    """The control is trained whatever the verdict says, and without one."""
    outcome = classify.run(CONFIG, snapshot=real, arm=Arm.ZERO_SHOT, seed=0, out=tmp_path / "out", synthetic=synthetic)
    assert card_of(outcome).skipped is None
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_gated_arms_fail_closed(real: Path, synthetic: Path, tmp_path: Path) -> None:
    """Without a verdict, or with one about other data, nothing is trained on a synthetic set."""
    with pytest.raises(UsageError, match=r"needs the verdict.*--verdict"):
        classify.run(CONFIG, snapshot=real, arm=Arm.MIXED, seed=0, out=tmp_path / "out", synthetic=synthetic)
    with pytest.raises(UsageError, match="--synthetic"):
        classify.run(CONFIG, snapshot=real, arm=Arm.MIXED, seed=0, out=tmp_path / "out")
    verdict = verdict_on(real, synthetic, tmp_path / "verdict.json")
    another = write_set(tmp_path / "another", "synthetic", {"train": 3}, seed=5)
    with pytest.raises(DataError, match="about the synthetic snapshot"):
        classify.run(CONFIG, snapshot=real, arm=Arm.MIXED, seed=0, out=tmp_path / "out", synthetic=another, verdict=verdict)
    other_real = write_set(tmp_path / "other", "real", {"train": 3, "val": 3}, seed=5)
    with pytest.raises(DataError, match="about the real snapshot"):
        classify.run(CONFIG, snapshot=other_real, arm=Arm.MIXED, seed=0, out=tmp_path / "out", synthetic=synthetic, verdict=verdict)
    with pytest.raises(DataError, match="a real snapshot where a synthetic one is needed"):
        classify.run(CONFIG, snapshot=real, arm=Arm.ZERO_SHOT, seed=0, out=tmp_path / "out", synthetic=real)
    assert not (tmp_path / "out").exists()


def test_companion_seeds_wait_for_their_own_commands(real: Path, tmp_path: Path) -> None:
    """The first command trains all seeds side by side; the others find its own finished, with the bits they would have got alone."""
    first = classify.run(CONFIG, snapshot=real, arm=Arm.REAL, seed=0, out=tmp_path / "c" / "real-0", with_seeds=(0, 1, 2))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["real-0"]
    waiting = sorted((work_root() / "work").iterdir())
    assert [(folder / "done.json").exists() for folder in waiting] == [True, True]
    second = classify.run(CONFIG, snapshot=real, arm=Arm.REAL, seed=1, out=tmp_path / "c" / "real-1", with_seeds=(0, 1, 2))
    assert sum(folder.exists() for folder in waiting) == 1
    alone = classify.run(CONFIG, snapshot=real, arm=Arm.REAL, seed=1, out=tmp_path / "alone")
    assert second.digest == alone.digest != first.digest
    assert second.curves == alone.curves


def test_companions_that_are_published_are_not_trained_again(real: Path, tmp_path: Path) -> None:
    """Re-running one deleted seed costs one training, not one for every seed of the arm."""
    for seed in (0, 1):
        classify.run(CONFIG, snapshot=real, arm=Arm.REAL, seed=seed, out=tmp_path / "c" / f"real-{seed}", with_seeds=(0, 1))
    shutil.rmtree(tmp_path / "c" / "real-0")
    classify.run(CONFIG, snapshot=real, arm=Arm.REAL, seed=0, out=tmp_path / "c" / "real-0", with_seeds=(0, 1))
    assert list((work_root() / "work").iterdir()) == []


def test_a_killed_command_continues_and_publishes_the_same(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 while training: nothing is published; the same command then ends with the digest of an uninterrupted one."""
    monkeypatch.setattr(classify, "CHECKPOINT_EVERY", 9)
    whole = classify.run(CONFIG, snapshot=real, arm=Arm.REAL, seed=0, out=tmp_path / "whole")

    def killed() -> None:
        classify.tick = _kill_after_checkpoint  # type: ignore[assignment]
        classify.run(CONFIG, snapshot=real, arm=Arm.REAL, seed=0, out=tmp_path / "out")

    assert in_child(killed) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    again = classify.run(CONFIG, snapshot=real, arm=Arm.REAL, seed=0, out=tmp_path / "out")
    assert (again.digest, again.reused) == (whole.digest, False)


def _kill_after_checkpoint(**_: object) -> None:
    if list((work_root() / "work").glob("*/checkpoint/*.safetensors")):
        os.kill(os.getpid(), signal.SIGKILL)


def test_publishing_finished_work_imports_no_torch(real: Path, tmp_path: Path) -> None:
    """A pipeline runs one command a seed: those whose work is done must not pay for importing torch, timm or pandas."""
    classify.run(CONFIG, snapshot=real, arm=Arm.REAL, seed=0, out=tmp_path / "real-0", with_seeds=(1,))
    program = """
import sys
from pathlib import Path
from gda.config.load import Config
from gda.config.arm import Arm
from gda.stages import classify
config = Config.model_validate_json(sys.argv[1])
outcome = classify.run(config, snapshot=Path(sys.argv[2]), arm=Arm.REAL, seed=1, out=Path(sys.argv[3]), with_seeds=(0, 1))
assert not outcome.reused
print(sorted({"torch", "timm", "pandas"} & sys.modules.keys()))
"""
    arguments = [CONFIG.model_dump_json(by_alias=True), str(real), str(tmp_path / "real-1")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    assert card_of(Outcome(output=tmp_path / "real-1", digest="", summary="")).seed == 1


def test_a_configuration_error_from_a_worker_is_one_line(real: Path, tmp_path: Path) -> None:
    """An unknown architecture reaches the user as a configuration error also when it is found in a worker process."""
    config = CONFIG.model_copy(update={"classify": CONFIG.classify.model_copy(update={"model": "test_resnett"})})
    with pytest.raises(ConfigError, match=r"^classify\.model: unknown architecture 'test_resnett'; did you mean test_resnet"):
        classify.run(config, snapshot=real, arm=Arm.REAL, seed=0, out=tmp_path / "out", with_seeds=(0, 1))
    assert not (tmp_path / "out").exists()


def test_the_fingerprint_holds_only_what_matters(real: Path, synthetic: Path, tmp_path: Path) -> None:
    """The mixing ratio changes the identity of arms that mix and no other's, and so on; lists of seeds and of arms change none."""
    verdict = verdict_on(real, synthetic, tmp_path / "verdict.json")
    pool = write_set(tmp_path / "pool", "real", {"train": 2}, seed=3, pool_of=real)

    def digest(arm: Arm, **changes: object) -> str:
        config = CONFIG.classify.model_copy(update={"target_classes": ("red",)} | changes)
        return make_arm_request(config, arm, real, synthetic, verdict, pool=pool).fingerprint(0).digest

    assert digest(Arm.REAL) == digest(Arm.REAL, ratio=2.0, mixed_num_train_steps=7, seeds=(1, 2))
    assert digest(Arm.MIXED) == digest(Arm.MIXED, num_train_steps=7)
    assert digest(Arm.MIXED) != digest(Arm.MIXED, ratio=2.0)
    assert digest(Arm.REAL) != digest(Arm.REAL, num_train_steps=7)
    for field, value, concerned in (
        ("ratio", 2.0, {arm for arm in ARMS if arm.data.mixes}),
        ("mixed_num_train_steps", 77, {arm for arm in ARMS if arm.long}),
        ("target_classes", ("blue",), {Arm.TARGETED, Arm("targeted_strong")}),
        ("last_layer_num_train_steps", 7, {Arm.LAST_LAYER, Arm("last_layer_strong")}),
        ("last_layer_learning_rate", 0.5, {Arm.LAST_LAYER, Arm("last_layer_strong")}),
        ("arms", (Arm.REAL,), set()),
        ("control_seeds", (9,), set()),
    ):
        assert {arm for arm in ARMS if digest(arm) != digest(arm, **{field: value})} == concerned, field
    assert len({digest(arm) for arm in ARMS}) == len(ARMS)

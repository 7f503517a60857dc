"""Arms as pairs of images and training: what is trained, the command for all seeds of an arm, and the digests that DVC compares."""

import json
import shutil
from pathlib import Path

import pytest
from classify_world import verdict_on, write_set

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.document import read_document
from gda.cli import main as cli
from gda.config.arm import ARMS, Arm
from gda.config.classify import TWO_ORIGINS
from gda.config.load import Config
from gda.config.sections import ClassifyConfig
from gda.io.skipped_arms import publish_skipped
from gda.stages import classify
from gda.training.arms.arm_request import make_arm_request

SETTINGS = {
    "model": "resnetv2_18",
    "model_args_json": '{"layers": [1], "channels": [16], "stem_chs": 8}',
    "image_size": 16,
    "num_train_steps": 6,
    "mixed_num_train_steps": 9,
    "batch_size": 12,
    "warmup_steps": 1,
    "seeds": [0, 1],
    "control_seeds": [4],
    "arms": ["real", "real_strong", "real+synthetic_strong", "real+zero_shot_strong", "retrieved"],
}


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real, synthetic and zero-shot images, a verdict and parameters, in the folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    real = write_set(tmp_path / "real", "real", {"train": 8, "val": 8})
    synthetic = write_set(tmp_path / "synthetic", "synthetic", {"train": 10}, seed=1)
    write_set(tmp_path / "zero_shot", "synthetic", {"train": 10}, seed=2)
    write_set(tmp_path / "pool", "real", {"train": 4}, seed=3, pool_of=real)
    verdict_on(real, synthetic, tmp_path / "verdict.json")
    (tmp_path / "params.yaml").write_text(json.dumps({"classify": SETTINGS, "promote": {"arm": "real+synthetic_strong"}}))
    return tmp_path


def card_at(folder: str) -> ClassifierCard:
    return read_document(Path(folder) / "classifier.json", ClassifierCard)


EVERYTHING = ["--snapshot", "real", "--synthetic", "synthetic", "--zero-shot", "zero_shot", "--pool", "pool", "--verdict", "verdict.json"]


def trained(arm: str, *words: str, out: str = "") -> int:
    return cli.main(["classify", *EVERYTHING, "--arm", arm, "--out", out or f"c/{arm}", *words])


def test_without_a_seed_every_seed_of_the_arm_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    """One command for an arm, a folder and a closing line per seed; controls have its own, and what is there is not made again."""
    assert trained("real+synthetic_strong", "--json") == 0
    assert trained("real+zero_shot_strong", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["output"] for line in lines] == ["c/real+synthetic_strong/0", "c/real+synthetic_strong/1", "c/real+zero_shot_strong/4"]
    assert [(card_at(line["output"]).arm, card_at(line["output"]).seed) for line in lines] == [
        (Arm.MIXED_STRONG, 0),
        (Arm.MIXED_STRONG, 1),
        (Arm("real+zero_shot_strong"), 4),
    ]
    assert trained("real+synthetic_strong", "--json") == 0
    assert [json.loads(line)["reused"] for line in capsys.readouterr().out.splitlines()] == [True, True]


def test_all_at_once_are_the_classifiers_of_one_by_one() -> None:
    """Protects what a seed means: trained next to others or alone, it is the same classifier."""
    assert trained("real_strong") == 0
    assert trained("real_strong", "--seed", "1", out="alone") == 0
    assert card_at("c/real_strong/1").digest == card_at("alone").digest != card_at("c/real_strong/0").digest


def test_each_arm_reads_its_own_set_of_all_that_are_given(world: Path) -> None:
    """Protects against images of one kind in the arm of another: each card names the set that its arm's data say."""
    known = {name: json.loads((world / name / "snapshot.json").read_text())["digest"] for name in ("synthetic", "zero_shot", "pool")}
    for arm, synthetic, pool in (
        ("real", None, None),
        ("real+synthetic_strong", "synthetic", None),
        ("real+zero_shot", "zero_shot", None),
        ("retrieved_strong", None, "pool"),
    ):
        assert trained(arm, "--seed", "0", "--set", f"classify.arms={json.dumps(sorted({'real', arm}))}", "--set", "promote.arm=real") == 0
        card = card_at(f"c/{arm}")
        assert (card.synthetic_digest, card.pool_digest) == (known.get(synthetic or ""), known.get(pool or ""))


def test_pairs_differ_in_what_their_names_say_alone(world: Path) -> None:
    """Protects equal updates, and strong augmentation in both arms of a pair: only the images differ."""
    config = ClassifyConfig.model_validate(SETTINGS | {"arms": ("real",), "seeds": (0, 1), "control_seeds": (4,)})
    sets = {"pool": world / "pool"}

    def fingerprint(arm: Arm) -> dict:
        own = {"zero_shot": "zero_shot"}.get(arm.data.others, "synthetic")
        return dict(make_arm_request(config, arm, world / "real", world / own, world / "verdict.json", **sets).fingerprint(0).config)

    strong, mixed = fingerprint(Arm.REAL_STRONG), fingerprint(Arm.MIXED_STRONG)
    images_alone = {"arm", "ratio", *TWO_ORIGINS}
    assert {name for name in strong.keys() | mixed.keys() if strong.get(name) != mixed.get(name)} == images_alone
    plain, both = fingerprint(Arm.MIXED), fingerprint(Arm.MIXED_STRONG)
    assert {name for name in plain.keys() | both.keys() if plain.get(name) != both.get(name)} == {"arm", "augment"}
    for arm in (arm for arm in ARMS if not arm.data.targeted):  # every pair without a reference
        assert fingerprint(arm)["num_train_steps"] == (9 if arm.long else 6), arm
        assert fingerprint(arm)["augment"] == ("strong" if arm.training == "strong" else "standard"), arm


def test_a_refused_set_stops_every_training_on_it_and_no_other(world: Path) -> None:
    """Protects the gate under every name: strong augmentation is no way around a verdict."""
    verdict_on(world / "real", world / "synthetic", world / "verdict.json", reasons=("FID is 9",))
    for arm in ("synthetic_strong", "real+synthetic_strong", "last_layer_strong"):
        assert trained(arm, "--seed", "0", "--set", f"classify.arms={json.dumps(sorted({'real', arm}))}", "--set", "promote.arm=real") == 0
        assert (card_at(f"c/{arm}").skipped or "").startswith("because the synthetic set was refused")
    assert trained("real+zero_shot", "--seed", "0") == 0
    assert card_at("c/real+zero_shot").skipped is None


def test_the_head_of_a_strong_arm_starts_from_the_strong_mixture(world: Path) -> None:
    """Protects `last_layer_strong` from the classifier of another training."""
    given = {"snapshot": world / "real", "synthetic": world / "synthetic", "verdict": world / "verdict.json"}
    changes = {"arms": ("real", "real+synthetic"), "seeds": (0,), "control_seeds": (0,)}
    config = Config(classify=ClassifyConfig.model_validate(SETTINGS | changes))
    for arm in ("real+synthetic", "real+synthetic_strong"):
        classify.run(config, arm=Arm(arm), seed=0, out=world / "c" / f"{arm}-0", **given)
    next_to = classify.run(config, arm=Arm("last_layer_strong"), seed=0, out=world / "c" / "last_layer_strong-0", **given)
    alone = classify.run(config, arm=Arm("last_layer_strong"), seed=0, out=world / "d" / "last_layer_strong-0", **given)
    assert next_to.digest == alone.digest


def test_a_wrong_arm_is_reported_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is none ends with exit code 2, and the names that there are."""
    with pytest.raises(SystemExit) as ended:
        trained("rael", "--seed", "0")
    assert ended.value.code == 2
    assert "no such arm 'rael'; accepted: real, retrieved" in capsys.readouterr().err
    assert trained("real_weak", "--seed", "0") == 2
    assert "arm real_weak: classify.trainings names no 'weak'; accepted: long, strong" in capsys.readouterr().err


def test_two_architectures_are_trained_in_one_run(world: Path) -> None:
    """Each arm is trained as its name says, with equal updates, and is another piece of work for another setting of its training."""
    trainings = {"vit": {"model": "test_vit", "model_args_json": '{"patch_size": 8}', "augment": "strong"}}
    content = json.loads((world / "params.yaml").read_text())
    content["classify"] |= {"trainings": trainings, "arms": ["real", "real_strong", "real_vit", "real+synthetic_vit", "last_layer_vit"]}
    content["promote"] = {"arm": "real+synthetic_vit"}
    (world / "params.yaml").write_text(json.dumps(content))
    for arm in ("real_strong", "real_vit", "real+synthetic_vit", "last_layer_vit"):
        assert trained(arm, "--seed", "0") == 0
    cards = {arm: card_at(f"c/{arm}") for arm in ("real_strong", "real_vit", "real+synthetic_vit", "last_layer_vit")}
    assert [card.model for card in cards.values()] == ["resnetv2_18", "test_vit", "test_vit", "test_vit"]
    assert {arm: card.num_train_steps for arm, card in cards.items()} == dict.fromkeys(cards, 9) | {"last_layer_vit": 109}
    fingerprints = {arm: json.loads(Path(f"c/{arm}/fingerprint.json").read_text())["config"] for arm in cards}
    assert {fingerprint["augment"] for fingerprint in fingerprints.values()} == {"strong"}
    settings = json.dumps(trainings | {"vit": trainings["vit"] | {"augment": "standard"}})
    assert trained("real_vit", "--seed", "0", "--set", f"classify.trainings={settings}", out="other") == 0
    assert card_at("other").digest != cards["real_vit"].digest
    assert trained("real_strong", "--seed", "0", "--set", f"classify.trainings={settings}", out="same") == 0
    assert card_at("same").digest == cards["real_strong"].digest


def digests(*words: str) -> int:
    sets = [word for word in EVERYTHING if word not in ("--snapshot", "real")]
    return cli.main(["arms", *sets, "--quiet", "--out", "digests", *words])


def test_a_change_reaches_the_arms_that_read_it_alone(world: Path) -> None:
    """Protects `dvc repro` from training real arms again for new synthetic images, and from keeping arms whose images changed."""
    assert digests() == 0
    files = {path.name: path for path in (world / "digests").iterdir()}
    assert sorted(files) == sorted(f"{arm}.json" for arm in SETTINGS["arms"])
    before = {name: (path.read_bytes(), path.stat().st_mtime_ns) for name, path in files.items()}
    shutil.rmtree(world / "synthetic")
    write_set(world / "synthetic", "synthetic", {"train": 10}, seed=9)
    assert digests() == 0
    changed = {name for name, path in files.items() if path.read_bytes() != before[name][0]}
    assert changed == {"real+synthetic_strong.json"}
    assert {name for name, path in files.items() if path.stat().st_mtime_ns != before[name][1]} == changed
    (world / "verdict.json").write_bytes((world / "verdict.json").read_bytes() + b"\n")
    was = files["real+synthetic_strong.json"].read_bytes()
    assert digests() == 0
    assert files["real+synthetic_strong.json"].read_bytes() != was
    shutil.rmtree(world / "pool")
    publish_skipped("snapshot", world / "pool", "because snapshot.pool is null")
    assert digests() == 0
    assert json.loads(files["retrieved.json"].read_text()) == {"pool": {"skipped": "because snapshot.pool is null"}}
    assert json.loads(files["real.json"].read_text()) == {}


@pytest.mark.parametrize(("lost", "code", "message"), [("synthetic", 3, "synthetic is not there"), ("", 2, "arm img2img needs --img2img")])
def test_what_an_arm_lacks_is_reported(world: Path, capsys: pytest.CaptureFixture[str], lost: str, code: int, message: str) -> None:
    """Exit code and one line, before any classifier is trained."""
    if lost:
        shutil.rmtree(world / lost)
    more = [] if lost else ["--set", "classify.arms=[real, real+synthetic_strong, img2img]"]
    assert digests(*more) == code
    assert message in capsys.readouterr().err

"""`gda verify` and the loaders of every stage refuse weights that are not those of their card, and take sound ones."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.document import dump_document
from gda.artifacts.fingerprint import Fingerprint
from gda.artifacts.verdict import Measure, Verdict
from gda.cli import main as cli
from gda.errors import DataError
from gda.generator.finetuning.checkpoints import Checkpoints, TrainingState
from gda.generator.weights.directory import DEMO_BASE, read_card, resolve
from gda.io.atomic import write_bytes
from gda.io.publish import publish
from gda.io.up_to_date import prepare
from gda.training.networks.export import export_classifier, load_classifier, open_classifier

DENOISER = "base/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def flip(path: Path, at: float = 0.6) -> None:
    """One bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 16
    path.write_bytes(bytes(data))


def classifier(out: Path, seed: int, *, stage: str = "classify") -> Path:
    """A published classifier of untrained weights."""
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=2, pretrained_cfg_overlay={"mean": (0.5,) * 3, "std": (0.5,) * 3})
    card = ClassifierCard(
        arm="real", seed=seed, model="test_resnet", image_size=16, classes=("a", "b"), snapshot_digest="5" * 64, val_top1=1.0
    )
    workspace = prepare(Fingerprint(stage=stage, config={"seed": seed}, inputs={"snapshot": "5" * 64}), out)
    export_classifier(model, workspace.staging, card.model_copy(update={"digest": f"{seed}" * 64}))
    return publish(workspace)


def generator(out: Path) -> Path:
    """The demo base as a folder of its own, with its card and without a list of files."""
    shutil.copytree(resolve(DEMO_BASE), out)
    return out


def verify(path: Path, capsys, code: int) -> str:
    """What `gda verify` says, given that it exits with `code`."""
    assert cli.main(["verify", str(path)]) == code
    message = capsys.readouterr()
    return message.out + message.err


def test_sound_outputs_are_whole(tmp_path, capsys):
    """The healthy twins: verify names the kind and exits 0, loaders load."""
    found = classifier(tmp_path / "c", 0)
    assert "is whole (classifier)" in verify(found, capsys, 0)
    load_classifier(found)
    assert "is whole (generator)" in verify(generator(tmp_path / "g"), capsys, 0)
    assert read_card(str(tmp_path / "g")).family == "pixel_cascade"


def test_swapped_weights_of_classifiers_are_refused(tmp_path, capsys):
    """Weights exchanged between two sound classifiers are found, with the list of files and without it."""
    one, two = classifier(tmp_path / "one", 1), classifier(tmp_path / "two", 2)
    weights = [path / "model.safetensors" for path in (one, two)]
    swapped = [path.read_bytes() for path in weights][::-1]
    for path, data in zip(weights, swapped, strict=True):
        path.write_bytes(data)
    assert "one/model.safetensors: damaged or exchanged" in verify(one, capsys, 3)
    for load in (open_classifier, load_classifier):
        with pytest.raises(DataError, match=r"model\.safetensors: damaged or exchanged"):
            load(one)
    (two / "fingerprint.json").unlink()
    assert "model.safetensors: is not the weights" in verify(two, capsys, 3)
    with pytest.raises(DataError, match="holds weights"):
        load_classifier(two)


@pytest.mark.parametrize("name", ["config.json", "classifier.json", "model.safetensors"])
def test_every_file_of_a_classifier_is_looked_at(tmp_path, capsys, name):
    """A card or configuration that was edited is as bad as damaged weights; export takes neither."""
    path = classifier(tmp_path / "c", 0)
    text = path / name
    text.write_bytes(text.read_bytes().replace(b"0.5", b"0.6", 1)) if name != "model.safetensors" else flip(text)
    assert f"{name}: damaged or exchanged" in verify(path, capsys, 3)
    with pytest.raises(DataError, match=f"{name}: damaged or exchanged"):
        load_classifier(path)


def _edit_digest(path: Path) -> None:
    card = json.loads((path / "generator.json").read_text())
    (path / "generator.json").write_text(json.dumps(card | {"digest": "0" * 64}))


@pytest.mark.parametrize("damage", [lambda path: flip(path / DENOISER), _edit_digest], ids=["weights flipped", "digest edited"])
def test_generators_without_a_list_are_reckoned_again(tmp_path, capsys, damage):
    """A generator that came from elsewhere is compared with the digest in its card, also when this process has read it before."""
    path = generator(tmp_path / "g")
    read_card(str(path))
    damage(path)
    assert "generator.json is the card of" in verify(path, capsys, 3)
    with pytest.raises(DataError, match=r"generator\.json is the card of"):
        read_card(str(path))


def test_published_generators_are_compared_file_by_file(tmp_path, capsys):
    """Of a generator that we wrote every file counts, its card's prompts too."""
    workspace = prepare(Fingerprint(stage="finetune", config={}), tmp_path / "g")
    shutil.copytree(resolve(DEMO_BASE), workspace.staging, dirs_exist_ok=True)
    path = publish(workspace)
    read_card(str(path))
    assert "is whole" in verify(path, capsys, 0)
    flip(path / DENOISER)
    assert DENOISER in verify(path, capsys, 3)
    with pytest.raises(DataError, match="damaged or exchanged"):
        read_card(str(path))


def test_verdicts_are_verified(tmp_path, capsys):
    """A refusal that was edited into a pass is found; a verdict without a list is not called whole."""
    verdict = Verdict(passed=False, reasons=("no",), metrics={"fid": Measure(value=1.0)}, synthetic_digest="1" * 64, real_digest="2" * 64)
    workspace = prepare(Fingerprint(stage="validate", config={}), tmp_path / "v")
    write_bytes(workspace.staging / "verdict.json", dump_document(verdict))
    path = publish(workspace)
    assert "is whole (validation)" in verify(path, capsys, 0)
    (path / "verdict.json").write_bytes(dump_document(verdict.model_copy(update={"passed": True})))
    assert "verdict.json: damaged or exchanged" in verify(path, capsys, 3)
    (path / "fingerprint.json").unlink()
    assert "verdict.json: no fingerprint.json lists it" in verify(path, capsys, 3)


def test_a_folder_of_nothing_known_is_not_called_whole(tmp_path, capsys):
    """verify never says more than it looked at."""
    (tmp_path / "x").mkdir()
    assert "nothing states what they should be" in verify(tmp_path / "x", capsys, 3)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_an_edited_checkpoint_is_passed_over(tmp_path, name):
    """The one before is used and the damage is reported; unedited, the newest is used without a word."""
    checkpoints = Checkpoints(tmp_path / "work", limit=2)
    for step in (2, 4):
        checkpoints.save(TrainingState(step=step, tensors={"a": torch.full((3,), float(step))}, losses=(0.5,) * step, extra={"scores": []}))
    newest, notes = checkpoints.load_newest()
    assert (newest.step, notes) == (4, [])
    path = tmp_path / "work/checkpoint-00000004" / name
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.1", 1)) if name == "state.json" else flip(path, 0.99)
    older, notes = checkpoints.load_newest()
    assert older.step == 2
    assert f"{name}: checksum differs" in notes[0]

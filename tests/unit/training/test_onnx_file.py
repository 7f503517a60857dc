"""ONNX files of classifiers: equal outputs in timm, MLflow and ONNX Runtime, and no file if they differ."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.document import dump_document, read_document
from gda.cli import main as cli
from gda.config.sections import Arm
from gda.errors import DataError, UsageError
from gda.registry import served
from gda.training.loop.classifier import export_classifier, load_classifier, predict_logits
from gda.training.networks.models import build_model
from gda.training.onnx_file import OPSET, TOLERANCE, build_onnx, check_onnx, export_onnx

CLASSES = ("ankle boot", "bag", "coat", "größe", "shirt")


@dataclass(frozen=True)
class Architecture:
    name: str
    size: int  # pixels
    args: Mapping[str, Any]


SMALL = Architecture("test_resnet", 16, {"channels": [8, 8, 8, 16], "stem_width": 4})
ARCHITECTURES = (
    Architecture("resnet10t", 28, {}),
    Architecture("vit_tiny_patch16_224", 32, {"patch_size": 8, "depth": 4}),
    Architecture("convnext_atto", 32, {}),
    Architecture("test_efficientnet", 28, {}),
)


def pixels(count: int, size: int, *, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def publish_classifier(folder: Path, architecture: Architecture, **card: object) -> Path:
    """A classifier directory whose logits spread over units and classes.

    Freshly initialised networks predict one class for any input, with logits near zero, and their residual branches are switched off.
    This function therefore samples scales and shifts, collects batch statistics, and spreads the rows of the last layer.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        model = build_model(architecture.name, architecture.args, num_classes=len(CLASSES), image_size=architecture.size)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                _ = parameter.normal_(0, 0.1) if name.endswith("bias") else parameter.uniform_(0.5, 1.5)
        model.train()
        for seed in range(8):
            model(pixels(16, architecture.size, seed=seed).float() / 127.5 - 1)
        model.eval()
        logits = predict_logits(model, pixels(64, architecture.size, seed=100), image_size=architecture.size)
        head = model.get_classifier()
        head.bias -= logits.mean(dim=0)
        head.weight *= (2 / logits.std(dim=0)).unsqueeze(1)
        head.bias *= 2 / logits.std(dim=0)
    fields = {"arm": Arm.MIXED, "seed": 3, "snapshot_digest": "0" * 64, "digest": "a" * 64, "base_licence": "apache-2.0"}
    fields |= {"model": architecture.name, "image_size": architecture.size, "classes": CLASSES}
    export_classifier(model, folder, ClassifierCard(**fields | card))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_classifier(tmp_path_factory.mktemp("small") / "classifier", SMALL)


@pytest.fixture(scope="module")
def small_file(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("file") / "small.onnx"
    export_onnx(small, out)
    return out


def card_of(folder: Path) -> ClassifierCard:
    return ClassifierCard.model_validate_json((folder / "classifier.json").read_bytes())


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_timm_mlflow_and_onnx_runtime_agree(architecture: Architecture, tmp_path: Path) -> None:
    """Protects anyone who deploys: from one directory, three runtimes give equal outputs for batches of one, few and many."""
    folder = publish_classifier(tmp_path / "classifier", architecture)
    export_onnx(folder, tmp_path / "classifier.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "classifier.onnx", providers=["CPUExecutionProvider"])
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mlflow.pyfunc.save_model(
        str(tmp_path / "mlflow"), python_model=served.__file__, artifacts={"classifier": str(folder)}, pip_requirements=["timm"]
    )
    by_mlflow = mlflow.pyfunc.load_model(str(tmp_path / "mlflow"))
    answers = set()
    for count in (1, 3, 17):
        images = pixels(count, architecture.size, seed=200 + count)
        with torch.no_grad():
            expected = by_timm(images / 127.5 - 1).numpy()
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        assert logits.dtype == np.float32
        assert logits.shape == (count, len(CLASSES))
        np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))
        probabilities = by_mlflow.predict(images.permute(0, 2, 3, 1).numpy())
        np.testing.assert_allclose(softmax(logits), probabilities, rtol=0, atol=TOLERANCE)
        answers |= set(expected.argmax(axis=1).tolist())
    assert len(answers) > 2, "logits that hardly differ would agree whatever the runtime does"


def test_the_file_says_what_it_is(small_file: Path) -> None:
    """Protects users who have only the file: it states inputs and outputs, the classes in order, the licence and the origin."""
    model = onnx.load(small_file)
    stated = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(stated["gda.classes"]) == list(CLASSES)
    assert (stated["gda.image_size"], stated["gda.base_licence"], stated["gda.digest"]) == ("16", "apache-2.0", "a" * 64)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    session = onnxruntime.InferenceSession(small_file, providers=["CPUExecutionProvider"])
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["n", 3, 16, 16])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["n", len(CLASSES)])


def test_equal_classifiers_give_equal_bytes(small: Path, small_file: Path, tmp_path: Path) -> None:
    """Protects comparison of files by checksum across processes and folders: the file holds nothing about the machine."""
    again = subprocess.run(
        [sys.executable, "-m", "gda", "export", str(small), "--to", "onnx", "--out", "c.onnx"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "17"},
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "c.onnx").read_bytes() == small_file.read_bytes()
    assert str(Path(timm.__file__).parent).encode() not in small_file.read_bytes()
    assert list(tmp_path.iterdir()) == [tmp_path / "c.onnx"], "one file, and no leftovers"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_a_file_cut_short_is_refused(share: float, small: Path, small_file: Path) -> None:
    """Protects against a truncated copy, also one that is still an ONNX file without its metadata."""
    data = small_file.read_bytes()
    cut = data[: min(int(len(data) * share), len(data) - 1)]
    with pytest.raises(DataError, match=r"small\.onnx: not a whole ONNX file"):
        check_onnx(cut, load_classifier(small), card_of(small), name="small.onnx")


def test_a_file_of_other_weights_or_statements_is_refused(small: Path, small_file: Path) -> None:
    """Protects from a file that runs but is another classifier: its logits (NaN included) and its metadata are checked."""
    model, card, data = load_classifier(small), card_of(small), small_file.read_bytes()
    assert check_onnx(data, model, card, name="f") <= TOLERANCE
    with pytest.raises(DataError, match=r"f: states gda.digest as 'a+'; the classifier's is 'b+'"):
        check_onnx(data, model, card.model_copy(update={"digest": "b" * 64}), name="f")
    with torch.no_grad():
        model.get_classifier().bias[1] += 3 * TOLERANCE
    with pytest.raises(DataError, match=r"f: its logits differ from the classifier's by 0\.0003"):
        check_onnx(data, model, card, name="f")
    broken = onnx.load_model_from_string(data)
    bias = next(tensor for tensor in broken.graph.initializer if tensor.name.endswith("fc.bias"))
    bias.raw_data = np.full(len(CLASSES), np.nan, dtype=np.float32).tobytes()
    with pytest.raises(DataError, match="f: its logits differ from the classifier's by nan"):
        check_onnx(broken.SerializeToString(), load_classifier(small), card, name="f")


def test_a_file_that_only_takes_one_batch_size_is_refused(small: Path, small_file: Path) -> None:
    """Protects the dynamic batch axis: a file made for batches of seven agrees only on those."""
    fixed = onnx.load(small_file)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7
    with pytest.raises(DataError, match="f: ONNX Runtime does not run it"):
        check_onnx(fixed.SerializeToString(), load_classifier(small), card_of(small), name="f")


def test_nothing_is_written_where_outputs_differ(tmp_path: Path) -> None:
    """Protects the final name: nothing is exported if the card's normalisation is not that of the evaluated classifier."""
    folder = publish_classifier(tmp_path / "classifier", SMALL)
    card = read_document(folder / "classifier.json", ClassifierCard)
    (folder / "classifier.json").write_bytes(dump_document(card.model_copy(update={"mean": (0.48, 0.5, 0.5)})))
    with pytest.raises(DataError, match="its logits differ from the classifier's by"):
        export_onnx(folder, tmp_path / "out" / "c.onnx")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_never_replaced(small: Path, small_file: Path, tmp_path: Path) -> None:
    """Protects existing files: repeating the command succeeds, and any other file under that name is not touched."""
    out = tmp_path / "c.onnx"
    out.write_bytes(small_file.read_bytes())
    assert export_onnx(small, out).reused
    out.write_bytes(small_file.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"c\.onnx: exists and holds something else"):
        export_onnx(small, out)
    assert out.read_bytes() == small_file.read_bytes()[:-1]
    with pytest.raises(UsageError, match="is a directory"):
        export_onnx(small, tmp_path)


def test_directories_without_a_classifier(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects users who mix up directories: skipped arms, classifiers as snapshots and snapshots as classifiers are distinguished."""
    skipped = card_of(small).model_copy(update={"skipped": "the set was refused"})
    (tmp_path / "skipped").mkdir()
    (tmp_path / "skipped" / "classifier.json").write_bytes(dump_document(skipped))
    with pytest.raises(DataError, match=r"arm was skipped \(the set was refused\)"):
        export_onnx(tmp_path / "skipped", tmp_path / "c.onnx")
    assert cli.main(["export", str(small), "--to", "npz", "--out", str(tmp_path / "x")]) == 2
    assert "--to onnx exports it" in capsys.readouterr().err
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "snapshot.json").write_text("{}")
    assert cli.main(["export", str(tmp_path / "set"), "--to", "onnx", "--out", str(tmp_path / "x")]) == 2
    assert "is for classifiers" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_architecture_that_cannot_be_exported_is_named() -> None:
    """Protects users from a page of exporter output: an architecture that torch cannot trace gives one line that names it."""

    class Requests(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3)) if images.sum().item() > 0 else images.amax(dim=(2, 3))

    card = ClassifierCard(arm=Arm.REAL, seed=0, model="branching", image_size=8, classes=("a", "b", "c"), snapshot_digest="0" * 64)
    with pytest.raises(DataError, match=r"^branching cannot be exported to ONNX \(.*data-dependent.*\)$"):
        build_onnx(Requests(), card)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_the_command_says_what_to_install(
    package: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects installations without the extra: the error names each missing package and the command that installs it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"needs {package}; .*pip install 'gda\[onnx\]'"):
        export_onnx(small, tmp_path / "c.onnx")

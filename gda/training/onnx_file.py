"""A finished classifier as one ONNX file that needs neither torch nor gda: raw pixels in, logits out."""

import importlib.util
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.outcome import Outcome
from gda.errors import DataError, UsageError
from gda.io.atomic import write_new
from gda.runtime.disks import storage_errors
from gda.runtime.torch_rng import torch_stream
from gda.training.loop.classifier import predict_logits
from gda.training.networks.export import load_classifier, open_classifier

OPSET = 18  # what torch's exporter writes without converting
INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-4  # largest accepted difference of a logit

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_TRACED = 2  # images; with one, torch would fix the batch size to one


def export_onnx(folder: Path, out: Path) -> Outcome:
    """Write the classifier in `folder` as the ONNX file `out`, after ONNX Runtime has reproduced its logits within `TOLERANCE`.

    Input `images` is uint8 [n, 3, size, size] RGB, output `logits` float32 [n, classes]; the file's metadata has `gda.classes` (JSON
    list), `gda.image_size` (pixels), `gda.base_licence` and `gda.digest`. If `out` already holds the same bytes, nothing is written. Raises
    `UsageError` when the extra `onnx` is not installed or `out` holds something else, `DataError` for a directory without a complete
    classifier, an architecture that cannot be exported, or logits that differ; then nothing is written.
    """
    _require_packages()
    if out.is_dir():
        raise UsageError(f"--out {out}: is a directory; the classifier becomes one file, such as {out / 'classifier.onnx'}")
    card = open_classifier(folder)
    if card.skipped is not None:
        raise DataError(f"{folder}: has no weights to export, because its arm was skipped ({card.skipped})")
    model = load_classifier(folder)
    data = build_onnx(model, card)
    difference = check_onnx(data, model, card, name=str(out))
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    reused = not write_new(out, data)
    if reused and out.read_bytes() != data:
        raise UsageError(f"{out}: exists and holds something else; remove it or choose another --out")
    summary = f"{out} is up to date" if reused else f"wrote {out}: {len(data) / 2**20:.1f} MiB, logits within {difference:.1g} of torch's"
    return Outcome(output=out, digest=card.digest, summary=summary, reused=reused)


def build_onnx(model: nn.Module, card: ClassifierCard) -> bytes:
    """The file's bytes, equal for equal weights, card and library versions. Raises `DataError` with the exporter's reason."""
    import onnx
    from google.protobuf.message import EncodeError
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    images = torch.zeros((_TRACED, 3, card.image_size, card.image_size), dtype=torch.uint8)
    try:
        program = torch.onnx.export(
            _FromPixels(model, card).eval(),
            (images,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("n", min=1)}},
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = error.__cause__ or error  # the error's own text only advises on debugging torch
        raise DataError(f"{card.model} cannot be exported to ONNX ({type(reason).__name__}: {str(reason).splitlines()[0]})") from None
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # stack traces, with the paths of this machine
    proto = program.model_proto
    onnx.helper.set_model_props(proto, _metadata(card))
    try:
        return proto.SerializeToString(deterministic=True)
    except (ValueError, EncodeError):
        raise DataError(f"{card.model}: has more than the 2 GiB that one ONNX file can hold") from None


def check_onnx(data: bytes, model: nn.Module, card: ClassifierCard, *, name: str) -> float:
    """The largest difference of a logit between the file and `model`, over noise, black and white, in batches of one and of all.

    Raises `DataError`, naming the file as `name`, if it is not a complete and valid ONNX file, its metadata differ from
    `card`, or a logit differs by more than `TOLERANCE`.
    """
    session = _open(data, card, name)
    images = _check_images(card.image_size)
    expected = predict_logits(model, images, image_size=card.image_size).numpy()
    found = [np.concatenate([_run(session, part, name) for part in images.split(size)]) for size in (1, len(images))]
    if any(logits.shape != expected.shape for logits in found):
        raise DataError(f"{name}: gives logits of another shape than the classifier")
    difference = max(float(np.abs(logits - expected).max()) for logits in found)
    if not difference <= TOLERANCE:  # NaN is no agreement
        raise DataError(f"{name}: its logits differ from the classifier's by {difference:.2g}; at most {TOLERANCE:g} is accepted")
    return difference


class _FromPixels(nn.Module):
    """The network with the normalisation in front: uint8 NCHW in, float32 logits out."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, card: ClassifierCard) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("scale", 255 * torch.tensor(card.std).view(1, 3, 1, 1))
        self.register_buffer("shift", (torch.tensor(card.mean) / torch.tensor(card.std)).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.to(torch.float32) / self.scale - self.shift)
        return logits.float()


def _metadata(card: ClassifierCard) -> dict[str, str]:
    return {
        "gda.base_licence": card.base_licence,
        "gda.classes": json.dumps(card.classes, ensure_ascii=False),
        "gda.digest": card.digest,
        "gda.image_size": str(card.image_size),
    }


def _open(data: bytes, card: ClassifierCard, name: str) -> Any:
    import onnx
    import onnxruntime
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load_model_from_string(data)
        onnx.checker.check_model(proto, full_check=True)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DataError(f"{name}: not a whole ONNX file ({str(error).strip().splitlines()[0]})") from None
    _require_stated(_metadata(card), {entry.key: entry.value for entry in proto.metadata_props}, name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise DataError(f"{name}: ONNX Runtime does not take it ({str(error).splitlines()[0]})") from None


def _run(session: Any, images: Tensor, name: str) -> np.ndarray:
    try:
        logits: np.ndarray = session.run([OUTPUT], {INPUT: images.numpy()})[0]
    except Exception as error:
        raise DataError(f"{name}: ONNX Runtime does not run it on {len(images)} images ({str(error).splitlines()[0]})") from None
    return logits


def _require_stated(expected: Mapping[str, str], found: Mapping[str, str], name: str) -> None:
    for key, value in expected.items():
        if found.get(key) != value:
            raise DataError(f"{name}: states {key} as {found.get(key)!r}; the classifier's is {value!r}")


def _check_images(size: int) -> Tensor:
    """uint8 [7, 3, size, size]: noise, noise of low contrast, black and white."""
    random_pixels = partial(torch.randint, dtype=torch.uint8, generator=torch_stream("parity"))
    shape = (3, size, size)
    flat = [torch.full((1, *shape), value, dtype=torch.uint8) for value in (0, 255)]
    return torch.cat([random_pixels(0, 256, (3, *shape)), random_pixels(96, 160, (2, *shape)), *flat])


def _require_packages() -> None:
    if missing := [package for package in _PACKAGES if importlib.util.find_spec(package) is None]:
        raise UsageError(f"--to onnx: needs {', '.join(missing)}; install what is missing with pip install 'gda[onnx]'")

"""`inception-v3-compat`: the Inception network of the original FID, from torch-fidelity, with the resize of TensorFlow 1."""

import io
from pathlib import Path

import torch

from gda.artifacts.fingerprint import digest_of
from gda.errors import MissingError
from gda.fidelity.extractors.base import LARGE_NETWORK_BATCH, Extractor
from gda.fidelity.extractors.weights import WEIGHTS_FIELD, load_exactly, read_state, require_weights, state_digest

NAME = "inception-v3-compat"
_LAYER = "2048"


def load_inception(weights: str | None) -> Extractor:
    """Its 2048 pooled features. Raises `MissingError` without the file, `DataError` when it is not of this network.

    The network resizes images itself, from whatever size they have.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = find_inception_weights(weights)
    state = read_state(path)
    load_exactly(_shape_of_network(), state, path)
    # torch-fidelity unpickles any file; these bytes hold only tensors, as checked above.
    checked = io.BytesIO()
    torch.save(state, checked)
    checked.seek(0)
    network = FeatureExtractorInceptionV3(NAME, [_LAYER], feature_extractor_weights_path=checked)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return network((images * 255.0).round().to(torch.uint8))[0]

    digest = digest_of({"extractor": NAME, "layer": _LAYER, "weights": state_digest(state)})
    return Extractor(
        name=NAME,
        digest=digest,
        dim=int(_LAYER),
        input_px=FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE,
        forward=forward,
        resize="none",
        batch=LARGE_NETWORK_BATCH,
        packages=("torch-fidelity",),
    )


def inception_weights_place() -> tuple[Path, str]:
    """Where torch-fidelity keeps the file of the weights, and the address that it is downloaded from."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1], URL_INCEPTION_V3


def find_inception_weights(given: str | None) -> Path:
    """The given file, or the one that torch-fidelity downloads to torch hub's cache. Raises `MissingError` naming both places."""
    cached, address = inception_weights_place()
    name = cached.name
    if given is None and cached.is_file():
        return cached
    path = require_weights(given, extractor=NAME, wanted=f"{name} (or that file at {cached})", where_from=address)
    if not path.is_file():
        raise MissingError(f"{WEIGHTS_FIELD}: {path} is not a file; extractor {NAME} needs {name} from {address}")
    return path


def _shape_of_network() -> torch.nn.Module:
    """The network without memory for weights: torch-fidelity's constructor requires a file, so it gets an empty one and loads nothing."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:
            """Nothing is loaded."""

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.device("meta"):
        return Unloaded(NAME, [_LAYER], feature_extractor_weights_path=empty)

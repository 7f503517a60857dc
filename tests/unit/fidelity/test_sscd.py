"""A network made for copies joins the check where its file is given, and says clearly what it lacks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import digits

from gda.errors import DataError, MissingError
from gda.fidelity.extractors.sscd import _INPUT_PX, load_sscd


class Averages(torch.nn.Module):
    """Stands for SSCD: a row of 48 averages per image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[2] == images.shape[3] == 288
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


class Flat(torch.nn.Module):
    """Gives no row per image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean()


def saved(network: torch.nn.Module, path: Path) -> str:
    torch.jit.trace(network, torch.zeros(2, 3, _INPUT_PX, _INPUT_PX), check_trace=False).save(path)
    return str(path)


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_file_gives_features_of_length_one(tmp_path: Path) -> None:
    """Any file of the published form works: features are rows of length 1, equal for equal images, and say which file they are from."""
    network = load_sscd(saved(Averages(), tmp_path / "sscd.torchscript.pt"))
    images = digits()[[0, 1, 0]]
    found = network.features(images)
    assert found.shape == (3, 48)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert (found[0] == found[2]).all()
    assert np.abs(found[0] - found[1]).max() > 0.01
    assert network.identity == f"sscd@{network.digest[:8]}"
    assert len(network.features(images[:0])) == 0


@pytest.mark.filterwarnings("ignore")
def test_what_is_missing_or_wrong_is_one_line(tmp_path: Path) -> None:
    """A path that is not there is the environment's fault, a file of another kind the data's, and a network of another kind too."""
    with pytest.raises(MissingError, match=r"validate\.sscd_weights: .*absent\.pt is not a file"):
        load_sscd(str(tmp_path / "absent.pt"))
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(DataError, match="not a TorchScript file"):
        load_sscd(str(tmp_path / "text.pt"))
    with pytest.raises(DataError, match="a row of finite numbers for every image"):
        load_sscd(saved(Flat(), tmp_path / "flat.pt")).features(digits()[:2])

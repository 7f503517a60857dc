"""Several processes train one classifier: as one does, at any number of them from a checkpoint on, and the first one alone writes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.layers import StdConv2d
from together_cases import CASES, StoppedError, train
from torch import Tensor, distributed, nn
from training_world import TINY, coloured

from gda.errors import ConfigError
from gda.runtime.process_group import ProcessGroup
from gda.training.loop.classifier import TrainRecipe, train_classifier
from gda.training.loop.forward import Forward
from gda.training.loop.shared_norms import SharedStatistics

HERE, WORLDS = Path(__file__).parent, Path(__file__).parents[2] / "worlds"
AS_ONE = ["plain", "weighted", "mixed", "batch norm", "batch norm with an activation"]


def weights_of(case: str, folder: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Weights and losses of one process by itself."""
    model, curve = train(CASES[case], folder)
    return dict(model.state_dict()), torch.tensor(curve)


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of every case; "ended" was begun by one process, stopped after its second checkpoint."""
    out = tmp_path_factory.mktemp("two")
    with pytest.raises(StoppedError):
        train(CASES["ended"], out / "ended", stop_at=8)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(HERE / "together_worker.py")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(WORLDS), os.environ.get("PYTHONPATH", "")])}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([*launcher, str(out), *CASES], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.parametrize("case", AS_ONE)
def test_two_processes_train_as_one(two: Path, tmp_path: Path, case: str) -> None:
    """Batch, randomness, loss and statistics are the whole batch's: losses and weights are those of one process but for rounding."""
    weights, losses = weights_of(case, tmp_path)
    shared = load_file(two / case / "weights.safetensors")
    assert difference(shared, weights) < 1e-5
    torch.testing.assert_close(torch.tensor(json.loads((two / case / "curve.json").read_text())), losses, atol=1e-5, rtol=0)


def test_the_cases_differ(two: Path) -> None:
    """Agreement to 1e-5 says something: what weights, mixing or a longer training change is a hundred times as much."""
    trained = {case: load_file(two / case / "weights.safetensors") for case in ("plain", "weighted", "mixed", "drop path")}
    for case in ("weighted", "mixed", "drop path"):
        assert difference(trained["plain"], trained[case]) > 1e-3


def test_a_training_goes_on_with_another_number_of_processes(two: Path, tmp_path: Path) -> None:
    """From one process to two and from two to one, the updates after the checkpoint alone are made, and end where one process does."""
    whole, _ = weights_of("plain", tmp_path)
    assert json.loads((two / "ended" / "seen.json").read_text()) == [7, 8, 9, 10, 11, 12]
    assert difference(load_file(two / "ended" / "weights.safetensors"), whole) < 1e-5
    assert json.loads((two / "begun" / "seen.json").read_text()) == [1, 2, 3, 4, 5, 6, 7, 8]
    seen: list[int] = []
    model, _ = train(CASES["begun"], two / "begun", seen=seen, stop_at=None)
    assert seen == [7, 8, 9, 10, 11, 12]
    assert difference(dict(model.state_dict()), whole) < 1e-5


@pytest.fixture
def group() -> Iterator[None]:
    """A group of one process, so that what processes exchange runs here."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("affine", [True, False])
def test_shared_batch_norms_compute_what_torch_does(affine: bool) -> None:
    """Output, gradients and running statistics are those of torch's batch norm; in eval mode they are used, not changed."""
    torch.manual_seed(0)
    inputs = torch.randn(6, 4, 5, 5) * 3 + 7
    found = []
    for shared in (False, True):
        norm, x = nn.BatchNorm2d(4, momentum=0.3, affine=affine), inputs.clone().requires_grad_(True)
        if shared:
            with SharedStatistics(1):
                out = norm(x)
                evaluated = norm.eval()(x)
        else:
            out = norm(x)
            evaluated = norm.eval()(x)
        (out * torch.arange(600.0).view_as(out)).sum().backward()
        found.append([out, evaluated, x.grad, *(p.grad for p in norm.parameters()), *norm.buffers()])
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("group")
def test_what_is_dropped_is_sampled_by_update_and_process() -> None:
    """Rows at the same place of two shares, and one row in two updates, lose other parts; the same ones whatever was sampled before."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 64), nn.Dropout(0.5))
    passed: list[Tensor] = []

    class Keep(nn.Module):
        def forward(self, logits: Tensor, _: Tensor) -> Tensor:
            passed.append(logits.detach())
            return logits.sum()

    for rank, update in ((0, 1), (1, 1), (0, 2), (0, 1)):
        forward = Forward(model, replace(TINY, batch_size=4), ProcessGroup(rank=rank, size=2, device=torch.device("cpu")), seed=0)
        torch.rand(rank + update)
        forward.loss(Keep(), torch.ones(4, 3, 2, 2), (torch.zeros(4),), update)
    first, other_rank, other_update, again = passed
    assert torch.equal(first, again)
    assert not torch.equal(first, other_rank)
    assert not torch.equal(first, other_update)


def test_standardised_weights_are_no_batch() -> None:
    """A convolution whose weight is standardised by a batch norm needs nobody else: all processes hold the same weight."""
    layer, inputs = StdConv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    with SharedStatistics(2):  # without a group, an exchange would fail
        found = layer(inputs)
    assert torch.equal(found, layer(inputs))


def test_rows_are_dealt_out() -> None:
    """Every row in exactly one share, neighbours in different ones, so that each has its part of the real and of the synthetic images."""
    shares = [ProcessGroup(rank=rank, size=3, device=torch.device("cpu")).deal(9, "s") for rank in range(3)]
    assert [list(range(9)[share]) for share in shares] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9}, r"classify\.batch_size: must be a multiple of the number of processes, 2, got 9"),
        ({"auxiliary_batch_norm": True}, r"classify\.auxiliary_batch_norm: is trained by one process"),
        ({"compile": True}, r"classify\.compile: test_resnet has batch norms, whose statistics several processes share"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(changes: dict[str, object], message: str) -> None:
    """Before anything is trained or exchanged, by the name of the setting."""
    recipe: TrainRecipe = replace(TINY, **changes)  # type: ignore[arg-type]
    sources = [coloured(15, 0.5), replace(coloured(15, 0.5), synthetic=True)]
    with pytest.raises(ConfigError, match=message):
        train_classifier(sources, recipe, num_classes=3, seed=0, world=ProcessGroup(rank=1, size=2, device=torch.device("cpu")))

"""Two commands for one piece of work: the second ends with 75 and one line, and leaves alone what the first is making."""

from pathlib import Path
from typing import Any

import pytest
from two_colours import two_colours

from gda.config.load import parse_config
from gda.errors import TryAgainError
from gda.stages import finetune, tune


class Reached(Exception):  # noqa: N818 - no failure
    """The first command got as far as its work."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_colours(tmp_path_factory.mktemp("world"), per_class=12)


@pytest.fixture
def in_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))


@pytest.mark.usefixtures("in_work")
@pytest.mark.parametrize("stage", ["finetune", "tune"])
def test_the_second_is_sent_away(stage: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards checkpoints of one run from another: without the lock both write the same files, and one dies of it."""

    def command() -> Any:
        config = parse_config({"finetune": {"num_train_steps": 2, "sr_num_train_steps": 0}}, where="test")
        if stage == "finetune":
            return finetune.run(config, snapshot=world / "real", base=str(world / "generator"), out=tmp_path / "out")
        return tune.run(config, generator=str(world / "generator"), snapshot=world / "real", out=tmp_path / "out")

    def while_the_first_works(*_: object, **__: object) -> None:
        with pytest.raises(TryAgainError, match=r"out: another process is working on exactly this; wait for it"):
            command()
        raise Reached

    where = "gda.stages.finetune._train" if stage == "finetune" else "gda.stages.tune.Sweep.run"
    with monkeypatch.context() as patch:
        patch.setattr(where, while_the_first_works)
        with pytest.raises(Reached):
            command()
    reached: list[str] = []

    def work(*_: object, **__: object) -> None:
        reached.append(stage)
        raise Reached

    monkeypatch.setattr(where, work)
    with pytest.raises(Reached):  # the healthy twin: once the first is gone, whatever its end, the same command works
        command()
    assert reached == [stage]
    assert not (tmp_path / "out").exists()

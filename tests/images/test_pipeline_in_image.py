"""`augment` with every step in a container of the built image, next to the same in processes: the same contents. Needs image and engine."""

import os
from pathlib import Path

import pytest
from image_files import why_not
from step_world import QUICK, two_textures

from gda.config.load import parse_config
from gda.flow import EVALUATION, PROMOTION
from gda.steps.step import StepRecord
from pipelines.local import run_augment

IMAGE = os.environ.get("GDA_TEST_IMAGE", "gda:local")
_NOT = why_not(IMAGE, engines=("docker",))
pytestmark = [pytest.mark.docker, pytest.mark.skipif(bool(_NOT), reason=_NOT)]


def _digests(volume: Path) -> dict[str, str]:
    """Content digest by step and output; those that name the candidate by its path left out."""
    records = [StepRecord.model_validate_json(path.read_bytes()) for path in volume.glob("steps/*/*/step.json")]
    outputs = [(record.step, path, ref.digest) for record in records for path, ref in record.outputs.items()]
    return {f"{step} {path}": digest for step, path, digest in outputs if path not in (EVALUATION, PROMOTION)}


def test_containers_and_processes_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step as the image's user, on a folder that it may write through its group."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    found = []
    before = os.umask(0o007)
    try:
        for name, docker in (("containers", IMAGE), ("processes", "")):
            volume = tmp_path / name
            two_textures(volume / "given", 40)
            content = {**QUICK, "snapshot": QUICK["snapshot"] | {"source": str(volume / "given/images")}}
            content["finetune"] = QUICK["finetune"] | {"base": str(volume / "given/generator")}
            for path in (tmp_path, volume, *volume.rglob("*")):
                path.chmod(0o770)
            config = parse_config(content, where="test")
            assert run_augment(config, data_root=volume, outputs=tmp_path / f"pages-{name}", code_version="1", docker=docker)
            found.append(_digests(volume))
    finally:
        os.umask(before)
    assert len(found[0]) > 15
    assert found[0] == found[1]

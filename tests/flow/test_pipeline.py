"""`augment` run locally from its compiled form, one process per step: its outputs equal those of `dvc repro` with the same settings."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flow_job import ROOT, Job
from ruamel.yaml import YAML
from step_world import QUICK, two_textures

from gda.config.load import Config, load_config
from gda.flow import EVALUATION, GRAPH, PROMOTION
from gda.steps.step import StepRecord, content_digest
from pipelines.local import run_augment, run_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:kfp.local", "ignore::RuntimeWarning:kfp.local")  # no limits, no images here

Pages = dict[str, Path]


class Local:
    """Runs of the pipeline on one volume; `pages` are the small files that a run leaves, by step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.volume = folder / "volume"

    def run(self, config: Config, name: str) -> tuple[bool, Path]:
        outputs = self.folder / name
        done = run_augment(config, data_root=self.volume, outputs=outputs, code_version="1")
        (pages,) = outputs.iterdir()
        return done, pages

    def records(self) -> dict[str, StepRecord]:
        found = [StepRecord.model_validate_json(path.read_bytes()) for path in self.volume.glob("steps/*/*/step.json")]
        return {record.step: record for record in found}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "GDA_WORK_DIR"):
            patch.delenv(name, raising=False)
        patch.setenv("PYTHONPATH", str(ROOT))
        folder = tmp_path_factory.mktemp("pipeline")
        patch.chdir(folder)
        two_textures(folder / "given", 40)
        content = {**QUICK, "snapshot": QUICK["snapshot"] | {"source": str(folder / "given/images"), "pool": None}, "seed": 0}
        content["finetune"] = QUICK["finetune"] | {"base": str(folder / "given/generator")}
        with (folder / "params.yaml").open("w") as file:
            YAML().dump(_spelt_out(content), file)
        yield folder


def _spelt_out(content: dict[str, Any]) -> dict[str, Any]:
    """With every key that dvc.yaml names."""
    project = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    return {
        section: (values if not isinstance(values, dict) else {**_only_named(values), **content.get(section, {})})
        for section, values in project.items()
    } | {"seed": 0}


def _only_named(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in ("extractor", "extractor_weights", "image_size", "pool", "model")}


@pytest.fixture(scope="module")
def local(world: Path) -> tuple[Local, bool, Path]:
    runs = Local(world)
    return (runs, *runs.run(load_config(world / "params.yaml"), "first"))


@pytest.fixture(scope="module")
def repro(world: Path) -> Job:
    folder = world / "repro"
    folder.mkdir()
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(world / "params.yaml", folder / "params.yaml")
    job = Job(folder)
    job.init()
    job.repro()
    return job


def test_the_whole_pipeline_runs(local: tuple[Local, bool, Path]) -> None:
    """From snapshot to challenger, each step in a process of its own, workers and classifiers side by side."""
    runs, done, pages = local
    assert done
    records = runs.records()
    assert {node.name for node in GRAPH if not node.matrix} <= set(records)
    classifiers = {"real-0", "real-1", "real+synthetic-0", "real+synthetic-1", "zero_shot-0"}
    assert {f"classify-{name}" for name in classifiers} == {name for name in records if name.startswith("classify-")}
    assert "gda-classifier version 1" in (pages / "register/summary").read_text()
    assert (pages / "report/page").read_bytes() == (pages / "evaluate/page").read_bytes()


def test_the_same_contents_as_dvc_repro(local: tuple[Local, bool, Path], repro: Job) -> None:
    """Every output of `dvc repro` has the content digest that the pipeline's step has."""
    records = local[0].records()
    compared = 0
    for record in records.values():
        for path, reference in record.outputs.items():
            if path in (EVALUATION, PROMOTION):
                continue  # they name the candidate by its path
            assert content_digest(repro.folder / path) == reference.digest, path
            compared += 1
    assert compared == 5 + len([node for node in GRAPH if not node.matrix and node.stage not in ("evaluate", "promote")]) + 1
    found = json.loads((next(local[0].volume.glob("steps/evaluate/*")) / EVALUATION / "metrics.json").read_bytes())
    expected = json.loads((repro.folder / EVALUATION / "metrics.json").read_bytes())
    for metrics in (found, expected):
        metrics["candidate"]["path"] = Path(metrics["candidate"]["path"]).name
    assert found["arms"].keys() <= expected["arms"].keys()
    assert found["gain"] == {arm: gain for arm, gain in expected["gain"].items() if arm in found["gain"]}
    assert found["candidate"] == expected["candidate"]


def test_no_data_passes_through_the_pipeline(local: tuple[Local, bool, Path]) -> None:
    """What the runner would upload and download for the steps is pages and references, however many images there are."""
    runs, _, pages = local
    files = [path for path in pages.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {"", ".json"}
    assert all(path.read_bytes()[:4] not in (b"\x89PNG", b"PAR1") for path in files)
    small = [path for path in files if path.name not in ("page",)]
    assert max(path.stat().st_size for path in small) < 20_000
    assert sum(1 for _ in runs.volume.rglob("*.tar")) >= 5


def test_a_second_run_finds_everything_done(local: tuple[Local, bool, Path], world: Path) -> None:
    """Nothing is computed again: the records keep their times, and the report is the same."""
    runs, _, first = local
    before = {path: path.stat().st_mtime_ns for path in runs.volume.glob("steps/*/*/step.json") if "promote" not in str(path)}
    done, pages = runs.run(load_config(world / "params.yaml"), "second")
    assert done
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (pages / "report/page").read_bytes() == (first / "report/page").read_bytes()


def test_a_refused_set_ends_in_its_report(local: tuple[Local, bool, Path], world: Path) -> None:
    """The branch without classifiers runs, the run succeeds, and the report gives the reasons."""
    done, pages = local[0].run(load_config(world / "params.yaml", ("validate.fid_max_ratio=1e-9",)), "refused")
    assert done
    assert (pages / "reject/summary").read_text().startswith("# The synthetic set was refused")
    assert not (pages / "evaluate").exists()
    assert re.search(r"FID is .* above", (pages / "report/summary").read_text())


def test_a_failed_step_ends_in_a_report(local: tuple[Local, bool, Path], world: Path) -> None:
    """A step that raises fails the run; the exit step still says which, and why."""
    done, pages = local[0].run(load_config(world / "params.yaml", (f"finetune.base={world}/given/images",)), "failed")
    assert not done
    text = (pages / "report/summary").read_text()
    assert text.startswith("# The run failed at finetune")
    assert "given/images: not a generator: neither model_index.json" in text
    assert "| evaluate | not done |" in text


def test_pipelines_that_go_on_from_a_run(local: tuple[Local, bool, Path], world: Path) -> None:
    """`promote` applies the gate to the run's candidate, `evaluate` compares its classifiers again; both run from their compiled form."""
    runs, _, _ = local
    (name,) = [path.parent.name for path in runs.volume.glob("runs/*/run.json") if (world / "first" / path.parent.name).is_dir()]
    given = {"run": name, "data_root": str(runs.volume)}
    assert run_pipeline("promote", given, data_root=runs.volume, outputs=world / "promoted")
    (pages,) = (world / "promoted").iterdir()
    assert "not promoted (gda-classifier version 1, against real)" in (pages / "promote/summary").read_text()
    changed = given | {"settings": '{"evaluate": {"confidence": 0.9}}'}
    assert run_pipeline("evaluate", changed, data_root=runs.volume, outputs=world / "compared")
    assert len(list(runs.volume.glob("steps/evaluate/*/step.json"))) == 2


def test_the_volume_is_all_that_is_written(local: tuple[Local, bool, Path], world: Path) -> None:
    """Steps leave nothing in the directory they run in: on a cluster it is read-only."""
    assert {path.name for path in world.iterdir()} <= {
        "given",
        "params.yaml",
        "volume",
        "first",
        "second",
        "refused",
        "failed",
        "repro",
        "promoted",
        "compared",
    }
    assert (local[0].volume / "mlflow.db").is_file()

"""Runs have a name of their own, whatever their titles are, and found again by any name that means one of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from gda.config.load import Config
from gda.errors import ConfigError, DataError, UsageError
from gda.steps.entry import configured, looked_up, reported
from gda.steps.form import split_up
from gda.steps.record import find_run, read_run
from pipelines.compiling import COMPILED, build
from pipelines.documents import read_compiled
from pipelines.options import CompileOptions

TITLE = "augment v1: a title / with anything in it (é)"


def _configured(root: Path, run: str, *, run_id: str = "", title: str = TITLE, **changes: Any) -> str:
    form, settings = split_up(Config())
    given = form | {"settings": settings, "data_root": str(root), "run": run, "run_id": run_id, "title": title}
    summary = root / "pages" / run
    summary.parent.mkdir(parents=True, exist_ok=True)
    configured(given | {"code_version": "1", "image": "none"} | changes, summary=SimpleNamespace(path=str(summary)))
    return summary.read_text("utf-8")


def test_runs_of_one_title_have_records_of_their_own(tmp_path: Path) -> None:
    """A schedule starts run after run under one title: none writes over what another one was configured with."""
    _configured(tmp_path, "augment-aaaaa", seed=1)
    _configured(tmp_path, "augment-bbbbb", seed=2)
    seeds = {run: (read_run(tmp_path, run).config or {})["seed"] for run in ("augment-aaaaa", "augment-bbbbb")}
    assert seeds == {"augment-aaaaa": 1, "augment-bbbbb": 2}


@pytest.mark.parametrize("named", ["augment-aaaaa", "5f1c-id", TITLE], ids=["name", "id", "title"])
def test_a_run_is_found_by_each_of_its_names(named: str, tmp_path: Path) -> None:
    """Who has the id that `pipelines run` prints, or the title that the user interface shows, need not look for the name."""
    message = _configured(tmp_path, "augment-aaaaa", run_id="5f1c-id")
    _configured(tmp_path, "augment-bbbbb", run_id="other-id", title="another")
    assert find_run(tmp_path, named).run == "augment-aaaaa"
    assert "augment-aaaaa" in message
    assert "5f1c-id" in message
    assert TITLE in message


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (TITLE, "2 runs have this title; accepted: one of augment-aaaaa, augment-bbbbb"),
        ("nobody", "not found .* names: augment-aaaaa, augment-bbbbb"),
    ],
    ids=["ambiguous", "unknown"],
)
def test_a_name_that_means_no_single_run_is_refused(named: str, message: str, tmp_path: Path) -> None:
    """A guess between two runs would promote the wrong one: exit code 3, and the names that there are."""
    _configured(tmp_path, "augment-aaaaa")
    _configured(tmp_path, "augment-bbbbb")
    with pytest.raises(DataError, match=message) as refused:
        find_run(tmp_path, named)
    assert refused.value.exit_code == 3
    with pytest.raises(DataError, match=message):
        looked_up(named, "{}", accepted="", data_root=str(tmp_path), summary=SimpleNamespace(path=str(tmp_path / "page")))


def test_a_text_that_can_be_no_name_is_refused(tmp_path: Path) -> None:
    """A path is no run: nothing outside the volume's runs is opened for it."""
    _configured(tmp_path / "volume", "augment-aaaaa")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_bytes((tmp_path / "volume" / "runs" / "augment-aaaaa" / "run.json").read_bytes())
    with pytest.raises(UsageError, match="no run has this title; accepted: letters, digits"):
        find_run(tmp_path / "volume", "../../other")


@pytest.mark.parametrize("field", [{}, {"alpha": 2.0}], ids=["configured", "refused"])
def test_the_last_step_says_how_the_run_is_named(field: dict[str, Any], tmp_path: Path) -> None:
    """A reader of the report can go on from the run, and finds a refused one again: its name, and a command with it."""
    if field:
        with pytest.raises(ConfigError):
            _configured(tmp_path, "augment-aaaaa", run_id="5f1c-id", **field)
    else:
        _configured(tmp_path, "augment-aaaaa", run_id="5f1c-id")
    pages = {name: SimpleNamespace(path=str(tmp_path / name)) for name in ("summary", "page")}
    reported("augment-aaaaa", data_root=str(tmp_path), state="FAILED", error="", **pages)
    text = (tmp_path / "summary").read_text("utf-8")
    assert f"This run is `augment-aaaaa` (id 5f1c-id, title {TITLE})" in text
    assert "python -m pipelines run promote --param run=augment-aaaaa" in text


def _constants(task: dict[str, Any]) -> dict[str, str]:
    given = task["inputs"]["parameters"]
    return {name: source["runtimeValue"]["constant"] for name, source in given.items() if "constant" in source.get("runtimeValue", {})}


def _tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    inside = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    return {"configure": _constants(inside["configure"]), "report": _constants(spec["root"]["dag"]["tasks"]["report"])}


def test_servers_are_queried_for_the_unique_name() -> None:
    """The display name, with spaces in it and shared by runs, is no record's name; a run's first and last step know it by the same."""
    tasks = _tasks(read_compiled(COMPILED / "augment.yaml")[0])
    unique = "{{$.pipeline_job_resource_name}}"
    assert tasks["configure"]["run"] == tasks["report"]["run"] == unique
    assert tasks["configure"]["run_id"] == "{{$.pipeline_job_uuid}}"
    assert tasks["configure"]["title"] == "{{$.pipeline_job_name}}"


def test_the_local_runner_is_queried_for_the_name_that_it_knows() -> None:
    """The local runner leaves the placeholder of the unique name as it is, and makes its own name unique."""
    from kfp import dsl
    from kfp.local.placeholder_utils import resolve_individual_placeholder

    local = build("augment", CompileOptions(run_name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER)).pipeline_spec
    named = {task["run"] for task in _tasks(MessageToDict(local)).values()}
    assert len(named) == 1
    known = {
        "executor_input_dict": {"inputs": {}, "outputs": {"outputFile": ""}},
        "pipeline_resource_name": "augment-2026-11-29-19-00-00-000000",
        "task_resource_name": "configure",
        "pipeline_root": "/root",
        "pipeline_job_id": "1",
        "pipeline_task_id": "2",
    }
    assert resolve_individual_placeholder(named.pop(), **known) == known["pipeline_resource_name"]
    with pytest.raises(IndexError):  # else the option is needed no more
        resolve_individual_placeholder(CompileOptions().run_name, **known)

"""Which pod trains which classifiers: every one once, in pods few enough for a workflow, side by side where dvc repro does so."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gda.config.load import Config
from gda.errors import UsageError
from gda.steps import classifiers
from gda.steps.classifiers import planned_classifiers, train_seeds_by_jobs, train_seeds_here
from gda.steps.entry import MOST_PODS
from gda.steps.form import classifier_runs, step_settings

SETTINGS = step_settings(Config())["classify"]
SETS = dict.fromkeys(("snapshot", "accepted", "verdict", "zero_shot", "img2img", "pool", "reference"), "")
GIVEN: dict[str, Any] = {"sets": SETS, "settings": SETTINGS, "data_root": "/data", "code": "1"}
REAL = [run["seed"] for run in classifier_runs(Config()) if run["arm"] == "real"]


def _planned(tmp_path: Path, seeds_per_pod: int) -> list[dict[str, str]]:
    return planned_classifiers(SETTINGS, seeds_per_pod=seeds_per_pod, summary=SimpleNamespace(path=str(tmp_path / "summary")))


def test_the_default_form_has_a_pod_for_an_arm(tmp_path: Path) -> None:
    """All seeds of an arm, each classifier once; the page says how many of both."""
    pods = _planned(tmp_path, 0)
    made = [{"arm": pod["arm"], "seed": seed} for pod in pods for seed in pod["seeds"].split(",")]
    assert made == classifier_runs(Config())
    assert [pod["arm"] for pod in pods] == list(dict.fromkeys(run["arm"] for run in classifier_runs(Config())))
    assert (tmp_path / "summary").read_text("utf-8").startswith(f"# {len(made)} classifiers, by {len(pods)} pods\n")


def test_more_pods_for_an_arm(tmp_path: Path) -> None:
    """A cluster with more accelerators than arms splits an arm; its shares together are all of it."""
    pods = _planned(tmp_path, 6)
    assert [pod["seeds"] for pod in pods if pod["arm"] == "real"] == ["0,1,2,3,4,5", "6,7,8,9"]
    assert sum(len(pod["seeds"].split(",")) for pod in pods) == len(classifier_runs(Config()))


@pytest.mark.parametrize(("seeds_per_pod", "message"), [(1, f"at most {MOST_PODS}"), (-1, "accepted: 0 for all seeds")])
def test_a_loop_that_is_too_wide_is_refused(seeds_per_pod: int, message: str, tmp_path: Path) -> None:
    """Before any is started: a workflow that outgrows what Argo takes loses the run in its last hours."""
    with pytest.raises(UsageError, match=message):
        _planned(tmp_path, seeds_per_pod)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was called, and for which seed."""
    made: list[tuple[str, str]] = []

    def called(name: str) -> Any:
        return lambda step, *, item, **given: made.append((name + ("+" if given.get("alongside") else ""), item["seed"])) or item["seed"]

    for name in ("run_step", "train_here", "train_by_job"):
        monkeypatch.setattr(classifiers, name, called(name))
    monkeypatch.setattr(classifiers, "num_accelerators", lambda: 0)
    return made


def test_all_seeds_are_trained_side_by_side(calls: list[tuple[str, str]]) -> None:
    """As dvc repro trains them: by one command, whose siblings then only publish."""
    assert train_seeds_here("real", ",".join(REAL), **GIVEN) == REAL
    assert calls == [("run_step+", REAL[0]), *[("train_here", seed) for seed in REAL]]


@pytest.mark.parametrize(("seeds", "accelerators"), [("0,1,2", 0), ("3", 1), (",".join(REAL), 8)], ids=["some", "one", "several GPUs"])
def test_some_seeds_are_trained_one_by_one(
    seeds: str, accelerators: int, calls: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of an arm does not train its siblings' seeds; accelerators that train as one take one classifier at a time."""
    monkeypatch.setattr(classifiers, "num_accelerators", lambda: accelerators)
    train_seeds_here("real", seeds, **GIVEN)
    assert calls == [("train_here", seed) for seed in seeds.split(",")]


def test_a_job_for_each_seed(calls: list[tuple[str, str]]) -> None:
    """On several nodes a classifier is a job of its own, one after the other."""
    train_seeds_by_jobs("real", "0,1", nodes=2, image="i", task=SimpleNamespace(), job="{}", **GIVEN)
    assert calls == [("train_by_job", "0"), ("train_by_job", "1")]


def test_a_pods_references_are_lines() -> None:
    """References hold no line break, so that a pod's text is taken apart as it was put together."""
    from gda.steps.graph import Reference

    assert "\n" not in Reference(uri="/a\nb", digest="0").text()
    assert json.loads(SETTINGS)["classify"]

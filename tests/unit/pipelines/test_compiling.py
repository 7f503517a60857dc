"""Compiled pipelines: equal bytes everywhere, what the options change, and the command line around it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli import main
from pipelines.compiling import COMPILED, compile_pipeline
from pipelines.documents import read_compiled
from pipelines.options import CompileOptions
from pipelines.registry import PIPELINES

ROOT = Path(__file__).resolve().parents[3]
IMAGE = "registry.test/team/gda@sha256:" + "ab" * 32


@pytest.mark.parametrize("seed", ["0", "1"])
def test_checked_in_files_are_what_the_pipelines_compile_to(seed: str) -> None:
    """The files people upload and GitOps applies are the code's, whatever the order in which Python hashes text."""
    command = [sys.executable, "-m", "pipelines", "compile", "--check"]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr


def test_a_difference_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An edited file fails the check, with the lines that differ."""
    assert main(["compile", "augment", "--out", str(tmp_path)]) == 0
    path = tmp_path / "augment.yaml"
    path.write_text(path.read_text().replace("numRetries", "maxRetries") if "numRetries" in path.read_text() else path.read_text() + "#\n")
    capsys.readouterr()
    assert main(["compile", "augment", "--out", str(tmp_path), "--check"]) == 1
    message = capsys.readouterr().out
    assert "is not what the pipeline compiles to" in message
    assert message.count("@@") >= 2


def test_what_is_fixed_when_compiling(tmp_path: Path) -> None:
    """Image, queue, priority and width of loops are in the file, of the steps that they are for."""
    options = CompileOptions(image=IMAGE, queue="gpus", priority="low", parallelism=3)
    for name, text in compile_pipeline("augment", options).items():
        (tmp_path / name).write_text(text)
    spec, platform = read_compiled(tmp_path / "augment.yaml")
    executors = spec["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == {IMAGE}
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "low"}
    assert kubernetes["exec-finetune"]["podMetadata"]["labels"] == labels
    assert "podMetadata" not in kubernetes["exec-configure"]
    loops = [
        task for c in spec["components"].values() for task in c.get("dag", {}).get("tasks", {}).values() if "parameterIterator" in task
    ]
    assert [loop["iteratorPolicy"]["parallelismLimit"] for loop in loops] == [3, 3, 3]
    for job in ("exec-finetune-job", "exec-classify-job", "exec-sample-job"):
        assert "podMetadata" not in kubernetes[job], "a pod that only watches waits in no queue; its job's pods do"
        assert kubernetes[job]["nodeSelector"] == kubernetes["exec-finetune"]["nodeSelector"]
        assert "emptyDirMounts" not in kubernetes[job]


def test_both_forms_hold_the_same_pipeline(tmp_path: Path) -> None:
    """What GitOps applies is what the user interface gets, as a Pipeline and a PipelineVersion of it."""
    assert read_compiled(COMPILED / "augment.yaml") == read_compiled(COMPILED / "augment.manifest.yaml")
    kinds = {d["kind"]: d for d in yaml.safe_load_all((COMPILED / "augment.manifest.yaml").read_text()) if d}
    assert set(kinds) == {"Pipeline", "PipelineVersion"}
    assert kinds["PipelineVersion"]["spec"]["pipelineName"] == kinds["Pipeline"]["metadata"]["name"] == "augment"


def test_other_content_is_another_object() -> None:
    """A cluster refuses an edited PipelineVersion: what differs in the file has another name, and what does not has none."""

    def version(**options: Any) -> tuple[str, str]:
        text = compile_pipeline("promote", CompileOptions(image=IMAGE, **options))["promote.manifest.yaml"]
        (found,) = [document for document in yaml.safe_load_all(text) if document and document["kind"] == "PipelineVersion"]
        return found["metadata"]["name"], found["spec"]["displayName"]

    name, shown = version()
    assert name == f"promote-{shown}"
    assert shown.startswith("abababababab-")
    assert version(retries=1) != version() == (name, shown)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compile", "--image", "gda:latest"], "--image gda:latest: accepted: REGISTRY/NAME@sha256:DIGEST"),
        (["compile", "--queue", "GPU queue"], "--queue GPU queue: accepted: up to 63 lower-case letters"),
        (["compile", "--priority=-low"], "--priority -low: accepted"),
        (["compile", "agument"], "agument: no pipeline; accepted: augment"),
        (["compile", "--parallelism", "0"], "--parallelism 0: accepted: 1 to 50"),
        (["lint", "nowhere.yaml"], "nowhere.yaml: no compiled pipeline"),
    ],
)
def test_a_wrong_command_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and what is accepted; nothing is written."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_objects_are_of_the_namespace_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What GitOps applies goes where the runs are; the pipeline itself is the same, and no namespace is refused."""
    assert main(["compile", "promote", "--namespace", "team-a", "--out", str(tmp_path)]) == 0
    texts = {name: (tmp_path / name).read_text("utf-8") for name in ("promote.yaml", "promote.manifest.yaml")}
    assert texts["promote.yaml"] == (COMPILED / "promote.yaml").read_text("utf-8")
    assert texts["promote.manifest.yaml"].count("  namespace: team-a\n") == 2
    assert "namespace: gda" not in texts["promote.manifest.yaml"]
    assert main(["compile", "promote", "--namespace", "", "--out", str(tmp_path)]) == 2
    assert "--namespace: accepted: the name of a namespace" in capsys.readouterr().err


def test_lint_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 for a sound file; 1, and a line a finding, for a damaged one."""
    assert main(["lint", str(COMPILED / "augment.yaml")]) == 0
    damaged = tmp_path / "damaged.yaml"
    damaged.write_text((COMPILED / "augment.yaml").read_text().replace("resourceMemoryLimit", "resourceMemory"))
    capsys.readouterr()
    assert main(["lint", str(damaged)]) == 1
    assert "has no resourceMemoryLimit" in capsys.readouterr().out
    assert main(["lint", str(COMPILED / "augment.yaml"), "--image", IMAGE]) == 1
    assert f"not in {IMAGE}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        b"- pipelineInfo\n",
        b"pipelineInfo: 3\n",
        b"kind: PipelineVersion\n",
        b"pipelineInfo: {name: a}\nroot: {dag: {}}\n",
        b"\xff\xfe\x00",
        b"a: [\n b: }",
    ],
)
def test_a_file_that_is_no_pipeline_is_one_line(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a file holds, the line names it, and nothing breaks."""
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    assert main(["lint", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pipelines: {path}: no compiled pipeline")
    assert error.count("\n") == 1


def test_help_is_quick() -> None:
    """Neither the SDK nor torch is imported to show what there is."""
    code = "import sys; import pipelines.cli as c; c._parser().format_help(); sys.exit(bool({'kfp', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_pipeline_is_checked_in() -> None:
    """Two files a pipeline, and no file of one that is gone."""
    assert {path.name for path in COMPILED.iterdir()} == {f"{name}{end}" for name in PIPELINES for end in (".yaml", ".manifest.yaml")}


def test_only_promotion_holds_the_credential() -> None:
    """The Secret that may move an alias is in no step but the one that does."""
    holders = {}
    for name in PIPELINES:
        _, platform = read_compiled(COMPILED / f"{name}.yaml")
        for step, settings in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items():
            if any(secret["secretName"] == "gda-mlflow-promote" for secret in settings.get("secretAsEnv", ())):
                holders[name] = step
    assert holders == {"promote": "exec-promote"}

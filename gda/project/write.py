"""The files of a new project: a commented params.yaml, dvc.yaml, and what DVC and git leave out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from gda.config.describe import accepted_values, comment, section_model, yaml_text
from gda.config.load import Config, parse_config
from gda.errors import UsageError
from gda.flow import dvc_text
from gda.io.atomic import write_bytes
from gda.project.decide import Setting
from gda.project.suspects import SuspectImage

PARAMS, DVC, SUSPECTS = "params.yaml", "dvc.yaml", "suspects.csv"
_GIT = "/data\n/models\n/reports\n/.gda\n/mlruns\n/mlflow.db*\n/.mlflow.db.lock\n"
_HEAD = (
    "# Written by `gda init`: every setting with what it is, what is accepted, and why it has this value here.\n"
    "# `gda run` does the job. All other settings are at their defaults: `gda config show` prints them.\n"
)


def require_new(folder: Path) -> None:
    """Raise `UsageError` where the folder holds a project already."""
    if taken := [name for name in (PARAMS, DVC) if (folder / name).exists()]:
        raise UsageError(f"{folder / taken[0]}: exists; give another folder, or change the settings there")


def write_project(folder: Path, settings: Sequence[Setting], suspects: Sequence[SuspectImage]) -> None:
    """Write params.yaml, dvc.yaml, .dvcignore, .gitignore and suspects.csv into `folder`, which is made if it is not there."""
    text = params_text(settings)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {
        DVC: dvc_text().replace(
            "# Made by `python -m gda.flow`; edit gda/flow.py instead.", "# Made by `gda init`; settings are in params.yaml."
        ),
        ".dvcignore": "/.gda\n/mlruns\n",
        ".gitignore": _GIT,
        SUSPECTS: suspects_text(suspects),
        PARAMS: text,  # last: it is what makes the folder a project
    }.items():
        if not (name.startswith(".") and (folder / name).exists()):
            write_bytes(folder / name, content.encode())


def params_text(settings: Sequence[Setting]) -> str:
    """The commented params.yaml of these settings; reading it back gives them. Raises `ConfigError` for settings that do not agree."""
    whole: CommentedMap = CommentedMap()
    for decision in settings:
        section, dot, key = decision.field.rpartition(".")
        part = whole.setdefault(section, CommentedMap()) if dot else whole
        model = section_model(section) if dot else Config
        part[key] = _plain(decision.value)
        accepted = accepted_values(model, key).replace("`", "")
        note = [model.model_fields[key].description or "", f"accepted: {accepted}", f"here: {decision.why}"]
        comment(part, key, note, indent=2 if dot else 0)
    text = _HEAD + yaml_text(whole)
    parse_config(_nested(settings), where=PARAMS)
    return text


def suspects_text(suspects: Sequence[SuspectImage]) -> str:
    """`suspects.csv`: file, class, reason and score of each."""
    import csv
    import io

    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["file", "class", "reason", "score"])
    table.writerows([each.name, each.class_name, each.reason, f"{each.score:.4g}"] for each in suspects)
    return buffer.getvalue()


def _nested(settings: Sequence[Setting]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for decision in settings:
        section, dot, key = decision.field.rpartition(".")
        (content.setdefault(section, {}) if dot else content)[key] = decision.value
    return content


def _plain(value: Any) -> Any:
    """Lists on one line, and texts in quotes where YAML would read something else."""
    from ruamel.yaml.comments import CommentedSeq

    if isinstance(value, list):
        sequence = CommentedSeq(value)
        sequence.fa.set_flow_style()
        return sequence
    if isinstance(value, Mapping):
        mapping = CommentedMap({key: _plain(own) for key, own in value.items()})
        mapping.fa.set_flow_style()
        return mapping
    return DoubleQuotedScalarString(value) if isinstance(value, str) and any(mark in value for mark in "{}:#") else value

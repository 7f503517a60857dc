"""One stage list everywhere: graph, dvc.yaml, params.yaml, command line and modules."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gda.cli.stage_commands import build_parser
from gda.config.arm import ARMS
from gda.config.load import Config, load_config
from gda.flow import GRAPH, STAGE_NAMES, arm_inputs, dvc_text

ROOT = Path(__file__).resolve().parents[2]


def _commands() -> dict:
    return build_parser()._subparsers._group_actions[0].choices


def test_dvc_yaml_is_the_graph():
    """The checked-in dvc.yaml is what the graph generates."""
    assert (ROOT / "dvc.yaml").read_text() == dvc_text()


def test_every_stage_is_a_section_a_module_and_a_command():
    """A newcomer finds a stage by its name in all four places."""
    sections = {field.alias or name for name, field in Config.model_fields.items()}
    for stage in STAGE_NAMES:
        assert stage in sections
        assert importlib.util.find_spec(f"gda.stages.{stage}")
        assert stage in _commands()
    assert [node.stage for node in GRAPH if not node.helper and not node.variant] == list(STAGE_NAMES)


def test_params_yaml_is_valid_and_has_what_dvc_refers_to():
    """Every `${section.field}` and every params entry of dvc.yaml is spelt out in params.yaml."""
    load_config(ROOT / "params.yaml")
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    dvc = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
    text = (ROOT / "dvc.yaml").read_text()
    referred = {name for name in re.findall(r"\$\{([^}]+)\}", text) if not name.startswith("item.")}
    referred |= {name for stage in dvc["stages"].values() for name in stage.get("params", [])}
    for name in referred:
        value = params
        for part in name.split("."):
            assert part in value, f"params.yaml lacks {name}"
            value = value[part]


def test_tune_never_depends_on_the_sample_section():
    """Changing how many images are sampled must not tune again."""
    for node in GRAPH:
        if node.stage in ("tune", "finetune", "snapshot", "reference"):
            assert "sample" not in node.sections


def test_real_arms_do_not_depend_on_synthetic_data():
    """Real-only classifiers are not trained again when sampling changes."""
    for arm in ARMS:
        assert bool(arm_inputs(arm)) == (arm.data.name != "real")
        assert ("verdict" in arm_inputs(arm)) == arm.data.gated
    (node,) = [node for node in GRAPH if node.matrix]
    assert set(node.inputs.values()) == {"data/real", "data/arms/${item.arm}.json"}


def test_what_dvc_leaves_its_command_may_replace():
    """DVC does not remove an arm's classifiers when a setting changes: the command must keep the right ones and replace the others."""
    dvc = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
    kept = {name for name, stage in dvc["stages"].items() if any(isinstance(out, dict) for out in stage["outs"])}
    assert kept == {name for name, stage in dvc["stages"].items() if "--replace" in stage["cmd"]} == {"classify"}
    assert dvc["stages"]["classify"]["outs"] == [{"models/classifiers/${item.arm}": {"persist": True}}]


def test_the_command_surface_is_frozen():
    """Other tools call these commands and flags: a removed one is a breaking change."""
    wanted = {
        "snapshot": {"--out", "--as", "--snapshot", "--group-column", "--split-column"},
        "finetune": {"--snapshot", "--base", "--out", "--resume"},
        "tune": {"--generator", "--snapshot", "--out"},
        "sample": {"--generator", "--snapshot", "--settings", "--out", "--worker", "--workers", "--plan-only"},
        "validate": {"--synthetic", "--snapshot", "--generator", "--out", "--strict"},
        "classify": {"--snapshot", "--synthetic", "--verdict", "--arm", "--seed", "--replace", "--out"},
        "evaluate": {"--runs", "--snapshot", "--synthetic", "--zero-shot", "--tuning", "--verdict", "--out"},
        "promote": {"--evaluation", "--verdict", "--dry-run"},
    }
    for command, flags in wanted.items():
        parser = _commands()[command]
        assert flags | {"--params", "--set", "--quiet", "--json"} <= set(parser._option_string_actions)
    assert {"verify", "merge", "export", "config", "lineage", "doctor"} <= set(_commands())


@pytest.mark.parametrize("module", ["torch", "pandas", "mlflow", "diffusers", "timm", "kfp", "dvc"])
def test_help_imports_nothing_heavy(module):
    """`gda --help` stays well under half a second because it loads none of these."""
    code = f"import sys; from gda.cli.stage_commands import build_parser; build_parser().format_help(); sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""One list of steps in the flow, the components, the run form and the compiled pipeline."""

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kfp.dsl import base_component

import components
from gda.config.load import Config, load_config
from gda.flow import GRAPH, STAGE_NAMES
from gda.steps.form import FORM, filled_in, split_up
from gda.steps.graph import REGISTER_FLAGS, roles
from pipelines.compiling import COMPILED
from pipelines.documents import read_compiled

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "components").glob("*.py") if path.stem != "__init__")


def _components() -> dict[str, Any]:
    named = [item for module in MODULES for item in vars(importlib.import_module(f"components.{module}")).items()]
    return {name: value for name, value in named if isinstance(value, base_component.BaseComponent)}


def _spec() -> dict[str, Any]:
    return read_compiled(COMPILED / "augment.yaml")[0]


def test_every_stage_is_a_component_of_its_name() -> None:
    """A newcomer finds a stage's component where its name says."""
    assert set(STAGE_NAMES) <= set(MODULES)
    for stage in STAGE_NAMES:
        assert stage in vars(importlib.import_module(f"components.{stage}"))


def test_every_node_of_the_flow_is_a_task() -> None:
    """What `dvc repro` runs, the pipeline runs: by the component's name, or by the `step` that it is given."""
    groups = [group["dag"]["tasks"] for group in (_spec()["root"], *_spec()["components"].values()) if "dag" in group]
    tasks = [task for group in groups for task in group.values()]
    run = set()
    for task in tasks:
        step = task.get("inputs", {}).get("parameters", {}).get("step", {}).get("runtimeValue", {}).get("constant")
        run.add(step or task["componentRef"]["name"].removeprefix("comp-").replace("-", "_"))
    renamed = {"register": "promote"}
    run = {renamed.get(name, name) for name in run}
    assert {node.name for node in GRAPH} <= run


def test_configure_gives_every_node_its_part() -> None:
    """The first component has an output for each node of the flow, in its order."""
    outputs = [name for name, spec in _components()["configure"].component_spec.outputs.items() if spec.type == "String"]
    assert outputs == ["code", *(node.name for node in GRAPH)]


def test_the_form_is_one() -> None:
    """The fields of configure and of the pipeline are the form's, with the schema's defaults."""
    form, settings = split_up(Config())
    parameters = _spec()["root"]["inputDefinitions"]["parameters"]
    wanted = _components()["configure"].component_spec.inputs
    assert set(FORM) <= set(parameters)
    assert set(FORM) <= set(wanted)
    assert {name: parameters[name]["defaultValue"] for name in FORM} == form
    defaults = {name: parameters[name]["defaultValue"] for name in FORM}
    assert filled_in(defaults, parameters["settings"]["defaultValue"]) == filled_in(form, settings) == Config()


def test_the_gate_of_the_demo_is_that_of_the_form() -> None:
    """One limit for FID: the run form and the demo's calibration accept the same sets."""
    demo = load_config(ROOT / "params.yaml", ()).validate_.fid_max_ratio
    assert _spec()["root"]["inputDefinitions"]["parameters"]["fid_max_ratio"]["defaultValue"] == demo


def test_every_parameter_is_described() -> None:
    """The user interface shows a line for each field of the form."""
    parameters = _spec()["root"]["inputDefinitions"]["parameters"]
    assert [name for name, definition in parameters.items() if len(definition.get("description", "")) < 10] == []
    assert [name for name, definition in parameters.items() if "defaultValue" not in definition] == []


@pytest.mark.parametrize("node", [node for node in GRAPH if not node.matrix], ids=lambda node: node.name)
def test_components_take_what_their_nodes_read(node: Any) -> None:
    """A role of the flow is a parameter of the component, under its own name or, for a file of tune's, `tuning`."""
    name = node.name if node.name in _components() else node.stage
    taken = set(_components()[name].component_spec.inputs)
    for role in roles(node, {}):
        assert {role, role.replace("-", "_"), {"settings": "tuning"}.get(role, role)} & taken


def test_components_are_thin() -> None:
    """No logic: a component's body is a few lines around one call of `gda`."""
    for name, component in _components().items():
        lines = inspect.getsource(component.python_func).splitlines()
        assert len(lines) <= 64 if name == "configure" else len(lines) <= 40, name
        assert "from gda.steps" in "\n".join(lines), name


def test_components_avoid_what_the_sdk_gets_wrong() -> None:
    """No postponed annotations, no dictionaries or floats for whole numbers, no installation when a step starts."""
    for module in MODULES:
        assert "from __future__" not in (ROOT / "components" / f"{module}.py").read_text()
    for name, component in _components().items():
        container = component.component_spec.implementation.container
        assert container.image == components.IMAGE
        assert "pip install" not in " ".join(container.command), name
        assert "Dict" not in {spec.type for spec in component.component_spec.inputs.values()}, name


def test_gda_knows_no_pipelines() -> None:
    """`pipelines -> components -> gda`, never back; and the command line of the pipelines imports nothing of gda except its errors."""
    of_gda = "any(name.startswith('gda.') and name != 'gda.errors' for name in sys.modules)"
    code = f"import sys; import pipelines.cli, pipelines.compiling, pipelines.server; sys.exit({of_gda})"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    code = (
        "import sys; sys.argv=['p','compile','--check']; from pipelines.cli import main; code = main(sys.argv[1:]);"
        f"sys.exit(code or {of_gda} or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_register_leaves_champion_alone() -> None:
    """The step of a run registers a version; only a separate pipeline, with its own account, moves the alias."""
    assert REGISTER_FLAGS == ("--register-only",)
    source = inspect.getsource(_components()["register"].python_func)
    assert "flags=REGISTER_FLAGS" in source
    assert "REGISTER_FLAGS" not in inspect.getsource(_components()["promote"].python_func)
    assert "comp-promote" not in json.dumps(_spec()["components"])

"""A user's own project, from a folder of photographs to a decision: gda init, gda run, and what they refuse."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from photographs import write_photographs
from tiny_pipelines import build_tiny_pipeline

CLASSES = ("sky", "temple", "petals", "uniform")
# A feature network of one's own: colours and directions, without weights.
EXTRACTOR = """
import torch
from gda.fidelity.extractors.base import Extractor


def make(weights):
    def forward(images):
        small = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        across = (images[..., 1:] - images[..., :-1]).abs().mean((2, 3))
        down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean((2, 3))
        return torch.cat([small, across, down], 1)

    return Extractor(name="colours", digest="c0" * 32, dim=54, input_px=32, forward=forward)
"""
# Small enough for a test: the decisions of gda init take an hour on two cores.
SMALLER = {
    "num_train_steps": "8",
    "mixed_num_train_steps": "8",
    "images_per_class": "8",
    "cas_images_per_class": "8",
    "guidance_scales": "[2.0]",
    "num_inference_steps": "[2]",
    "seeds": "[0, 1]",
    "control_seeds": "[0]",
    "min_seeds": "2",
}


def gda(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own, as a user types it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GDA_LEDGER": str(cwd / "ledger.jsonl"), "HF_HUB_OFFLINE": "1"}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([".", *sys.path]),
    }
    environment["TORCH_HOME"] = str(cwd / "torch")  # no weights that this machine may have
    return subprocess.run([sys.executable, "-m", "gda", *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs and a tiny Stable Diffusion of random weights."""
    root = tmp_path_factory.mktemp("project")
    write_photographs(root / "photos", per_class=24, side=64, classes=CLASSES)
    build_tiny_pipeline("sd1", root / "base")
    return root


@pytest.mark.parametrize("by_dvc", [True, pytest.param(False, marks=pytest.mark.nightly)], ids=["dvc", "alone"])
def test_two_commands_lead_from_photographs_to_a_decision(here: Path, by_dvc: bool) -> None:
    """init and run end with the decision and the report; run again does nothing; the dry run says so."""
    project = here / f"project-{by_dvc}"
    project.mkdir()
    (project / "colours.py").write_text(EXTRACTOR)
    made = gda("init", "../photos", "--base", "../base", "--extractor", "colours:make", "--goal", "quick", cwd=project)
    assert made.returncode == 0, made.stderr
    assert "96 in 4 classes, 24 to 24 in each" in made.stdout
    assert made.stdout.rstrip().endswith("next: gda run")
    assert (project / ".dvc").is_dir()
    if not by_dvc:
        for path in sorted((project / ".dvc").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (project / ".dvc").rmdir()
    _make_smaller(project / "params.yaml")
    planned = gda("run", "--dry-run", cwd=project)
    assert re.search(r"^classify real\+synthetic +to run +-", planned.stdout, re.MULTILINE), planned.stdout
    assert not (project / "data").exists()

    ran = gda("run", cwd=project)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    metrics = json.loads((project / "reports/evaluation/metrics.json").read_text())
    assert set(metrics["arms"]) == {"real", "synthetic", "real+synthetic"}
    for words in ("promotion:", f"report:     {project / 'reports/evaluation/report.html'}", "real+synthetic"):
        assert words in ran.stdout
    again = gda("run", cwd=project)
    assert again.returncode == 0, again.stderr
    assert not re.search(r"^(finetune|sample|classify|evaluate): wrote", again.stdout, re.MULTILINE), again.stdout
    after = gda("run", "--dry-run", cwd=project)
    assert re.search(rf"^finetune +{'up to date' if by_dvc else 'there'} +\d+ s +[\d,]+ MiB", after.stdout, re.MULTILINE), after.stdout


def test_without_a_base_it_says_what_to_get(here: Path) -> None:
    """No weights and no network: what is missing, before anything is trained; the exit code is that of a missing thing."""
    project = here / "nothing"
    project.mkdir()
    made = gda("init", "../photos", cwd=project)
    assert made.returncode == 0, made.stderr
    assert "MISSING   the weights of stable-diffusion-v1-5" in made.stdout
    assert "MISSING   the weights of inception-v3-compat: download https://" in made.stdout
    ran = gda("run", cwd=project)
    assert ran.returncode == 5, ran.stderr
    assert "hf download stable-diffusion-v1-5" in ran.stderr
    assert ran.stderr.strip().splitlines()[-1].startswith("gda run: stopped in gda inputs, whose message is above")
    assert not (project / "models").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("finetune", "--snapshot", "real", "--base", "demo://glyphs", "--out", "g"), "finetune.force_base=demo://glyphs"),
        (("tune", "--snapshot", "real", "--generator", "demo://glyphs", "--out", "t"), "finetune.force_base=demo://glyphs"),
        (
            ("sample", "--snapshot", "real", "--generator", "demo://glyphs", "--set", "sample.guidance_scale=2", "--out", "s"),
            "finetune.force_base=demo://glyphs",
        ),
        (("reference", "--snapshot", "real", "--out", "r"), "validate.force_extractor=glyph"),
        (("validate", "--snapshot", "real", "--synthetic", "real", "--out", "v"), "validate.force_extractor=glyph"),
    ],
)
def test_models_of_characters_are_refused_for_photographs(here: Path, words: tuple[str, ...], message: str) -> None:
    """Every command that would use them names the images, what to use, and how to force it: coloured noise comes without an error."""
    if not (here / "real").exists():
        assert gda("snapshot", "photos", "--out", "real", cwd=here).returncode == 0
    refused = gda(*words, cwd=here)
    assert refused.returncode == 3, refused.stdout + refused.stderr
    assert "64 px in colour" in refused.stderr
    assert message in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_a_base_that_is_forced_by_name_is_used(here: Path) -> None:
    """Whoever knows better may say so; another name forces nothing."""
    if not (here / "real").exists():
        assert gda("snapshot", "photos", "--out", "real", cwd=here).returncode == 0
    small = ("--set", "finetune.num_train_steps=1", "--set", "finetune.sr_num_train_steps=0", "--set", "finetune.model_name=null")
    command = ("finetune", "--snapshot", "real", "--base", "demo://glyphs", "--out", "forced", *small)
    assert gda(*command, "--set", "finetune.force_base=other", cwd=here).returncode == 3
    done = gda(*command, "--set", "finetune.force_base=demo://glyphs", cwd=here)
    assert done.returncode == 0, done.stderr


def test_a_project_is_not_written_over(here: Path) -> None:
    """Neither settings nor a snapshot are taken for what they are not."""
    taken = here / "taken"
    taken.mkdir()
    (taken / "params.yaml").write_text("seed: 1\n")
    refused = gda("init", "../photos", cwd=taken)
    assert refused.returncode == 2
    assert "params.yaml: exists" in refused.stderr
    assert (taken / "params.yaml").read_text() == "seed: 1\n"
    (here / "empty").mkdir()
    nothing = gda("run", cwd=here / "empty")
    assert nothing.returncode == 2
    assert "`gda init path/to/images` makes a project" in nothing.stderr


def _make_smaller(params: Path) -> None:
    text = params.read_text()
    for key, value in SMALLER.items():
        text = re.sub(rf"^(  {key}:).*$", rf"\1 {value}", text, flags=re.MULTILINE)
    params.write_text(text)

"""The command line as its users meet it: one clear line, its own exit code, no traceback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import gda as package
from gda.cli.stage_commands import build_parser


def gda(*arguments: str, cwd, env=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "gda", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{cwd}/mlflow.db", **(env or {})},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small ImageFolder: two classes distinguished by colour."""
    root = tmp_path_factory.mktemp("images")
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (root / name).mkdir()
        for i in range(12):
            Image.new("RGB", (16, 16), tuple(c + i for c in colour)).save(root / name / f"{i}.png")
    return root


def _says(result, code, *words):
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


def test_missing_folder(tmp_path):
    """A source that is not there is named."""
    result = gda("snapshot", "nowhere", "--out", "out", cwd=tmp_path)
    assert result.returncode in (2, 3)
    _says(result, result.returncode, "nowhere")
    assert not (tmp_path / "out").exists()


def test_misspelt_key_and_bad_range(tmp_path, folder):
    """Wrong keys and values name the field and exit with 2, before any work."""
    (tmp_path / "params.yaml").write_text("snapshot:\n  shard_siez: 5\n")
    _says(gda("snapshot", str(folder), "--out", "out", cwd=tmp_path), 2, "shard_siez", "shard_size")
    (tmp_path / "params.yaml").write_text("snapshot:\n  shard_size: 0\n")
    _says(gda("snapshot", str(folder), "--out", "out", cwd=tmp_path), 2, "snapshot.shard_size", "got 0")
    assert not (tmp_path / "out").exists()


def test_empty_class_and_text_named_png(tmp_path, folder):
    """A class without images, and unreadable images beyond the allowed share, are bad data."""
    broken = tmp_path / "broken"
    for name in ("red", "blue"):
        (broken / name).mkdir(parents=True)
        for path in (folder / name).iterdir():
            (broken / name / path.name).write_bytes(path.read_bytes())
    (broken / "green").mkdir()
    _says(gda("snapshot", str(broken), "--out", "out", cwd=tmp_path), 3, "green")
    (broken / "green").rmdir()
    (broken / "red" / "note.png").write_text("this is no image")
    _says(gda("snapshot", str(broken), "--out", "out", cwd=tmp_path), 3, "note.png")
    assert not (tmp_path / "out").exists()


def test_snapshot_json_line_and_reuse(tmp_path, folder):
    """`--json` closes with one object; the same command again changes nothing and says so."""
    first = gda("snapshot", str(folder), "--out", "out", "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    line = json.loads(first.stdout)
    again = json.loads(gda("snapshot", str(folder), "--out", "out", "--json", cwd=tmp_path).stdout)
    assert (line["reused"], again["reused"]) == (False, True)
    assert line["digest"] == again["digest"]
    other = gda("snapshot", "demo://mnist", "--out", "out", cwd=tmp_path)
    _says(other, 2, "out")


def test_unknown_architecture_and_wrong_weights(tmp_path, folder):
    """A classifier that timm does not know, and a base without safetensors, are reported before training."""
    assert gda("snapshot", str(folder), "--out", "real", cwd=tmp_path).returncode == 0
    result = gda(
        "classify", "--snapshot", "real", "--arm", "real", "--seed", "0", "--set", "classify.model=resnet99", "--out", "c", cwd=tmp_path
    )
    _says(result, 2, "resnet99")
    unet = shutil.copytree(Path(package.__file__).parent / "assets" / "demo_base", tmp_path / "base") / "base" / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    _says(
        gda("finetune", "--snapshot", "real", "--base", "base", "--out", "g", cwd=tmp_path), 3, "safetensors", "diffusion_pytorch_model.bin"
    )
    _says(gda("finetune", "--snapshot", "real", "--base", "absent", "--out", "g", cwd=tmp_path), 5, "absent")
    assert not (tmp_path / "g").exists()
    assert not (tmp_path / "c").exists()


def test_an_interrupted_finetune_resumes_to_the_same_weights(tmp_path, folder):
    """Ctrl-C leaves nothing under the final name, exits 75, and the same command ends where an uninterrupted one does."""
    assert gda("snapshot", str(folder), "--out", "real", cwd=tmp_path).returncode == 0
    sizes = ["--set", "finetune.num_train_steps=30", "--set", "finetune.sr_num_train_steps=0"]
    sizes += ["--set", "finetune.checkpointing_steps=2", "--set", "finetune.batch_size=8"]
    command = ["finetune", "--snapshot", "real", *sizes, "--out"]
    whole = gda(*command, "whole", "--json", cwd=tmp_path, env={"GDA_WORK_DIR": str(tmp_path / "other")})
    assert whole.returncode == 0, whole.stderr
    for _ in range(3):  # a run on a busy machine may end before the signal reaches it
        code, stderr = _interrupted([*command, "cut"], tmp_path)
        if code == 75:
            break
        assert code == 0, stderr
        shutil.rmtree(tmp_path / "cut")
    assert code == 75, stderr
    assert "the same command continues" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "cut").exists()
    resumed = gda(*command, "cut", "--json", cwd=tmp_path)
    assert json.loads(resumed.stdout)["digest"] == json.loads(whole.stdout)["digest"]


def _interrupted(command, folder):
    """Exit code and stderr of a run that gets Ctrl-C once it has a checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gda", *command],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"},
        # A shell's background jobs ignore SIGINT, and their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not list((folder / ".gda").glob("work/*/base/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


def test_averaging_again_says_what_it_lacks(tmp_path):
    """`gda ema` has these flags; a missing generator, one without snapshots and a width out of range each get their line and exit code."""
    (parser,) = (a.choices["ema"] for a in build_parser()._actions if a.dest == "command")
    assert {"--generator", "--sigma-rel", "--out", "--step", "--force"} <= set(parser._option_string_actions)
    base = Path(package.__file__).parent / "assets" / "demo_base"
    _says(gda("ema", "--generator", "models/absent", "--sigma-rel", "0.1", "--out", "g", cwd=tmp_path), 5, "models/absent")
    _says(gda("ema", "--generator", str(base), "--sigma-rel", "0.1", "--out", "g", cwd=tmp_path), 3, str(base), "not fine-tuned")
    _says(gda("ema", "--generator", str(base), "--sigma-rel", "0.3", "--out", "g", cwd=tmp_path), 2, "sigma_rel", "0.2887", "got 0.3")
    assert not (tmp_path / "g").exists()


def test_reproducing_says_what_it_lacks(tmp_path):
    """`gda verify` has these flags; no batches, and flags that need another one, each get their line and exit code."""
    (parser,) = (a.choices["verify"] for a in build_parser()._actions if a.dest == "command")
    assert {"--reproduce", "--generator", "--snapshot", "--seed"} <= set(parser._option_string_actions)
    _says(gda("verify", "real", "--reproduce", "0", cwd=tmp_path), 2, "--reproduce 0")
    _says(gda("verify", "real", "--generator", "demo://glyphs", cwd=tmp_path), 2, "--generator", "--reproduce")


@pytest.mark.parametrize("place", ["folder", "file", "debug"])
def test_defects_of_ours_exit_with_one(tmp_path, monkeypatch, capsys, place):
    """An unexpected exception is one line and exit code 1; the line names a file with the traceback, which is shown where none is kept."""
    from gda.cli import main as cli

    def broken(_args):
        raise RuntimeError("boom http://me:s3cret@host")

    monkeypatch.setattr("gda.cli.tool_commands._doctor", broken)
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.delenv("GDA_DEBUG", raising=False)
    if place == "file":  # a file where the folder would be
        (tmp_path / "work").write_text("")
    elif place == "debug":
        monkeypatch.setenv("GDA_DEBUG", "1")
    assert cli.main(["doctor"]) == 1
    *above, line = capsys.readouterr().err.splitlines()
    kept = list(tmp_path.glob("work/defects/*.txt"))
    text = kept[0].read_text() if place == "folder" else "\n".join(above)
    assert line.startswith("gda doctor: internal error: RuntimeError: boom")
    assert line.endswith(f"its traceback is in {kept[0]})" if place == "folder" else "its traceback is above)")
    assert (len(kept), len(above) > 0) == ((1, False) if place == "folder" else (0, True))
    assert text.startswith("Traceback")
    assert "in broken" in text
    assert "s3cret" not in text + line

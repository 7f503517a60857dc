"""A tiny job, made once: every stage's inputs, so that any of its commands can be run, and killed, by itself."""

import os
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import yaml
from evaluation_world import ProcessGroup
from evaluation_world import config as gain_config
from killing import in_child
from step_world import QUICK, two_textures

from gda.config.load import dump_config

OUT, ACCEPTED = "out", "accepted"  # what a command under test writes, next to links to what the chain made
_REAL, _SET, _GENERATOR = "data/real", "data/synthetic", "models/generator"
_PER_CLASS = 12  # images
_CHANGES = {"classify": {"arms": ["real", "real+synthetic"], "control_seeds": [0]}, "snapshot": {"source": "images"}}
_LOG = "chain.log"
_TOOLS = ("merge", "export", "recipes")  # which print no progress


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of the job by its words; `output` is the folder that it writes in the chain, where later commands need it.

    `database`: MLflow's database exists when the command starts. `gradual`: its files appear one by one, each whole.
    """

    name: str
    words: tuple[str, ...]
    output: str = ""
    database: bool = True
    gradual: bool = False

    def under_test(self) -> list[str]:
        """Its words, by which it writes `OUT` (and `ACCEPTED`)."""
        return self._writing(OUT, ACCEPTED)

    def in_chain(self) -> list[str]:
        """Its words, by which it writes `output`."""
        return self._writing(self.output, "data/accepted")

    def _writing(self, out: str, accepted: str) -> list[str]:
        return [*self.words, *(("--accepted", accepted) if self.words[0] == "validate" else ()), "--out", out]


def _classify(arm: str, seed: int) -> Command:
    words = ["classify", "--snapshot", _REAL, "--arm", arm, "--seed", str(seed)]
    words += ["--synthetic", "data/accepted", "--verdict", "reports/validation/verdict.json"] if arm != "real" else []
    return Command(name=f"classify {arm} {seed}", words=tuple(words), output=f"models/classifiers/{arm}-{seed}")


_GATE_INPUTS = ("--snapshot", _REAL, "--reference", "models/reference", "--generator", _GENERATOR)
_OTHER = ("--set", "seed=1")
_TUNED = ("--settings", "reports/tuning/settings.json")
_COMPARED = ("--synthetic", "data/accepted", "--verdict", "reports/validation/verdict.json")
COMMANDS = (
    Command(name="inputs", words=("inputs",), output="data/inputs", gradual=True),
    Command(name="snapshot", words=("snapshot", "images"), output=_REAL),
    Command(name="reference", words=("reference", "--snapshot", _REAL), output="models/reference"),
    Command(name="finetune", words=("finetune", "--snapshot", _REAL, "--base", "generator"), output=_GENERATOR),
    Command(name="tune", words=("tune", "--generator", _GENERATOR, "--snapshot", _REAL), output="reports/tuning"),
    Command(name="sample", words=("sample", "--generator", _GENERATOR, "--snapshot", _REAL, *_TUNED), output=_SET),
    Command(
        name="sample another", words=("sample", "--generator", _GENERATOR, "--snapshot", _REAL, *_TUNED, *_OTHER), output="data/second"
    ),
    Command(name="validate", words=("validate", "--synthetic", _SET, *_GATE_INPUTS), output="reports/validation"),
    *(_classify(arm, seed) for arm in ("real", "real+synthetic") for seed in (0, 1)),
    Command(
        name="evaluate", words=("evaluate", "--runs", "models/classifiers", "--snapshot", _REAL, *_COMPARED), output="reports/evaluation"
    ),
    Command(
        name="promote",
        words=("promote", "--evaluation", "reports/evaluation", "--verdict", "reports/validation/verdict.json"),
        output="reports/promotion",
        gradual=True,
    ),
    Command(
        name="promote a gain",
        words=("promote", "--params", "gain.yaml", "--evaluation", "reports/gain", "--verdict", "gain/verdict.json"),
        gradual=True,
    ),
    Command(name="merge", words=("merge", _SET, "data/second")),
    Command(name="export", words=("export", _REAL, "--to", "imagefolder")),
    Command(name="MLflow's first start", words=("snapshot", "images"), database=False),
)
# Another seed of a command is no other way to be killed.
_NO_OTHER_WAY = ("classify real 0", "classify real 1", "classify real+synthetic 1", "sample another")
TRIED = tuple(command for command in COMMANDS if command.name not in _NO_OTHER_WAY)


def build_chain(root: Path) -> Path:
    """Run every command of the job whose output another needs, below `root`; returns `root`. Raises `RuntimeError` where one fails."""
    two_textures(root, _PER_CLASS)
    content = {section: values | _CHANGES.get(section, {}) for section, values in QUICK.items()}
    content["finetune"] = content["finetune"] | {"base": "generator", "checkpointing_steps": 1, "num_train_steps": 6}
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    wanted = [command.in_chain() for command in COMMANDS if command.output]
    for words in (*wanted, _evaluated_gain(root)):
        if run_in_child(words, root) != 0:
            raise RuntimeError(f"{' '.join(words)}: {log_of(root)}")
    return root


def _evaluated_gain(root: Path) -> list[str]:
    """Write classifiers of which real and synthetic images together are far better; returns the words that evaluate them."""
    ProcessGroup(root / "gain")
    (root / "gain.yaml").write_text(yaml.safe_dump(dump_config(gain_config())))
    words = ["evaluate", "--params", "gain.yaml", "--runs", "gain/classifiers", "--snapshot", "gain/real", "--synthetic", "gain/synthetic"]
    return [*words, "--verdict", "gain/verdict.json", "--out", "reports/gain"]


def place_next_to(chain: Path, place: Path) -> Path:
    """A folder for one command: links to what the chain made, nothing of its work folder and no runs; returns `place`."""
    place.mkdir(parents=True)
    for name in ("images", "generator", "data", "models", "reports", "gain", "params.yaml", "gain.yaml"):
        (place / name).symlink_to(chain / name)
    return place


def enter(words: Sequence[str], place: Path) -> None:
    """In a process of its own: run a command in `place` with its work folder, ledger and MLflow database there; exits with its code."""
    from gda.cli.main import program

    os.chdir(place)
    os.environ["GDA_WORK_DIR"] = str(place / ".gda")
    os.environ["GDA_LEDGER"] = str(place / "test_ledger.jsonl")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow.db"
    os.environ.pop("MLFLOW_EXPERIMENT_NAME", None)
    with open(place / _LOG, "a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        try:
            program([*words, *(() if words[0] in _TOOLS else ("--quiet",))])
        except SystemExit as ended:
            os._exit(int(ended.code or 0))


def log_of(place: Path) -> str:
    """The end of what the commands in `place` printed."""
    path = place / _LOG
    return path.read_text()[-2000:] if path.is_file() else ""


def run_in_child(words: Sequence[str], place: Path) -> int:
    """Run a command in `place` in a forked process; its exit code."""
    return in_child(lambda: enter(words, place))

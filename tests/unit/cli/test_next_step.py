"""The next sensible command: a chain that leads from a snapshot to a promotion, and parses."""

import shlex
from pathlib import Path

import pytest

from gda.artifacts.outcome import Outcome
from gda.cli.next_step import next_step
from gda.cli.stage_commands import build_parser

CHAIN = [
    ("snapshot photos --out data/real", "finetune"),
    ("finetune --snapshot data/real --base B --out models/generator", "tune"),
    ("tune --generator models/generator --snapshot data/real --out reports/tuning", "sample"),
    ("sample --generator models/generator --snapshot data/real --settings s.json --out data/synthetic", "validate"),
    ("validate --synthetic data/synthetic --snapshot data/real --generator g --out reports/validation", "classify"),
    ("classify --arm real --snapshot data/real --out models/classifiers/real", "evaluate"),
]


def after(command: str, *, refused: bool = False, digest: str = "d") -> str | None:
    """What is suggested after a command that ended well."""
    args = build_parser().parse_args(shlex.split(command))
    output = Path(args.out) / "0" if args.command == "classify" else Path(args.out)  # the last seed of the arm
    return next_step(args, Outcome(output=output, digest=digest, summary="", refused=refused))


@pytest.mark.parametrize(("command", "follows"), CHAIN)
def test_each_stage_leads_to_the_next(command: str, follows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed can be typed as it is: the parser takes it, and it names the output of the command before."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "GDA_FAILURE_FILE"):
        monkeypatch.delenv(name, raising=False)
    said = after(command)
    assert said is not None
    typed = said.split(", ")[0]
    assert build_parser().parse_args(shlex.split(typed.removeprefix("gda "))).command == follows
    out = shlex.split(command)[-1]
    assert out in said or out.rsplit("/", 1)[0] in said


def test_after_evaluate_the_report_is_opened_and_the_candidate_promoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page first: a person decides whether to go on."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    said = after("evaluate --runs r --snapshot data/real --verdict v.json --out reports/evaluation")
    assert (
        said
        == "open reports/evaluation/report.html, and gda promote --evaluation reports/evaluation --verdict v.json --out reports/promotion"
    )


def test_a_refused_set_leads_to_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on it would be refused: the page says what to change."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    said = after("validate --synthetic s --snapshot r --out reports/validation", refused=True)
    assert said == "open reports/validation/index.html, which shows what failed and what to change"


@pytest.mark.parametrize("name", ["DVC_ROOT", "GDA_FAILURE_FILE"])
def test_a_job_that_knows_what_follows_is_not_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under dvc repro and gda run the sentence would be wrong or noise; a worker that leaves the rest to others has none either."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert after("finetune --snapshot r --base B --out g", digest="") is None
    monkeypatch.setenv(name, "x")
    assert after("finetune --snapshot r --base B --out g") is None

"""The Containerfile, checked without an engine: its required and forbidden content, and that its lock has this package's requirements."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from image_files import FOLDER, ROOT, instructions

from components.images import build
from components.images.build import bill_of_materials, build_command, lock_of, requirements, stale

LOCK = (FOLDER / "requirements.lock").read_text()
LOCKED = {line.split("==")[0] for line in LOCK.splitlines() if "==" in line and not line.startswith(" ")}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_both_targets_end_without_root() -> None:
    """A numeric user in group 0, as a cluster may give any other number in that group."""
    stages = [rest for instruction, rest in instructions() if instruction == "FROM"]
    assert [rest.split(" AS ")[1] for rest in stages] == ["install", "cpu", "gpu"]
    users = [rest for instruction, rest in instructions() if instruction == "USER"]
    assert users == ["10001:0"]


def test_nothing_comes_from_a_network() -> None:
    """No address, no package manager of the system; pip installs from the folder alone, and by hash."""
    text = (FOLDER / "Containerfile").read_text()
    assert not re.search(r"https?://|apt-get|apk |curl|wget|git clone", text)
    assert "ADD" not in {instruction for instruction, _ in instructions()}
    installs = re.findall(r"pip install[^&]*", " ".join(rest for instruction, rest in instructions() if instruction == "RUN"))
    assert len(installs) == 2
    assert all("--no-index" in install for install in installs)
    assert "--require-hashes" in installs[0]
    (installing,) = [rest for instruction, rest in instructions() if instruction == "RUN" and "pip install" in rest]
    assert "||" not in installing, "an installation that fails must fail the build"


def test_the_base_is_an_argument_and_no_moving_tag() -> None:
    """Each stage starts from the argument or from a stage before."""
    assert ("ARG", "BASE=python:3.11-slim-bookworm") in instructions()
    assert ":latest" not in (FOLDER / "Containerfile").read_text()
    assert [rest.split()[0] for instruction, rest in instructions() if instruction == "FROM"] == ["${BASE}", "${BASE}", "cpu"]


def test_all_that_libraries_keep_goes_to_the_scratch_folder() -> None:
    """The root cannot be written: every cache has a variable that sends it to /tmp."""
    variables = dict(
        word.split("=", 1) for instruction, rest in instructions() if instruction == "ENV" for word in rest.split() if "=" in word
    )
    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        assert variables[name].startswith("/tmp"), name
    assert ("WORKDIR", "/tmp") in instructions()


def test_the_lock_has_what_the_package_needs() -> None:
    """Every requirement but DVC, and the SDK of the pipelines, each line with a hash; no tools of developers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {_normal(re.split(r"[<>=!~\[ ]", line)[0]) for line in project["dependencies"]} - {"dvc"}
    assert needed | {"kfp", "kfp-kubernetes"} <= LOCKED
    assert {_normal(re.split(r"[<>=!~\[ ]", line)[0]) for line in requirements()} == needed | {"kfp", "kfp-kubernetes"}
    assert not {"dvc", "pytest", "mypy", "ruff", "pip"} & LOCKED
    entries = [entry for entry in LOCK.replace("\\\n", " ").splitlines() if entry.strip()]
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"https?://|--index-url|--find-links", LOCK)


def test_the_two_locks_agree() -> None:
    """What tests run with is what the image holds, at the same versions."""
    locked = dict(re.findall(r"^([a-z0-9.-]+)==([^ ;\\]+)", LOCK, re.M))
    ours: dict[str, set[str]] = {}  # several for one name, of several versions of Python
    for name, version in re.findall(r"^([a-z0-9.-]+)==([^ ;\\]+)", (ROOT / "requirements.lock").read_text(), re.M):
        ours.setdefault(name, set()).add(version)
    assert {name: version for name, version in locked.items() if version not in ours.get(name, {version})} == {}
    assert len(set(locked) & set(ours)) > 150


def test_the_bill_of_materials_is_the_lock() -> None:
    """CycloneDX: each locked package once, with version, URL and hashes; equal bytes for equal locks."""
    bill = bill_of_materials(LOCK)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert {component["name"] for component in bill["components"]} == LOCKED  # type: ignore[index, attr-defined]
    assert all(component["hashes"] for component in bill["components"])  # type: ignore[index, attr-defined]
    assert json.dumps(bill) == json.dumps(bill_of_materials(LOCK))


def test_the_builds_own_lock_names_every_wheel(tmp_path: Path) -> None:
    """A wheel that was put there and not named would not be installed; one that was changed is refused by pip."""
    (tmp_path / "b_x-1.0-py3-none-any.whl").write_bytes(b"1")
    (tmp_path / "a-2.0-py3-none-any.whl").write_bytes(b"2")
    (tmp_path / "gda-0.1.0-py3-none-any.whl").write_bytes(b"3")
    lines = lock_of(tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == ["a==2.0", "b_x==1.0"]
    assert lines[0].endswith("d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35")


@pytest.mark.parametrize(("engine", "verb"), [("docker", "build"), ("podman", "build"), ("buildah", "bud")])
def test_the_engines_command(engine: str, verb: str, tmp_path: Path) -> None:
    """Each engine gets the file, target, tag and arguments."""
    command = build_command(engine, tmp_path, target="gpu", tag="t", base="b")
    assert command[:2] == [engine, verb]
    assert command[command.index("--target") + 1] == "gpu"
    assert "BASE=b" in command
    assert command[-1] == str(tmp_path)


def test_wheels_of_an_earlier_lock_are_not_installed(tmp_path: Path) -> None:
    """The folder is kept between builds; what the lock no longer names goes, and so does this package's own wheel."""
    lock = "foo-bar==1.2 \\\n    --hash=sha256:00\nbaz==3.0.post1 --hash=sha256:01\n"
    names = [
        "foo_bar-1.2-py3-none-any.whl",
        "Foo.Bar-1.1-py3-none-any.whl",
        "baz-3.0.post1-cp311-cp311-any.whl",
        "gda-0.1.0-py3-none-any.whl",
    ]
    for name in [*names, "gone-1.0-py3-none-any.whl"]:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in stale(tmp_path, lock)] == [names[1], names[3], "gone-1.0-py3-none-any.whl"]


def test_the_revision_says_that_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of uncommitted files is not one of their commit."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1"\n')
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()

    def variables() -> str:
        words = build_command("docker", tmp_path, target="cpu", tag="t", base=None)
        return next(word for word in words if word.startswith("REVISION=")).partition("=")[2]

    assert variables() == head
    subprocess.run([*git, "add", "."], check=True)
    assert variables() == f"{head}-dirty"

"""Make the image: `python -m components.images.build --target cpu --tag gda:local`, with whichever of docker, podman and buildah is there.

The build itself has no network: wheels are fetched by the lock's hashes before, with this machine's own settings of the package index.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
ROOT = _FOLDER.parents[1]
ENGINES = ("docker", "podman", "buildah")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when the image is there, 5 where no engine is."""
    parser = argparse.ArgumentParser(prog="python -m components.images.build", description="Build the image that pipeline steps run in.")
    parser.add_argument("--target", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--tag", default="gda:local")
    parser.add_argument("--base", help="base image with Python 3.11 and sh (default: the Containerfile's)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "image", help="where wheels and the bill of materials are gathered")
    parser.add_argument("--engine", choices=ENGINES, help="default: the first that answers")
    parser.add_argument("--requirements", action="store_true", help="print what the image's lock is made from, build nothing")
    parser.add_argument("--gather-only", action="store_true", help="gather what the build needs, build nothing")
    args = parser.parse_args(argv)
    if args.requirements:
        print("\n".join(requirements()))
        return 0
    gather_files(args.folder)
    if args.gather_only:
        return 0
    engine = args.engine or find_engine()
    if engine is None:
        print(f"no container engine answers; looked for {', '.join(ENGINES)}", file=sys.stderr)
        return 5
    command = build_command(engine, args.folder, target=args.target, tag=args.tag, base=args.base)
    subprocess.run(command, check=True, env=build_environment())
    return 0


def find_engine() -> str | None:
    """The first engine that is installed and answers."""
    for engine in ENGINES:
        if shutil.which(engine) and subprocess.run([engine, "info"], capture_output=True, check=False).returncode == 0:
            return engine
    return None


def gather_files(folder: Path) -> None:
    """Put into `folder` what the build copies: the locked wheels, this package's, the lock, the bill of materials."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    lock = _FOLDER / "requirements.lock"
    for old in stale(wheels, lock.read_text("utf-8")):
        old.unlink()
    _pip("download", "--no-deps", "--require-hashes", "--prefer-binary", "-r", str(lock), "-d", str(wheels))
    for source in wheels.glob("*.tar.gz"):  # whose hash was checked; the image has no compiler to build it with
        _pip("wheel", "--no-deps", "-w", str(wheels), str(source))
        source.unlink()
    _pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(ROOT))
    (folder / "requirements.lock").write_text(lock_of(wheels), "utf-8")
    shutil.copy(_FOLDER / "Containerfile", folder / "Containerfile")
    bill = folder / "sbom.json"
    bill.write_text(json.dumps(bill_of_materials(lock.read_text("utf-8")), indent=1, sort_keys=True) + "\n", "utf-8")
    for file in (bill, folder / "requirements.lock"):
        file.chmod(0o644)  # as the image's user must read it, whatever this machine's umask is


def stale(wheels: Path, lock: str) -> list[Path]:
    """Wheels of an earlier lock, and this package's own: the image would have what neither its lock nor its bill of materials names."""
    locked = {(part["name"], part["version"]) for part in bill_of_materials(lock)["components"]}
    return [wheel for wheel in sorted(wheels.glob("*.whl")) if _named(wheel) not in locked]


def _named(wheel: Path) -> tuple[str, str]:
    name, version = wheel.name.split("-")[:2]
    return re.sub(r"[-_.]+", "-", name).lower(), version


def lock_of(wheels: Path) -> str:
    """A line for each wheel in the folder but this package's own, with its hash: what the build installs, and nothing else."""
    lines = []
    for wheel in sorted(wheels.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        if name != "gda":
            lines.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    return "\n".join(lines) + "\n"


def requirements() -> list[str]:
    """What the image needs of this package's requirements: all but DVC, which is for one's own machine, and those of Kubeflow Pipelines."""
    project = _project()
    needed = [line for line in project["dependencies"] if not line.startswith("dvc")]
    return needed + list(project["optional-dependencies"]["kfp"])


def bill_of_materials(lock: str) -> dict[str, Any]:
    """CycloneDX 1.6 of what the lock installs: name, version, package URL, hashes; equal for equal locks, so without a time."""
    components = []
    for entry in lock.replace("\\\n", " ").splitlines():
        words = entry.split()
        if not words or "==" not in words[0]:
            continue
        name, _, version = words[0].partition("==")
        hashes = [{"alg": "SHA-256", "content": word.partition("sha256:")[2]} for word in words if word.startswith("--hash=sha256:")]
        components.append({"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}", "hashes": hashes})
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}


def build_command(engine: str, folder: Path, *, target: str, tag: str, base: str | None) -> list[str]:
    """The engine's command line."""
    command = [engine, "bud" if engine == "buildah" else "build", "--file", str(folder / "Containerfile"), "--target", target, "--tag", tag]
    given = {"VERSION": _project()["version"], "REVISION": _revision()} | ({"BASE": base} if base else {})
    for name, value in given.items():
        command += ["--build-arg", f"{name}={value}"]
    return [*command, str(folder)]


def build_environment() -> dict[str, str]:
    """Without BuildKit where its plug-in is missing, as in Debian's package of Docker."""
    if shutil.which("docker") and subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode != 0:
        return {**os.environ, "DOCKER_BUILDKIT": "0"}
    return dict(os.environ)


def _pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words], check=True)


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project


def _revision() -> str:
    """The commit, and whether files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())

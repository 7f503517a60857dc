"""`python -m manifests.render`: the sources as kustomize renders them, checked in, so that they are read and checked without it.

Each rendered file states the digest of the sources and of its own text: a change of either without the other is seen where there
is no kustomize.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gda.errors import GdaError, MissingError

ROOT = Path(__file__).parent
RENDERED = ROOT / "rendered"
# Each rendered file, and the folder that it is made from.
TARGETS = {"base": "base", "local": "overlays/local", "standalone": "overlays/standalone"}
_SOURCES = ("base", "overlays", "components")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the rendered files, or compare them with `--check`; returns 0, 1 where they differ, 5 where kustomize is needed and missing."""
    parser = argparse.ArgumentParser(prog="python -m manifests.render", description="Render the manifests with kustomize.")
    parser.add_argument("--check", action="store_true", help="write nothing; by digest where there is no kustomize")
    args = parser.parse_args(argv)
    try:
        if args.check:
            return _check()
        for name in TARGETS:
            path = RENDERED / f"{name}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(render_manifests(name), "utf-8")
            print(f"wrote {path.relative_to(ROOT.parent)}")
    except GdaError as error:
        print(f"manifests: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _check() -> int:
    wrong = [line for name in TARGETS for line in rendering_differences(name)]
    print("\n".join(wrong) or f"{len(TARGETS)} rendered files are those of their sources")
    return 1 if wrong else 0


def rendering_differences(name: str, root: Path = ROOT, *, command: Sequence[str] | None = None) -> list[str]:
    """How the rendered file `name` is not what its sources render to, a line each; by digest, and by rendering where that can be done."""
    path = root / "rendered" / f"{name}.yaml"
    text = path.read_text("utf-8") if path.is_file() else ""
    head, _, body = text.partition("---\n")
    again = "run make manifests"
    if f"sources: {sources_digest(root)}" not in head:
        return [f"{path.name}: its sources have changed since it was rendered; {again}"]
    if f"text: {_digest(body.encode())}" not in head:
        return [f"{path.name}: was edited by hand; edit its sources and {again}"]
    command = command if command is not None else kustomize()
    if command and render_manifests(name, root, command=command) != text:
        return [f"{path.name}: is not what kustomize renders; {again}"]
    return []


def render_manifests(name: str, root: Path = ROOT, *, command: Sequence[str] | None = None) -> str:
    """The text of the rendered file `name`. Raises `MissingError` where there is no kustomize, or it refuses the sources."""
    command = command if command is not None else kustomize()
    if not command:
        raise MissingError("no kustomize; accepted: kustomize (5.x) or kubectl on the path, or GDA_KUSTOMIZE")
    done = subprocess.run([*command, str(root / TARGETS[name])], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingError(f"{' '.join(command)} {TARGETS[name]}: {' '.join(done.stderr.split())}")
    lines = (
        f"# {TARGETS[name]} as kustomize renders it. Made by make manifests; edit the sources.",
        f"# sources: {sources_digest(root)}",
        f"# text: {_digest(done.stdout.encode())}",
    )
    return "\n".join(lines) + "\n---\n" + done.stdout


def kustomize() -> list[str]:
    """The command that builds a folder: `GDA_KUSTOMIZE`, kustomize or kubectl, whichever is there first; empty where none is."""
    named = os.environ.get("GDA_KUSTOMIZE")
    if named:
        return [named, "build"]
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    return ["kubectl", "kustomize"] if shutil.which("kubectl") else []


def sources_digest(root: Path = ROOT) -> str:
    """Digest of every source by name and content."""
    files = sorted(path for folder in _SOURCES for path in (root / folder).rglob("*") if path.is_file())
    return _digest(*(part for path in files for part in (path.relative_to(root).as_posix().encode(), path.read_bytes())))


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return f"sha256:{digest.hexdigest()}"


if __name__ == "__main__":
    sys.exit(main())

"""What the image is made from, read as a person would."""

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "components" / "images"


def instructions() -> list[tuple[str, str]]:
    """The Containerfile as (instruction, rest), continued lines joined, comments left out."""
    text = re.sub(r"\\\n", " ", (FOLDER / "Containerfile").read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def why_not(image: str, *, engines: tuple[str, ...]) -> str:
    """Why the image cannot be run here; empty where it can."""
    engine = next((name for name in engines if shutil.which(name)), None)
    if engine is None:
        return f"none of {', '.join(engines)} is installed"
    if subprocess.run([engine, "info"], capture_output=True, check=False).returncode != 0:
        return f"{engine} does not answer"
    if subprocess.run([engine, "image", "inspect", image], capture_output=True, check=False).returncode != 0:
        return f"there is no image {image}; make image builds it"
    return ""

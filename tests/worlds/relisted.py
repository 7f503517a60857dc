"""Rewrites the list of files, or the card, of an output after a test changed it, as a forger would."""

import json
from pathlib import Path

from gda.artifacts.contents import FILES, SEAL, with_files
from gda.generator.weights.directory import weights_digest


def relist(folder: Path) -> None:
    """Make `fingerprint.json` of `folder` list the files that are there now, where there is one."""
    path = folder / "fingerprint.json"
    if path.is_file():
        content = {name: value for name, value in json.loads(path.read_text()).items() if name not in (FILES, SEAL)}
        path.write_text(json.dumps(with_files(content, folder)))


def recard(generator: Path) -> None:
    """Make `generator.json`, where there is one, name the weights and configurations that are there now."""
    path = generator / "generator.json"
    if not path.is_file():
        return
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": weights_digest(generator)}))

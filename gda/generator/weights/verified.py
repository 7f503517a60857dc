"""Whether an exported generator still is the one that its card names."""

from collections.abc import Callable, Mapping
from pathlib import Path

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.contents import FINGERPRINT_FILE, recorded_files, require_whole
from gda.artifacts.fingerprint import digest_of
from gda.errors import DataError
from gda.io.tensors import directory_digest

# Digests of directories without a list of files, by what the file system says of their files.
_computed: dict[tuple[object, ...], str] = {}


def with_adapters(weights: str, path: Path, adapters: Mapping[str, str]) -> str:
    """Digest of a generator whose parts have the digest `weights`, with its adapters (class name -> folder below `path`)."""
    if not adapters:
        return weights
    return digest_of([weights, {name: directory_digest(path / folder) for name, folder in adapters.items()}])


def require_generator(path: Path, card: GeneratorCard, weights: Callable[[], str], *, listed: bool = True) -> GeneratorCard:
    """`card`, once the files of the generator at `path` are those that `fingerprint.json` lists; without a list, once they have its digest.

    `weights` computes the digest of its parts. A folder that holds the files in use alone, as of a hub, is not compared with the list
    (`listed`), and adapters that are not in it are not looked for. Raises `DataError` naming a file that differs, or the directory.
    """
    if listed and recorded_files(path) is not None:
        require_whole(path, advice=f"remove {path} and make it again")
        return card
    if not all((path / folder).is_dir() for folder in card.adapters.values()) and not listed:
        return card
    identity = _identity(path)
    if identity not in _computed:
        _computed[identity] = with_adapters(weights(), path, card.adapters)
    if _computed[identity] != card.digest:
        found = _computed[identity]
        raise DataError(f"{path}: its weights and configurations are {found[:12]}, but generator.json is the card of {card.digest[:12]}")
    return card


def _identity(path: Path) -> tuple[object, ...]:
    """Changes with every file that plays a part in the digest."""
    files = sorted(file for pattern in ("*.safetensors", "*.json") for file in path.rglob(pattern) if file.name != FINGERPRINT_FILE)
    stats = ((file, file.stat()) for file in files)
    return (path.resolve(), *((str(file), s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for file, s in stats))

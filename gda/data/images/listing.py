"""Lists a folder: images, recognised by content, and every other file with the reason why it is not an image."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Files with these endings count as images whatever they hold, so that a damaged one is counted and not skipped.
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".avif", ".heic")
HEAD = 512  # bytes of a file from which its format is recognised
_CLUTTER = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "#recycle", "@recycle", "$recycle.bin", "lost+found", "ehthumbs.db"}
_SIGNATURES = (
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("WebP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    ("BMP", re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
    ("PPM", re.compile(rb"P[1-6]\s+(#[^\n]*\n\s*)?[0-9]+\s+[0-9]+\s")),
    ("AVIF", re.compile(rb".{4}ftypavi[fs]", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("HEIC", re.compile(rb".{4}ftyp(hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL)),
    ("JPEG 2000", re.compile(rb"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51")),
    ("JPEG XL", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n")),
    ("Photoshop", re.compile(rb"8BPS\0\x01")),
    ("OpenEXR", re.compile(rb"\x76\x2f\x31\x01")),
    ("DICOM", re.compile(rb".{128}DICM", re.DOTALL)),
    ("SVG", re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]", re.DOTALL)),
)


@dataclass
class Folder:
    """A folder with its images and its folders, both sorted by name; `others` are files that are not images."""

    path: Path
    images: list[Path] = field(default_factory=list)
    folders: list["Folder"] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its last part."""
        return self.path.name

    def walk(self) -> Iterator["Folder"]:
        """This folder and all below it."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting += reversed(folder.folders)

    def all_images(self) -> list[Path]:
        """Images anywhere below."""
        return [path for folder in self.walk() for path in folder.images]

    @property
    def holds_images(self) -> bool:
        """Whether there are images anywhere below."""
        return any(folder.images for folder in self.walk())


@dataclass
class Listing:
    """A listed folder; `hidden` counts files of thumbnail, system and hidden folders by the name of that folder or file."""

    root: Folder
    hidden: Counter[str] = field(default_factory=Counter)

    def left_out(self, used: Collection[Path] = ()) -> Counter[str]:
        """Counts by reason of the files that are not read, except those in `used`."""
        found = Counter({f"hidden or of the system ({', '.join(sorted(self.hidden)[:3])})": self.hidden.total()} if self.hidden else {})
        others = Counter(
            path.suffix.lower()[:8] or "no ending" for folder in self.root.walk() for path in folder.others if path not in used
        )
        if others:
            common = ", ".join(ending for ending, _ in sorted(others.items(), key=lambda item: (-item[1], item[0]))[:3])
            found[f"no image ({common})"] = others.total()
        return found


def image_format(head: bytes) -> str | None:
    """The image format that a file's first `HEAD` bytes show, accepted or not; None for everything else."""
    return next((name for name, signature in _SIGNATURES if signature.match(head)), None)


def list_folder(root: Path) -> Listing:
    """Everything below `root`; links to folders are followed, each real folder once. Raises `OSError` for folders that cannot be read."""
    listing = Listing(root=Folder(path=root))
    nodes, seen = {str(root): listing.root}, set[str]()
    for here, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        node = nodes[here]
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in [name for name in folders if _is_clutter(name)]:
            listing.hidden[name] += sum(len(files) for _, _, files in os.walk(os.path.join(here, name)))
            folders.remove(name)
        folders.sort()
        node.folders = [nodes.setdefault(os.path.join(here, name), Folder(path=Path(here, name))) for name in folders]
        for name in sorted(names):
            if _is_clutter(name):
                listing.hidden[name if name.lower() in _CLUTTER else "." + name.rpartition(".")[2]] += 1
            else:
                path = Path(here, name)
                (node.images if is_image(path) else node.others).append(path)
    listing.hidden = +listing.hidden
    return listing


def is_image(path: Path) -> bool:
    """Whether the file is an image by its content, or by its ending, in which case it may be damaged."""
    if path.suffix.lower() in IMAGE_ENDINGS:
        return True
    return path.is_file() and image_format(read_head(path)) is not None


def read_head(path: Path) -> bytes:
    """The first bytes of a file; empty for a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def _raise(error: OSError) -> None:
    raise error  # os.walk would skip folders that it cannot read

"""Folders of photographs: crops of the pictures that scikit-learn and matplotlib carry, one class per region of a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image
from sklearn.datasets import load_sample_image

# Class -> picture and the region (left, top, right, bottom) of it in shares of its sides.
REGIONS = {
    "sky": ("china", (0.0, 0.0, 1.0, 0.3)),
    "temple": ("china", (0.3, 0.25, 0.75, 0.75)),
    "lakeside": ("china", (0.0, 0.65, 1.0, 1.0)),
    "petals": ("flower", (0.25, 0.1, 0.75, 0.65)),
    "leaves": ("flower", (0.0, 0.6, 0.35, 1.0)),
    "meadow": ("flower", (0.7, 0.0, 1.0, 0.7)),
    "face": ("portrait", (0.25, 0.1, 0.75, 0.5)),
    "uniform": ("portrait", (0.1, 0.6, 0.9, 1.0)),
}


def write_photographs(
    folder: Path, *, per_class: int, side: int = 64, classes: Sequence[str] = tuple(REGIONS), seed: int = 0
) -> dict[str, str]:
    """Write `<class>/<number>.jpg` of `side` pixels; returns the class of every file by its name relative to `folder`."""
    pictures = {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")}
    with get_sample_data("grace_hopper.jpg") as file:
        pictures["portrait"] = Image.open(file).convert("RGB")
    rng, written = np.random.default_rng(seed), {}
    for name in classes:
        picture, region = REGIONS[name]
        image = pictures[picture]
        left, top, right, bottom = (round(share * length) for share, length in zip(region, (image.width, image.height) * 2, strict=True))
        for number in range(per_class):
            extent = int(rng.integers(48, min(110, right - left, bottom - top)))
            x, y = int(rng.integers(left, right - extent + 1)), int(rng.integers(top, bottom - extent + 1))
            crop = image.crop((x, y, x + extent, y + extent)).resize((side, side), Image.Resampling.BICUBIC)
            path = folder / name / f"{number:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            crop.save(path, quality=92)
            written[path.relative_to(folder).as_posix()] = name
    return written

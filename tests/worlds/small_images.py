"""Images for a snapshot that takes a second."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def small_images(tmp_path_factory):
    """Two classes of 12 images with their splits, no two alike."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                grey = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(grey).resize((24, 24), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return root

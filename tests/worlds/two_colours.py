"""The smallest world that sampling and tuning need: two classes distinguished by colour, and a tiny cascade."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gda.config.load import load_config
from gda.demo_base.build import build_tiny_cascade
from gda.stages import snapshot

# Columns that the manifest of a synthetic set has in addition to those of a real one.
SYNTHETIC_COLUMNS: Mapping[str, Any] = {
    "seed": 1,
    "prompt": "p",
    "negative_prompt": "",
    "guidance_scale": 1.5,
    "num_inference_steps": 4,
    "scheduler": "ddim",
    "source_image": "",
    "generator_digest": "9" * 64,
}


def two_colours(root: Path, per_class: int) -> Path:
    """Write `images/`, its snapshot `real/` and a random-weight `generator/` into `root`; returns `root`."""
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (root / "images" / name).mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(np.full((16, 16, 3), [c + i for c in colour], np.uint8)).save(root / "images" / name / f"{i}.png")
    snapshot.run(load_config(None), source=str(root / "images"), out=root / "real")
    build_tiny_cascade(root / "generator")
    return root

"""The folder of the Hugging Face hub cache."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The hub cache by the current environment; huggingface_hub itself reads these variables once, at import."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub"
    return Path(os.path.expandvars(cache)).expanduser()

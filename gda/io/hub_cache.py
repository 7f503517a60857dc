"""Where models of a hub lie on this machine."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The hub cache as the environment says now; huggingface_hub reads these variables once, at import."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub"
    return Path(os.path.expandvars(cache)).expanduser()

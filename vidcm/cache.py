"""The folder for what can be found out again: copies of remote files, facts about media."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """VIDCM_CACHE, or `vidcm` in XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("VIDCM_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "vidcm"

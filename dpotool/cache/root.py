"""The folder of what dpotool can compute again: log-probabilities, and the built-in model."""

from __future__ import annotations

import os
from pathlib import Path

DEMO_PREFIX = "demo-"
"""The built-in model lies in demo-<hash of what it is made of>."""
MADE = "made.json"
"""In it: the SHA-256 of every file as it was made; without it, it was not made to its end."""
MAKING_PREFIX = "tmp-demo-"
"""Beside it while it is made, or after that was killed."""


def cache_root() -> Path:
    """Returns $DPOTOOL_CACHE, else ~/.cache/dpotool."""
    return Path(os.environ.get("DPOTOOL_CACHE", "~/.cache/dpotool")).expanduser()


def store_root() -> Path:
    """Returns the folder of log-probabilities, of policies too, one folder in it for each (model, numeric types).

    A release that changes what is computed for the same weights and tokens takes another name here.
    """
    return cache_root() / "reference"

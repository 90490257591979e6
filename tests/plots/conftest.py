"""What the tests of pictures share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def only_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn and named but not written, which takes most of their time."""
    monkeypatch.setattr("dpotool.plots.gallery.save_figure", lambda figure, stem, formats: [Path(f"{stem}.png")])

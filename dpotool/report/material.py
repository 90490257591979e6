"""All that a report is made from, collected once and handed to every section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpotool.compare.findings import Findings
from dpotool.plots.scene import Scene
from dpotool.report.config import ReportConfig
from dpotool.report.texts import TextSource


@dataclass(frozen=True, slots=True)
class Material:
    """All that a report is made from."""

    findings: Findings
    scene: Scene
    texts: TextSource
    paths: list[str]
    """What the user named."""
    config: ReportConfig
    """What the report was told."""
    manifests: dict[str, Mapping[str, Any]]
    """label -> run.yaml"""
    dpi: int
    """Dots per inch of the figures."""

"""Writes a theory table with its summary beside it, with the metadata of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState

from dpotool.gradients.engine import EngineReport
from dpotool.likelihood.subject import OpenSubject
from dpotool.runs.about import Fingerprints, TheoryAbout
from dpotool.runs.schemas import THEORY_SCHEMA
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import write_table
from dpotool.settings.scoring import TheoryConfig


def describe_table(
    config: TheoryConfig, opened: OpenSubject, report: EngineReport, *, at_reference: bool
) -> TheoryAbout:
    """Returns what table and summary say of themselves: model, data, scales, and which parameters count."""
    fingerprint = opened.pair_set.source.fingerprint
    return TheoryAbout(
        **opened.describe("theory-gap", Fingerprints(data=fingerprint)),
        data_fingerprint=fingerprint,
        gamma=config.gamma,
        parameters=report.parameters,
        n_parameters=report.n_parameters,
        n_parameters_by_form=report.n_by_form,
        autograd_fallback=list(report.fallback),
        at_reference=at_reference,
    )


def write_theory(
    config: TheoryConfig, opened: OpenSubject, frame: pd.DataFrame, about: TheoryAbout, summary: dict[str, Any]
) -> Path:
    """Writes table, summary and, into a folder without one, a manifest; of several processes the first one does."""
    folder, source = opened.subject.folder, opened.pair_set.source
    part = "" if config.parameters == "all" else config.parameters
    variant = "-".join(filter(None, (opened.subject.variant, part)))  # a part never replaces the whole
    path = folder.table_path("theory", source.name, source.split, format=config.format, variant=variant)
    if not PartialState().is_main_process:
        return path
    write_table(frame, path, THEORY_SCHEMA, about.to_dict(), format=config.format)
    write_summary(path, summary)
    opened.note_run("theory")
    return path

"""What pictures are drawn from: the runs and tables in the folders on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dpotool.compare.diagnosed_run import DiagnosedRun, find_diagnosis, need_changes
from dpotool.compare.differences import Comparison
from dpotool.compare.findings import Findings, conclude
from dpotool.compare.runs_table import expand_sweeps, find_series, make_unique, open_runs
from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError
from dpotool.plots.registry import NEEDS, Drawing, PlotKind
from dpotool.runs.about import read_metadata
from dpotool.runs.folder import RunFolder
from dpotool.runs.places import tell_path
from dpotool.runs.summaries import need_summary, read_summary
from dpotool.runs.tables import read_table
from dpotool.settings.reading import PlotConfig


@dataclass(frozen=True, slots=True)
class FoundTable:
    """A theory or prediction table with what it says of itself and the summary beside it."""

    path: Path
    about: dict[str, Any]
    summary: dict[str, Any]
    """Empty where there is none."""

    @property
    def frame(self) -> pd.DataFrame:
        """The table itself."""
        return read_table(self.path)

    @property
    def title(self) -> dict[str, str]:
        """Model and data, as every picture's title says them."""
        return {"model": str(self.about.get("label")), "data": f"{self.about.get('data')} [{self.about.get('split')}]"}

    @property
    def n_excluded(self) -> int:
        """Pairs left out before the table was made."""
        return int(self.about.get("n_excluded", 0))


class Scene:
    """The runs a picture is made of, each opened once, and what the title says of them."""

    def __init__(
        self,
        everything: Sequence[RunFolder],
        config: PlotConfig,
        findings: Findings | None = None,
    ) -> None:
        """Takes the folders as they were named.

        Args:
            everything: all run folders named, sweeps' folders included; theory tables may be in any of them.
            findings: the findings on these runs, if they are known already. The theory table is then the
                one that is a forecast of these runs; without them it is the first folder's newest.
        """
        self.everything = list(everything)
        self.config = config
        self._is_known = findings is not None
        self._drawings: dict[str, Drawing] = {}
        if findings is not None:
            self.findings = findings
            self.runs = findings.comparison.scored

    @cached_property
    def runs(self) -> list[ScoredRun]:
        """Scored runs, in the order given."""
        folders = [folder for folder in self.everything if folder.list_tables("score")]
        return open_runs(folders, data=self.config.data, split=self.config.split, limit=self.config.limit)

    @cached_property
    def findings(self) -> Findings:
        """Differences from the baseline and what follows. Raises DpotoolError where runs cannot be compared."""
        return conclude(self.need_runs(), self.everything)

    @property
    def comparison(self) -> Comparison:
        """Differences from the baseline, pair by pair."""
        return self.findings.comparison

    @property
    def recommended(self) -> str | None:
        """Label of the run to take; None where none can be recommended, or the runs cannot be compared."""
        try:
            found = self.findings.recommendation
        except DpotoolError:
            return None
        return found.recommended if found is not None and len(self.runs) > 1 else None

    def draw(self, kind: PlotKind) -> Drawing:
        """Returns a picture of that kind, which is drawn once. Raises DpotoolError for what the scene lacks."""
        if kind.name not in self._drawings:
            self._drawings[kind.name] = kind.draw(self)
        return self._drawings[kind.name]

    def need_runs(self) -> list[ScoredRun]:
        """Returns the scored runs. Raises DpotoolError, with the remedy, where there is none."""
        if not self.runs:
            where = str(self.everything[0].path)
            raise DpotoolError("no scores here", where=where, remedy=f"Run `dpotool score {where}` first")
        return self.runs

    @property
    def title(self) -> dict[str, str]:
        """Model and data, as every picture's title says them; of several checkpoints, the run that they are of."""
        first = self.need_runs()[0]
        models = [str(run.manifest["config"].get("model") or run.label) for run in self.runs]
        series = find_series(models)
        return {
            "model": tell_path(models[0] if series is None else str(series[0])),
            "data": f"{first.data} [{first.split}]",
        }

    def list_logs(self) -> dict[str, RunFolder]:
        """Returns label -> run that logged while training; the label of one that is not scored is its folder's name."""
        scored = {run.folder.path: run.label for run in self.runs}
        folders = sorted(self.everything, key=lambda folder: folder.path not in scored)
        labels = [scored.get(folder.path, folder.name) for folder in folders]
        found = dict(zip(make_unique(labels, folders), folders, strict=True))
        return {label: folder for label, folder in found.items() if folder.metrics_path.exists()}

    def read_metrics(self) -> dict[str, pd.DataFrame]:
        """Returns label -> metrics rows, of the runs that logged while training."""
        return {label: pd.DataFrame(folder.read_metrics()) for label, folder in self.list_logs().items()}

    def find_theory(self, entry: str | None = None) -> FoundTable | None:
        """Returns the first folder's newest theory table, of those whose summary has something under `entry`."""
        return next((found for found in self._read_all("theory") if entry is None or found.summary.get(entry)), None)

    def need_theory(self, entry: str | None = None) -> FoundTable:
        """Returns what `find_theory` does; raises DpotoolError, with the remedy, where there is none."""
        found = self.find_theory(entry)
        if found is not None:
            return found
        where = str(self.everything[0].path)
        if self.find_theory() is None:
            whose = " of the model that the runs started from, made before training" if self._is_known else " here"
            raise DpotoolError(f"no theory table{whose}", where=where, remedy="Run `dpotool theory-gap` first")
        remedy = "Run `dpotool theory-gap` again, without --pairs-only and on at least 4 pairs"
        raise DpotoolError(f"no theory summary with {entry} here", where=where, remedy=remedy)

    def need_prediction(self) -> FoundTable:
        """Returns the first folder's newest prediction table; raises DpotoolError, with the remedy, without one."""
        found = next(self._read_all("prediction"), None)
        if found is None:
            where = str(self.everything[0].path)
            raise DpotoolError("no prediction table here", where=where, remedy=f"Run `dpotool predict {where}` first")
        return found

    @cached_property
    def diagnosis(self) -> DiagnosedRun | None:
        """The first folder's newest diagnosis; beside findings that of the baseline, if there is one."""
        if self._is_known:
            base = self.findings.base
            return find_diagnosis(self.everything, data=base.data, split=base.split, run=base)
        return find_diagnosis(self.everything, data=self.config.data, split=self.config.split)

    def need_diagnosis(self) -> DiagnosedRun:
        """Returns the diagnosis, which knows changes; raises DpotoolError, with the remedy, without one."""
        if self.diagnosis is None:
            where = str(self.everything[0].path)
            raise DpotoolError("no diagnosis here", where=where, remedy=f"Run `dpotool diagnose {where}` first")
        return need_changes(self.diagnosis)

    def _read_all(self, kind: str) -> Iterator[FoundTable]:
        paths = [path for folder in self.everything for path in NEEDS[kind].find(folder)]
        for path in paths:
            about = read_metadata(path)
            is_wanted = _matches(about, self.config)
            if kind == "theory" and self._is_known:
                is_wanted = path == self.findings.theory_table
            if is_wanted:
                yield FoundTable(path, about, (read_summary if kind == "theory" else need_summary)(path, kind) or {})


def read_scene(paths: Sequence[str], config: PlotConfig) -> Scene:
    """Collects the runs that the paths stand for. Raises DpotoolError for a folder that is no run."""
    return Scene(expand_sweeps(paths), config)


def _matches(about: dict[str, Any], config: PlotConfig) -> bool:
    asked = {"data": config.data, "split": config.split}
    return all(value in (None, about.get(name)) for name, value in asked.items())


def require_references(runs: Sequence[ScoredRun]) -> None:
    """Refuses runs whose change from a reference cannot be drawn.

    Raises:
        DpotoolError: a run was scored without a reference.
    """
    for run in runs:
        if not run.is_referenced:
            raise DpotoolError("no change to draw", where=run.label, remedy="Score it again with --reference")

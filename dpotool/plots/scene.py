"""What a picture can be made of: the runs and tables that the folders on the command line hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dpotool.compare.comparison import expand_sweeps, make_unique, open_runs, tabulate_runs
from dpotool.compare.scored_run import ScoredRun
from dpotool.plots.config import PlotConfig
from dpotool.runs.folder import RunFolder, read_summary
from dpotool.runs.places import tell_path
from dpotool.runs.tables import read_metadata, read_table


@dataclass(frozen=True, slots=True)
class Findings:
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


@dataclass(frozen=True, slots=True)
class Scene:
    """The runs a picture is made of, labelled, and what the title says of them."""

    runs: pd.DataFrame
    """Runs table (`compare.comparison`); empty where nothing is scored."""
    scored: list[ScoredRun]
    """The same runs with their pairs, in the table's order."""
    everything: list[RunFolder]
    """All run folders named, a sweep's own included; theory tables may lie in any of them."""
    config: PlotConfig
    theory: Path | None = None
    """The theory table to draw; without it the first folder's newest that the settings name."""

    @property
    def title(self) -> dict[str, str]:
        """Model and data, as every picture's title says them."""
        first = self.runs.iloc[0]
        model = first["label"] if pd.isna(first["model"]) else first["model"]  # an import knows none
        return {"model": tell_path(str(model)), "data": f"{first['data']} [{first['split']}]"}

    def read_scores(self) -> dict[str, pd.DataFrame]:
        """Returns label -> score table."""
        return {run.label: run.table for run in self.scored}

    def list_logs(self) -> dict[str, RunFolder]:
        """Returns label -> run that logged while training; one that is not scored goes by its folder's name."""
        known = [run.folder for run in self.scored]
        others = [folder for folder in self.everything if folder not in known]
        labels = [*(run.label for run in self.scored), *(folder.name for folder in others)]
        folders = [*known, *others]
        found = dict(zip(make_unique(labels, folders), folders, strict=True))
        return {label: folder for label, folder in found.items() if folder.metrics_path.exists()}

    def read_metrics(self) -> dict[str, pd.DataFrame]:
        """Returns label -> metrics rows, of the runs that logged while training."""
        return {label: pd.DataFrame(folder.read_metrics()) for label, folder in self.list_logs().items()}

    def find_theory(self, holds: Callable[[dict[str, Any]], Any] = lambda _: True) -> Findings | None:
        """Returns the first folder's newest theory table, of those whose summary `holds` what is needed."""
        return next((found for found in self._read_all("theory") if holds(found.summary)), None)

    def find_prediction(self) -> Findings | None:
        """Returns the first folder's newest prediction table."""
        return next(self._read_all("prediction"), None)

    def _read_all(self, table: str) -> Iterator[Findings]:
        if table == "theory" and self.theory is not None:
            yield Findings(self.theory, read_metadata(self.theory), read_summary(self.theory) or {})
            return
        for folder in self.everything:
            for path in folder.list_theory() if table == "theory" else folder.list_predictions():
                about = read_metadata(path)
                if _matches(about, self.config):
                    yield Findings(path, about, read_summary(path) or {})


def read_scene(paths: Sequence[str], config: PlotConfig) -> Scene:
    """Collects the runs that the paths stand for."""
    everything = expand_sweeps(paths)
    scored = open_runs([run for run in everything if run.list_scores()], data=config.data, split=config.split)
    return Scene(tabulate_runs(scored), scored, everything, config)


def _matches(about: dict[str, Any], config: PlotConfig) -> bool:
    asked = {"data": config.data, "split": config.split}
    return all(value in (None, about.get(name)) for name, value in asked.items())

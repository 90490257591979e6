"""From run folders to picture files: which tables a picture needs, and where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.plots.accuracy import plot_accuracy
from dpotool.plots.config import PlotConfig
from dpotool.plots.displacement import plot_displacement
from dpotool.plots.margin import plot_margin
from dpotool.plots.theme import save_figure
from dpotool.plots.theory import plot_theory
from dpotool.plots.tradeoff import plot_tradeoff
from dpotool.plots.trajectory import plot_trajectory
from dpotool.results.comparison import collect_runs, find_scores
from dpotool.results.runs import RunFolder, list_runs
from dpotool.results.tables import read_metadata, read_table

ALL = "all"


@dataclass(frozen=True, slots=True)
class Scene:
    """The runs a picture is made of, labelled, and what the title says of them."""

    runs: pd.DataFrame
    """Runs table (`results.comparison`); empty where nothing is scored."""
    folders: list[RunFolder]
    """Trained or scored runs, in the table's order."""
    everything: list[RunFolder]
    """All run folders named, a sweep's own included; theory tables may lie in any of them."""
    config: PlotConfig

    @property
    def title(self) -> dict[str, str]:
        """Model and data, as every picture's title says them."""
        first = self.runs.iloc[0]
        return {"model": str(first["model"]), "data": f"{first['data']} [{first['split']}]"}

    def read_scores(self) -> dict[str, pd.DataFrame]:
        """Returns label -> score table."""
        return {
            str(label): read_table(find_scores(folder, data=self.config.data, split=self.config.split))
            for label, folder in zip(self.runs["label"], self.folders, strict=True)
        }

    def read_metrics(self) -> dict[str, pd.DataFrame]:
        """Returns label -> metrics rows, of the runs that trained."""
        return {
            str(label): pd.DataFrame(folder.read_metrics())
            for label, folder in zip(self.runs["label"], self.folders, strict=True)
            if folder.metrics_path.exists()
        }


@dataclass(slots=True)
class Gallery:
    """Pictures that were written, and those that could not be drawn from these runs."""

    paths: list[Path] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """kind -> why, only where `all` was asked for."""


def draw(kind: str, paths: Sequence[str], config: PlotConfig) -> Gallery:
    """Draws one kind of picture, or all that these runs have the tables for.

    Args:
        paths: run or sweep folders; a sweep stands for its runs.

    Raises:
        DpotoolError: unknown kind, a folder that is no run, or nothing to draw that kind from.
    """
    check_kind(kind)
    scene = read_scene(paths, config)
    folder = Path(config.output) if config.output else RunFolder(Path(paths[0])).plots_folder
    formats = [name.strip() for name in config.format.split(",") if name.strip()]
    gallery = Gallery()
    for name in KINDS if kind == ALL else [kind]:
        try:
            figures = KINDS[name](scene)
        except DpotoolError as error:
            if kind != ALL:
                raise
            gallery.skipped[name] = str(error)
            continue
        for stem, figure in figures.items():
            gallery.paths += save_figure(figure, folder / stem, formats)
    if not gallery.paths:
        raise DpotoolError("nothing to draw from", where=paths[0], remedy=next(iter(gallery.skipped.values())))
    return gallery


def check_kind(kind: str) -> None:
    """Raises DpotoolError, naming the nearest, for a picture that is not known."""
    if kind not in (*KINDS, ALL):
        raise DpotoolError(f"unknown picture {kind!r}", where="plot", remedy=suggest_nearest(kind, [*KINDS, ALL]))


def read_scene(paths: Sequence[str], config: PlotConfig) -> Scene:
    """Collects the runs that the paths stand for."""
    everything: list[RunFolder] = []
    for path in paths:
        folder = RunFolder(Path(path))
        manifest = folder.read_manifest()
        everything += _cells(folder) if manifest["kind"] == "sweep" else [folder]
    scored = [folder for folder in everything if folder.list_scores()]
    runs = collect_runs(scored, data=config.data, split=config.split) if scored else pd.DataFrame()
    return Scene(runs, scored, everything, config)


def _cells(sweep: RunFolder) -> list[RunFolder]:
    """Returns a sweep's folder and its runs, DPO first, then by falling lambda, then schedules."""
    inside = [run for run in list_runs(sweep.path) if run.path.resolve() != sweep.path.resolve()]

    def order(run: RunFolder) -> tuple[bool, float, str]:
        settings = run.read_manifest()["config"]
        fixed = 1.0 if settings.get("loss") == "dpo" else settings.get("lambda_")
        return (fixed is None, -(fixed or 0.0), run.name)

    return [sweep, *sorted(inside, key=order)]


def _need_scores(scene: Scene) -> None:
    if scene.runs.empty:
        where = str(scene.everything[0].path)
        raise DpotoolError("no scores here", where=where, remedy=f"Run `dpotool score {where}` first")


def _displacement(scene: Scene) -> dict[str, Figure]:
    _need_scores(scene)
    return {"displacement": plot_displacement(scene.read_scores(), **scene.title)}


def _margin(scene: Scene) -> dict[str, Figure]:
    _need_scores(scene)
    return {"margin": plot_margin(scene.read_scores(), **scene.title)}


def _accuracy(scene: Scene) -> dict[str, Figure]:
    _need_scores(scene)
    return {"accuracy": plot_accuracy(scene.runs, **scene.title)}


def _tradeoff(scene: Scene) -> dict[str, Figure]:
    _need_scores(scene)
    return {
        "tradeoff": plot_tradeoff(scene.runs, **scene.title),
        "tradeoff-margin": plot_tradeoff(scene.runs, **scene.title, against="reward_margins"),
    }


def _trajectory(scene: Scene) -> dict[str, Figure]:
    _need_scores(scene)
    metrics = scene.read_metrics()
    if not metrics:
        where = str(scene.everything[0].path)
        raise DpotoolError("no metrics.jsonl here", where=where, remedy="Only runs of `dpotool train` log a trajectory")
    return {"trajectory": plot_trajectory(metrics, **scene.title, n_eval_pairs=_count_evaluated(scene))}


def _count_evaluated(scene: Scene) -> int | None:
    """Returns how many pairs the runs were evaluated on in training, where they agree; scores may be of other data."""
    found = {folder.read_manifest()["data"].get("eval", {}).get("n_pairs") for folder in scene.folders}
    return found.pop() if len(found) == 1 else None


def _theory(scene: Scene) -> dict[str, Figure]:
    tables = [path for folder in scene.everything for path in folder.list_theory()]
    tables = [path for path in tables if _matches(read_metadata(path), scene.config)]
    if not tables:
        where = str(scene.everything[0].path)
        raise DpotoolError("no theory table here", where=where, remedy="Run `dpotool theory-gap` first")
    about = read_metadata(tables[0])
    title = {"model": str(about.get("label")), "data": f"{about.get('data')} [{about.get('split')}]"}
    return {"theory": plot_theory(read_table(tables[0]), **title, n_excluded=int(about.get("n_excluded", 0)))}


def _matches(about: dict[str, Any], config: PlotConfig) -> bool:
    asked = {"data": config.data, "split": config.split}
    return all(value in (None, about.get(name)) for name, value in asked.items())


KINDS: dict[str, Callable[[Scene], dict[str, Figure]]] = {
    "displacement": _displacement,
    "margin": _margin,
    "accuracy": _accuracy,
    "tradeoff": _tradeoff,
    "trajectory": _trajectory,
    "theory": _theory,
}
"""Name on the command line -> how its figures are made, by the stem of their files."""

"""From run folders to picture files: which tables a picture needs, and where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dpotool.compare.outcomes import measure_outcomes
from dpotool.compare.theory_check import select_forecast
from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.plots.accuracy import plot_accuracy
from dpotool.plots.band import plot_band
from dpotool.plots.config import PlotConfig
from dpotool.plots.displacement import plot_displacement
from dpotool.plots.forecast import plot_forecast
from dpotool.plots.gap import plot_gap
from dpotool.plots.gap_ladder import plot_gap_ladder
from dpotool.plots.margin import plot_margin
from dpotool.plots.prediction import plot_prediction
from dpotool.plots.quadrants import plot_quadrants
from dpotool.plots.scene import Findings, Scene, read_scene
from dpotool.plots.theme import save_figure
from dpotool.plots.theory import plot_theory
from dpotool.plots.tradeoff import plot_tradeoff
from dpotool.plots.trajectory import plot_trajectory
from dpotool.runs.folder import RunFolder

ALL = "all"


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


def _quadrants(scene: Scene) -> dict[str, Figure]:
    _need_scores(scene)
    return {"quadrants": plot_quadrants(scene.read_scores(), **scene.title)}


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
    metrics = scene.read_metrics()  # of runs that are not scored too: what they logged needs no scores
    if not metrics:
        _need_scores(scene)
        where = str(scene.everything[0].path)
        raise DpotoolError("no metrics.jsonl here", where=where, remedy="Only runs of `dpotool train` log a trajectory")
    title = {"model": ", ".join(metrics), "data": ""} if scene.runs.empty else scene.title
    return {"trajectory": plot_trajectory(metrics, **title, n_eval_pairs=_count_evaluated(scene))}


def _count_evaluated(scene: Scene) -> int | None:
    """Returns how many pairs the runs were evaluated on in training, where they agree; scores may be of other data."""
    manifests = [folder.read_manifest() for folder in scene.list_logs().values()]
    found = {manifest["data"].get("eval", {}).get("n_pairs") for manifest in manifests}
    return found.pop() if len(found) == 1 else None


def _theory(scene: Scene) -> dict[str, Figure]:
    found = _need_theory(scene)
    return {"theory": plot_theory(found.frame, **found.title, n_excluded=found.n_excluded)}


def _band(scene: Scene) -> dict[str, Figure]:
    found = _need_theory(scene)
    advice = found.summary.get("advice", {}).get(found.summary.get("advice_from"), {})
    recommended = advice.get("recommended_lambda")
    return {"band": plot_band(found.frame, **found.title, n_excluded=found.n_excluded, recommended=recommended)}


def _gap(scene: Scene) -> dict[str, Figure]:
    found = _need_theory(scene, "gaps")
    figures = {"gap": plot_gap(found.summary, **found.title)}
    if "verification" in found.summary:
        figures["gap-ladder"] = plot_gap_ladder(found.summary["verification"], **found.title)
    return figures


def _forecast(scene: Scene) -> dict[str, Figure]:
    found = _need_theory(scene, "advice")
    return {"forecast": plot_forecast(found.summary["advice"], **found.title, outcomes=find_outcomes(scene, found))}


def find_outcomes(scene: Scene, found: Findings) -> pd.DataFrame | None:
    """Returns what the runs of the model that a forecast is of measured (`compare.outcomes`); None without any run."""
    if scene.runs.empty:
        return None
    return measure_outcomes(select_forecast(found.about, scene.runs), {run.label: run for run in scene.scored})


def _prediction(scene: Scene) -> dict[str, Figure]:
    found = scene.find_prediction()
    if found is None:
        where = str(scene.everything[0].path)
        raise DpotoolError("no prediction table here", where=where, remedy=f"Run `dpotool predict {where}` first")
    return {"prediction": plot_prediction(found.frame, **found.title, about=found.about | found.summary)}


def _need_theory(scene: Scene, entry: str | None = None) -> Findings:
    """Returns the newest theory table, of those whose summary has something under `entry`."""
    found = scene.find_theory(lambda summary: entry is None or summary.get(entry))
    if found is not None:
        return found
    where = str(scene.everything[0].path)
    if scene.find_theory() is None:
        raise DpotoolError("no theory table here", where=where, remedy="Run `dpotool theory-gap` first")
    remedy = "Run `dpotool theory-gap` again, without --pairs-only and on at least 4 pairs"
    raise DpotoolError(f"no theory summary with {entry} here", where=where, remedy=remedy)


KINDS: dict[str, Callable[[Scene], dict[str, Figure]]] = {
    "displacement": _displacement,
    "margin": _margin,
    "quadrants": _quadrants,
    "accuracy": _accuracy,
    "tradeoff": _tradeoff,
    "trajectory": _trajectory,
    "theory": _theory,
    "band": _band,
    "gap": _gap,
    "forecast": _forecast,
    "prediction": _prediction,
}
"""Name on the command line -> how its figures are made, by the stem of their files."""

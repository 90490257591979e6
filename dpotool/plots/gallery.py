"""From run folders to picture files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpotool.errors import DpotoolError
from dpotool.plots.registry import ALL, choose_plots
from dpotool.plots.scene import Scene, read_scene
from dpotool.plots.theme import save_figure
from dpotool.runs.folder import RunFolder
from dpotool.settings.reading import PlotConfig


@dataclass(slots=True)
class Gallery:
    """Pictures that were written, and those that could not be drawn from these runs."""

    paths: list[Path] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """kind -> reason, for `all` only."""


def draw(kind: str, paths: Sequence[str], config: PlotConfig, scene: Scene | None = None) -> Gallery:
    """Draws one kind of picture, or `all` that these runs have the tables for.

    Args:
        paths: run or sweep folders; a sweep stands for its runs.
        scene: what to draw from, if it is known already; what was drawn of it before is not drawn again.

    Raises:
        DpotoolError: unknown kind, a folder that is no run, or nothing to draw that kind from.
    """
    kinds = choose_plots(kind, config.y)
    scene = scene or read_scene(paths, config)
    folder = Path(config.output) if config.output else RunFolder(Path(paths[0])).plots_folder
    formats = [name.strip() for name in config.format.split(",") if name.strip()]
    gallery = Gallery()
    for each in kinds:
        try:
            drawing = scene.draw(each)
        except DpotoolError as error:
            if kind != ALL:
                raise
            gallery.skipped[each.name] = str(error)
            continue
        gallery.paths += save_figure(drawing.figure, folder / each.name, formats)
    if not gallery.paths:
        raise DpotoolError("nothing to draw from", where=paths[0], remedy=next(iter(gallery.skipped.values())))
    return gallery

"""From scored runs to one page: collects, draws, renders and writes it. No model, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dpotool import __version__
from dpotool.compare.findings import Findings, find_out
from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.plots.scene import Scene
from dpotool.report.blocks import Page, Picture, map_text
from dpotool.report.pairs import TextSource
from dpotool.report.render import DPI, fit_page, render_markdown
from dpotool.report.sections import Material, build_sections
from dpotool.runs.atomic import write_bytes, write_text
from dpotool.runs.places import hide_folders
from dpotool.settings.reading import PlotConfig, ReportConfig
from dpotool.wording import count

FORMATS = {"html": ".html", "markdown": ".md"}
FindTexts = Callable[[Findings, int], TextSource]
"""From findings and the number of pairs to show, to the texts of those pairs."""


@dataclass(frozen=True, slots=True)
class Report:
    """A page that was written."""

    path: Path
    page: Page
    findings: Findings
    scene: Scene
    """What its figures were drawn from."""


def no_texts(findings: Findings, n_pairs: int) -> TextSource:
    """Returns no texts, for callers without access to the data."""
    return TextSource(problem="the data was not asked for.")


def write_report(paths: Sequence[str], config: ReportConfig, *, find_texts: FindTexts = no_texts) -> Report:
    """Writes the report on the runs under these paths; returns its path and its content.

    Raises DpotoolError when a path is no run, nothing is scored, or the format or output cannot be used.
    """
    _choose_format(config)  # before any work
    findings = find_out(
        paths, baseline=config.baseline, data=config.data, split=config.split, limit=config.limit, seed=config.seed
    )
    scene = Scene(
        findings.folders, PlotConfig(data=config.data, split=config.split, limit=config.limit), findings=findings
    )
    texts = find_texts(findings, config.pairs)

    def build(dpi: int) -> Page:
        return _build_page(Material(findings, scene, texts, list(paths), config, dpi))

    target, page = write_page(build, paths, config)
    return Report(target, page, findings, scene)


def write_page(build: Callable[[int], Page], paths: Sequence[str], config: ReportConfig) -> tuple[Path, Page]:
    """Writes the page that `build` makes at some dots per inch, as small and without folders as a page must be.

    Raises DpotoolError when the format or output cannot be used.
    """

    def build_to_send(dpi: int) -> Page:
        return hide_paths(map_text(build(dpi), lambda text: text.replace("log pi(", "log π(")))

    format_ = _choose_format(config)
    target = Path(config.output) if config.output else Path(paths[0]) / f"report{FORMATS[format_]}"
    if format_ == "html":
        page, html = fit_page(build_to_send)
        write_text(target, html)
    else:
        page = build_to_send(DPI)
        folder = target.with_suffix("").with_name(f"{target.stem}_pictures")
        for picture in _list_pictures(page):
            write_bytes(folder / f"{picture.name}.png", picture.png)
        write_text(target, render_markdown(page, folder.name))
    return target, page


def hide_paths(page: Page, here: Path | None = None) -> Page:
    """Returns the page with every path cut to what is below `here` (the working directory) or to its name.

    So a page that is sent to others shows no folder of the machine it was made on. Texts of pairs are left as they
    are; figures are drawn with names that are told so already.
    """
    return map_text(page, lambda text: hide_folders(text, here))


def sign_page() -> str:
    """Returns the last line of a page: what wrote it, and when."""
    return f"Written by dpotool {__version__}, {datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC')}."


def _build_page(material: Material) -> Page:
    """Collects everything the page says, in no format yet."""
    comparison, title = material.findings.comparison, material.scene.title
    n, base = len(comparison.runs), material.findings.base
    subtitle = f"{count(n, 'model')} on {title['data']}, n = {base.n}"
    return Page(
        title=f"Likelihood displacement: {title['model']}",
        subtitle=f"{subtitle}; log-likelihoods are sums over the tokens of an answer, in nats",
        sections=build_sections(material),
        footer=sign_page(),
    )


def _choose_format(config: ReportConfig) -> str:
    if config.format is not None:
        if config.format not in FORMATS:
            raise DpotoolError(
                f"unknown format {config.format!r}", where="--format", remedy=suggest_nearest(config.format, FORMATS)
            )
        return config.format
    return "markdown" if config.output and Path(config.output).suffix in (".md", ".markdown") else "html"


def _list_pictures(page: Page) -> list[Picture]:
    return [block for section in page.sections for block in section.blocks if isinstance(block, Picture)]

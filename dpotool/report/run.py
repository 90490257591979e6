"""From scored runs to one page: collects, draws, sets and writes it. No model, no torch."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from dpotool import __version__
from dpotool.compare.findings import Findings, find_out
from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.plots.config import PlotConfig
from dpotool.plots.scene import Scene
from dpotool.report.blocks import Page, Picture, map_text
from dpotool.report.config import ReportConfig
from dpotool.report.material import Material
from dpotool.report.paths import hide_paths
from dpotool.report.sections import build_sections
from dpotool.report.size import DPI, fit_page
from dpotool.report.texts import TextSource
from dpotool.runs.atomic import write_bytes, write_text

FORMATS = {"html": ".html", "markdown": ".md"}
FindTexts = Callable[[Findings, int], TextSource]
"""From findings and the number of pairs to show, to the texts of those pairs."""


@dataclass(frozen=True, slots=True)
class Report:
    """A page that was written."""

    path: Path
    page: Page
    findings: Findings


def no_texts(findings: Findings, n_pairs: int) -> TextSource:
    """For callers that have no way to the data."""
    return TextSource(problem="the data was not asked for")


def write_report(paths: Sequence[str], config: ReportConfig, *, find_texts: FindTexts = no_texts) -> Report:
    """Writes the report on the runs that the paths stand for; returns where it is and what it says.

    Raises DpotoolError when a path is no run, nothing is scored, or the format or output cannot be used.
    """
    _choose_format(config)  # before any work
    findings = find_out(paths, baseline=config.baseline, data=config.data, split=config.split, seed=config.seed)
    texts = find_texts(findings, config.pairs)

    def build(dpi: int) -> Page:
        return build_page(paths, findings, config, texts, dpi)

    target, page = write_page(build, paths, config)
    return Report(target, page, findings)


def write_page(build: Callable[[int], Page], paths: Sequence[str], config: ReportConfig) -> tuple[Path, Page]:
    """Writes the page that `build` makes at some dots per inch, as small and without folders as a page must be.

    Raises DpotoolError when the format or output cannot be used.
    """

    def build_to_send(dpi: int) -> Page:
        return hide_paths(map_text(build(dpi), lambda text: text.replace("log pi(", "log π(")))

    format_ = _choose_format(config)
    target = Path(config.output) if config.output else Path(paths[0]) / f"report{FORMATS[format_]}"
    if format_ == "html":
        page, html = fit_page(build_to_send, render_html)
        write_text(target, html)
    else:
        page = build_to_send(DPI)
        folder = target.with_suffix("").with_name(f"{target.stem}_pictures")
        for picture in _pictures(page):
            write_bytes(folder / f"{picture.name}.png", picture.png)
        write_text(target, render_markdown(page, folder.name))
    return target, page


def build_page(
    paths: Sequence[str], findings: Findings, config: ReportConfig, texts: TextSource, dpi: int = DPI
) -> Page:
    """Collects everything the page says, in no format yet."""
    comparison = findings.comparison
    settings = PlotConfig(data=config.data, split=config.split)
    scene = Scene(comparison.runs, comparison.scored, findings.folders, settings, findings.theory_table)
    manifests = {run.label: run.manifest for run in comparison.scored}
    material = Material(findings, scene, texts, list(paths), config, manifests, dpi)
    first = comparison.runs.iloc[0]
    n = len(comparison.runs)
    subtitle = f"{n} model{'' if n == 1 else 's'} on {first['data']} [{first['split']}], n = {first['n']}"
    return Page(
        title=f"Likelihood displacement: {scene.title['model']}",
        subtitle=f"{subtitle}; log-likelihoods are sums over completion tokens in nats",
        sections=build_sections(material),
        footer=sign_page(),
    )


def sign_page() -> str:
    """Returns the last line of a page: what wrote it, and when."""
    return f"Written by dpotool {__version__}, {datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC')}."


def render_html(page: Page) -> str:
    """Returns the page as one HTML file that needs nothing else: no script, no font, no picture from elsewhere."""
    return _environment(is_html=True).get_template("report.html.j2").render(page=page)


def render_markdown(page: Page, picture_folder: str) -> str:
    """Returns the page as Markdown that shows the pictures in a folder beside it."""
    return _environment(is_html=False).get_template("report.md.j2").render(page=page, pictures=picture_folder)


def _environment(*, is_html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dpotool.report"),
        autoescape=is_html,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    environment.filters["cell"] = _escape_markdown
    environment.filters["interval"] = _set_interval
    environment.filters["inline"] = _set_commands
    environment.filters["fenced"] = _fence
    return environment


def _set_interval(cell: str) -> Markup:
    """A number with its interval on a line below it, which makes tables half as wide."""
    value, bracket, interval = cell.partition(" [")
    if not (bracket and interval.endswith("]")):
        return escape(cell)
    return Markup('{} <span class="ci">[{}</span>').format(value, interval)


def _set_commands(text: str) -> Markup:
    """What stands between backticks as code; everything else as it is."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _escape_markdown(text: str) -> str:
    """Text that Markdown shows as it stands: no HTML, table end, heading or emphasis out of a label or a prompt."""
    for sign in "\\`*_[]|":
        text = text.replace(sign, "\\" + sign)
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")


def _fence(text: str, language: str = "text") -> str:
    """Text in a code fence longer than any run of backticks inside it, so that nothing in it can end it."""
    longest = max((len(part) for part in "".join(c if c == "`" else " " for c in text).split()), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _choose_format(config: ReportConfig) -> str:
    if config.format is not None:
        if config.format not in FORMATS:
            raise DpotoolError(
                f"unknown format {config.format!r}", where="--format", remedy=suggest_nearest(config.format, FORMATS)
            )
        return config.format
    return "markdown" if config.output and Path(config.output).suffix in (".md", ".markdown") else "html"


def _pictures(page: Page) -> list[Picture]:
    return [block for section in page.sections for block in section.blocks if isinstance(block, Picture)]

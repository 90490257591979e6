"""A page as one HTML file of at most 5 MB that needs nothing else, or as Markdown with its pictures beside it."""

from __future__ import annotations

import base64
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import jinja2
from markupsafe import Markup, escape

from dpotool.errors import DpotoolError
from dpotool.plots.registry import find_plots
from dpotool.report.blocks import Block, Page, PairText, Paragraph, Picture, TokenText
from dpotool.wording import count

LIMIT = 5_000_000
"""Largest size of an HTML page in bytes, which can be mailed and opens at once on a phone."""
DPI = 120
SMALL_DPI = 84
"""Below it the figures' smallest print can no longer be read."""
MOST_CHARACTERS = 2_000


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
    """Returns HTML with the text between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _escape_markdown(text: str) -> str:
    """Returns a text that Markdown shows literally: no HTML, table end, heading or emphasis from a label or prompt."""
    for sign in "\\`*_[]|":
        text = text.replace(sign, "\\" + sign)
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")


def _fence(text: str, language: str = "text") -> str:
    """Text in a code fence longer than any run of backticks inside it, so that nothing in it can end it."""
    longest = max((len(part) for part in "".join(c if c == "`" else " " for c in text).split()), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def fit_page(build: Callable[[int], Page], limit: int = LIMIT) -> tuple[Page, str]:
    """Returns the fullest page whose HTML is not larger than `limit` bytes, and that HTML.

    First figures get coarser, then texts shorter, then figures go, those of the last rank first; the page says so.

    Args:
        build: makes the page with figures of so many dots per inch.

    Raises DpotoolError when even without figures it is too large.
    """
    size = 0
    for page in _shrink(build):
        html = render_html(page)
        size = len(html.encode("utf-8", "backslashreplace"))
        if size <= limit:
            return page, html
    raise DpotoolError(
        f"the page would have {size / 1e6:.1f} MB even without figures",
        where="report",
        expected=f"at most {limit / 1e6:g} MB",
        remedy="Report on fewer runs, or on fewer pairs with --pairs",
    )


def _shrink(build: Callable[[int], Page]) -> Iterator[Page]:
    """Pages of falling size, each of which says what it lacks."""
    yield build(DPI)
    page = build(SMALL_DPI)
    yield _say(page, "Figures are coarser")
    page = _map_blocks(page, lambda block: _cut_pair(block) if isinstance(block, PairText) else block)
    yield _say(page, f"Figures are coarser and texts are cut to {count(MOST_CHARACTERS, 'character')}")
    for kind in reversed(find_plots().values()):
        page = _drop(page, kind.name)
        yield _say(page, f"Some figures are left out and texts are cut to {count(MOST_CHARACTERS, 'character')}")


def _say(page: Page, what: str) -> Page:
    return replace(page, footer=f"{page.footer} {what} to keep this page below {LIMIT / 1e6:g} MB.")


def _cut_pair(pair: PairText) -> PairText:
    def cut(text: str) -> str:
        left_out = len(text) - MOST_CHARACTERS
        return f"{text[:MOST_CHARACTERS]} … [{count(left_out, 'character')} left out]" if left_out > 0 else text

    def cut_tokens(tokens: Sequence[TokenText]) -> Sequence[TokenText]:
        ends = list(accumulate(len(token.text) for token in tokens))
        n = bisect_right(ends, MOST_CHARACTERS)
        rest = TokenText(f" … [{count(len(tokens) - n, 'token')} left out]", "left out to keep the page small")
        return tokens if n == len(tokens) else [*tokens[:n], rest]

    return replace(
        pair,
        prompt=cut(pair.prompt),
        chosen=cut(pair.chosen),
        rejected=cut(pair.rejected),
        chosen_tokens=cut_tokens(pair.chosen_tokens),
        rejected_tokens=cut_tokens(pair.rejected_tokens),
    )


def _drop(page: Page, name: str) -> Page:
    def change(block: Block) -> Block:
        if not isinstance(block, Picture) or block.name != name:
            return block
        return Paragraph(
            f"This figure was left out to keep the page small; `dpotool plot {name}` draws it. {block.caption} "
            f"In words: {block.alt}",
            tone="note",
        )

    return _map_blocks(page, change)


def _map_blocks(page: Page, change: Callable[[Block], Block]) -> Page:
    sections = [replace(section, blocks=[change(block) for block in section.blocks]) for section in page.sections]
    return replace(page, sections=sections)

"""Keeps a page below 5 MB: first smaller pictures, then shorter texts, then fewer pictures, and it says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from dpotool.errors import DpotoolError
from dpotool.report.blocks import Block, Page, PairText, Paragraph, Picture

LIMIT = 5_000_000
"""Bytes of a whole HTML page: what goes through by mail, and opens at once on a phone."""
DPI = 120
SMALL_DPI = 84
"""Below it the figures' smallest print can no longer be read."""
MOST_CHARACTERS = 2_000
LEAST_VALUABLE = ("margin", "trajectory", "theory", "quadrants", "accuracy", "tradeoff", "forecast", "displacement")
"""Figures in the order in which they go: those whose numbers a table repeats, or another figure, before the others."""


def fit_page(build: Callable[[int], Page], render: Callable[[Page], str], limit: int = LIMIT) -> tuple[Page, str]:
    """Returns the fullest page that is not larger than `limit` bytes, and its HTML.

    Args:
        build: makes the page with figures of so many dots per inch.

    Raises DpotoolError when even without figures it is too large.
    """
    size = 0
    for page in _shrink(build):
        html = render(page)
        size = len(html.encode())
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
    page = _cut_texts(page)
    yield _say(page, f"Figures are coarser and texts are cut to {MOST_CHARACTERS:,} characters")
    for name in LEAST_VALUABLE:
        page = _drop(page, name)
        yield _say(page, f"Some figures are left out and texts are cut to {MOST_CHARACTERS:,} characters")


def _say(page: Page, what: str) -> Page:
    return replace(page, footer=f"{page.footer} {what} to keep this page below {LIMIT / 1e6:g} MB.")


def _cut_texts(page: Page) -> Page:
    return _map_blocks(page, lambda block: _cut_pair(block) if isinstance(block, PairText) else block)


def _cut_pair(pair: PairText) -> PairText:
    def cut(text: str) -> str:
        left_out = len(text) - MOST_CHARACTERS
        return f"{text[:MOST_CHARACTERS]} … [{left_out:,} characters left out]" if left_out > 0 else text

    return replace(pair, prompt=cut(pair.prompt), chosen=cut(pair.chosen), rejected=cut(pair.rejected))


def _drop(page: Page, name: str) -> Page:
    def change(block: Block) -> Block:
        if not isinstance(block, Picture) or block.name != name:
            return block
        return Paragraph(
            f"Left out to keep this page small: {block.caption} `dpotool plot {name}` draws it. In words: {block.alt}",
            tone="note",
        )

    return _map_blocks(page, change)


def _map_blocks(page: Page, change: Callable[[Block], Block]) -> Page:
    sections = [replace(section, blocks=[change(block) for block in section.blocks]) for section in page.sections]
    return replace(page, sections=sections)

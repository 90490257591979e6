"""What a report is made of: sections of paragraphs, tables, pictures, code and texts of pairs, in no format yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text."""

    text: str
    tone: str = "plain"
    """plain, lead (what to remember), note (small print) or warning."""
    kind: str = "paragraph"


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]
    kind: str = "bullets"


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column names its rows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_text: bool = False
    """Whether the cells are words, set left, and not numbers."""
    kind: str = "table"


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with its alternative text."""

    name: str
    png: bytes
    alt: str
    caption: str
    width: int
    height: int
    kind: str = "picture"


@dataclass(frozen=True, slots=True)
class Code:
    """Commands to type."""

    text: str
    kind: str = "code"


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token of an answer, and how far it moved."""

    text: str
    about: str
    """Its numbers, shown where one points at it."""
    tone: str = ""
    """fell-1 to fell-3, rose-1 to rose-3, or nothing where it hardly moved."""
    is_alone: bool = False
    """Whether the other answer does not have it."""


@dataclass(frozen=True, slots=True)
class PairText:
    """One pair with its numbers."""

    title: str
    numbers: str
    prompt: str
    chosen: str
    rejected: str
    chosen_tokens: Sequence[TokenText] = ()
    """The chosen answer token by token, shown in its place; empty where nobody looked into it."""
    rejected_tokens: Sequence[TokenText] = ()
    moved: str = ""
    """Which tokens fell most, in a sentence; empty if that is not known."""
    kind: str = "pair"


@dataclass(frozen=True, slots=True)
class Subheading:
    """Begins a part of a section."""

    text: str
    kind: str = "subheading"


Block = Paragraph | Bullets | Table | Picture | Code | PairText | Subheading


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with a heading and an address."""

    id: str
    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report."""

    title: str
    subtitle: str
    sections: list[Section]
    footer: str


def map_text(page: Page, change: Callable[[str], str]) -> Page:
    """Returns the page with every text changed but those of pairs and figures."""
    sections = [
        replace(section, blocks=[_map_block(block, change) for block in section.blocks]) for section in page.sections
    ]
    return replace(page, title=change(page.title), subtitle=change(page.subtitle), sections=sections)


def _map_block(block: Block, change: Callable[[str], str]) -> Block:
    if isinstance(block, Paragraph | Code):
        return replace(block, text=change(block.text))
    if isinstance(block, Bullets):
        return replace(block, items=[change(item) for item in block.items])
    if isinstance(block, Table):
        rows = [[change(cell) for cell in row] for row in block.rows]
        columns = [change(column) for column in block.columns]
        return replace(block, caption=change(block.caption), columns=columns, rows=rows)
    return block

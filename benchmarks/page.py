"""Puts benchmark results into a page of the documentation, between two markers that carry the benchmark's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def format_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Lays rows out as a Markdown table with the columns of all of them; numbers to three digits."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([_format(row.get(column)) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _format(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def replace_section(page: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- bench:name -->` and `<!-- /bench:name -->`, or adds it at the page's end."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    section = f"{begin}\n{text}\n{end}"
    old = page.read_text(encoding="utf-8") if page.exists() else "# Performance\n"
    if begin in old and end in old:
        head, rest = old.split(begin, 1)
        new = head + section + rest.split(end, 1)[1]
    else:
        new = f"{old.rstrip()}\n\n{section}\n"
    page.write_text(new, encoding="utf-8")

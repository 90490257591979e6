"""How long work tells what it is doing: notes and progress. Silent by default; the command line brings the bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Receives notes and advances; this base class drops them, so library code may call it freely."""

    def note(self, text: str) -> None:
        """Something the user should know that is no result (goes to stderr)."""

    def warn(self, text: str) -> None:
        """Something that may spoil the result."""

    shows_bars: bool = False
    """Whether anybody sees bars, so that a library's own may be shown too."""

    @contextmanager
    def track(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yields a function that advances a bar of `total` units by n."""
        yield lambda n: None


SILENT = Progress()

"""Notes and progress of long work. Silent by default; the command line shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Receives notes and advances; this base class drops them, so library code may call it freely."""

    def note(self, text: str) -> None:
        """Says something the user should know that is no result; the command line prints it to stderr."""

    def warn(self, text: str) -> None:
        """Says something that may spoil the result."""

    shows_bars: bool = False
    """Whether progress bars are shown, so that those of libraries may be shown too."""

    @contextmanager
    def track(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yields a function that advances a bar of `total` units by n."""
        yield lambda n: None


SILENT = Progress()

"""What a command prints: results on stdout; notes, warnings and progress on stderr; one JSON object with --json.

Only characters that a terminal can show, and to a stdout that may be full or closed: every name and text from a file,
folder, model or template goes through `printable` before a terminal sees it.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from dpotool.progress import Progress
from dpotool.stats import intervals

if TYPE_CHECKING:
    from dpotool.estimates.estimate import Estimate

PIPED_WIDTH = 200
"""Width of a table in a pipe or file, in characters."""
ANSWER_WIDTH = 80
"""Columns of the first screen."""
SECONDS_BETWEEN_LINES = 30.0
"""Between two lines of progress where there is no terminal to show a bar."""
_INSTANT = 0.05


class Console(Progress):
    """Prints for a command. In a distributed run only the main process prints."""

    def __init__(self, *, as_json: bool = False) -> None:
        from rich.console import Console as RichConsole

        self.as_json = as_json
        self.is_main = _is_main_process()
        self._said: set[str] = set()
        width = None if sys.stdout.isatty() else PIPED_WIDTH
        self._out = RichConsole(soft_wrap=True, highlight=False, markup=False, width=width)
        self.err = RichConsole(stderr=True, soft_wrap=True, highlight=False, markup=False)
        self.shows_bars = self.is_main and self.is_terminal

    @property
    def is_terminal(self) -> bool:
        """Whether stderr, where progress is shown, is a terminal."""
        return bool(self.err.is_terminal)

    @contextmanager
    def keep_bars_off(self) -> Iterator[None]:
        """Shows no bars while the block runs: something else moves on the screen."""
        kept, self.shows_bars = self.shows_bars, False
        try:
            yield
        finally:
            self.shows_bars = kept

    def note(self, text: str) -> None:
        """Prints a note on stderr, once: what a sweep's runs have in common need not be said by each."""
        if self.is_main and text not in self._said:
            self._said.add(text)
            self.err.print(printable(text), style="dim")

    def warn(self, text: str) -> None:
        if self.is_main:
            self.err.print(f"warning: {printable(text)}", style="yellow")

    def say(self, text: str = "") -> None:
        """Prints a line of the result; nothing with --json."""
        if self.is_main and not self.as_json:
            self._out.print(printable(text))

    def say_styled(self, parts: Sequence[tuple[str, str]]) -> None:
        """Prints a line of the result made of (text, style); the styles show on a terminal only."""
        from rich.text import Text

        if self.is_main and not self.as_json:
            self._out.print(Text.assemble(*((printable(text), style) for text, style in parts)))

    def answer(self, *sentences: str) -> None:
        """Prints sentences of the first screen as one paragraph that fits a narrow terminal."""
        if sentences:
            self.say(textwrap.fill(" ".join(sentences), ANSWER_WIDTH, break_long_words=False, break_on_hyphens=False))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table; the first column is left-aligned, the others right.

        In a terminal that is too narrow its lines run over the edge: rich would cut the numbers short instead.
        """
        from rich import box
        from rich.measure import Measurement
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(printable(column), justify="right" if number else "left", no_wrap=number > 0)
        for row in rows:
            table.add_row(*map(printable, row))
        if self.is_main and not self.as_json:
            natural = Measurement.get(self._out, self._out.options.update(max_width=10_000), table).maximum
            self._out.width = max(self._out.width, natural)
            self.say("\n".join([*textwrap.wrap(title, max(ANSWER_WIDTH, natural), break_on_hyphens=False), ""]))
            self._out.print(table)
            self.say()

    def finish(self, result: dict[str, Any]) -> None:
        """Prints the machine-readable result, with --json only."""
        if self.is_main and self.as_json:
            from dpotool.runs.atomic import to_json_plain

            is_ascii = not (sys.stdout.encoding or "").lower().startswith("utf")
            sys.stdout.write(format_json(to_json_plain(result), is_ascii=is_ascii) + "\n")

    @contextmanager
    def track(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Shows a bar with rate and time left where stderr is a terminal, elsewhere a line now and then."""
        description = printable(description)
        if not self.shows_bars:
            yield self._tell_lines(description, total)
            return
        from rich import progress as bars

        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            _rate_column(),
            bars.TimeRemainingColumn(),
        )
        with bars.Progress(*columns, console=self.err, transient=True) as progress:
            task = progress.add_task(description, total=total)
            yield lambda n: progress.advance(task, n)

    def _tell_lines(self, description: str, total: int) -> Callable[[int], None]:
        """Returns a function that counts what is done and prints a line every half minute."""
        began = last = time.monotonic()
        first = done = 0

        def advance(n: int) -> None:
            nonlocal first, done, last
            now = time.monotonic()
            if now - began < _INSTANT:  # what lay there already says nothing about the pace
                first += n
            done += n
            if now - last < SECONDS_BETWEEN_LINES or not self.is_main or self.is_terminal:
                return
            last = now
            pace = (done - first) / (now - began)
            left = f", about {format_duration((total - done) / pace)} left" if pace and done < total else ""
            self.err.print(f"{description}: {done} of {total}{left}", style="dim")

        return advance


def _is_main_process() -> bool:
    """Tells without importing accelerate, whose launcher sets RANK."""
    import os

    return int(os.environ.get("RANK", "0")) == 0


def _rate_column() -> Any:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Units per second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f}/s" if speed else "-/s")

    return RateColumn()


def format_interval(value: dict[str, float] | None, digits: int = 2, scale: float = 1.0) -> str:
    """Returns '1.23 [1.10, 1.36]' for a summary's {mean|value, ci_low, ci_high}; '-' for None."""
    return intervals.format_interval(value, f"z.{digits}f", scale)


def format_number(value: float, digits: int) -> str:
    """Returns a number with so many digits behind the point; what rounds to zero has no sign."""
    return f"{value:z.{digits}f}"


def format_bytes(n_bytes: float) -> str:
    """Returns a size as people read it: '870 B', '3.7 MB', '1.2 GB' (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def format_duration(seconds: float) -> str:
    """Returns a duration as people read it: '0.4 s', '12 s', '3 min 20 s', '2 h 05 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def show_dry_run(plan: Callable[[], Iterable[Estimate]], console: Console) -> list[dict[str, Any]]:
    """Prints each estimate of `plan` when it is made, and returns them all. No built-in model is trained for it."""
    from dpotool.models.builtin import standing_in

    shown = []
    with standing_in():
        for estimate in plan():
            _show(estimate, console)
            shown.append(estimate.to_dict())
    return shown


def _show(estimate: Estimate, console: Console) -> None:
    """Prints pairs, tokens, hits in the store, time by stage and peak memory, and what the figures rest on."""
    in_all = f"about {format_duration(estimate.total_seconds)} and {format_bytes(estimate.peak_bytes)} of memory"
    console.say(f"{estimate.command} would take {in_all}.")
    rows = [[f"pairs, {name}", str(n)] for name, n in estimate.n_pairs.items()]
    rows += [["tokens", f"{estimate.n_tokens:,}"], ["padded tokens", f"{estimate.n_padded_tokens:,}"]]
    if estimate.batch_tokens:
        rows += [["tokens a batch", f"{estimate.batch_tokens:,}"]]
    rows += [[f"already stored, {name}", str(n)] for name, n in estimate.n_cached.items()]
    rows += [[f"time, {stage}", format_duration(seconds)] for stage, seconds in estimate.seconds.items()]
    rows += [["time in all", format_duration(estimate.total_seconds)]]
    rows += [["peak memory", format_bytes(estimate.peak_bytes)]]
    if estimate.card_bytes:
        rows += [["on one GPU, by formula", format_bytes(estimate.card_bytes)]]
    console.table("", ["quantity", "estimate"], rows)
    console.answer(f"The estimate rests on short measurements. {' '.join(estimate.probe)}")
    console.say("Nothing was written.")


_CONTROLS = r"\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
_UNPRINTABLE = re.compile(rf"[\x00-\x08\x0b-\x1f{_CONTROLS}]")
_UNPRINTABLE_IN_JSON = re.compile(f"[{_CONTROLS}]")


def printable(text: str) -> str:
    r"""Returns a text with everything in it that would steer a terminal written out: ESC as \x1b, surrogates too."""
    return _UNPRINTABLE.sub(lambda found: ascii(found.group(0))[1:-1], text)


def format_json(value: Any, *, is_ascii: bool = False) -> str:
    """Returns strict JSON on one line that no terminal obeys; of ASCII alone where the stream cannot take more."""
    text = json.dumps(value, ensure_ascii=is_ascii)
    return _UNPRINTABLE_IN_JSON.sub(lambda found: f"\\u{ord(found.group(0)):04x}", text)


class GuardedOutput:
    """stdout that ignores writes once its reader has gone or its disk is full, so that the work can finish.

    A reader that has gone (`dpotool compare | head -1`) is nothing wrong. `error` is any other reason.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_open = True
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        if self._is_open:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self._is_open:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._is_open = False
        if error.errno != errno.EPIPE:
            self.error = error
        with suppress(OSError, ValueError):  # what the buffer still holds has to go somewhere when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def guarding_output() -> Iterator[GuardedOutput]:
    """Puts a guarded stdout and a stderr that never fails in their places while a command runs."""
    _open_standard_streams()
    kept = sys.stdout, sys.stderr
    for stream in kept:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a lambda on an ASCII terminal costs no result
    output, complaints = GuardedOutput(sys.stdout), GuardedOutput(sys.stderr)
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, complaints)
    try:
        yield output
    finally:
        complaints.flush()
        sys.stdout, sys.stderr = kept


def _open_standard_streams() -> None:
    """Gives closed standard streams (`>&-`) a place to lead, else the next file opened would be taken for one."""
    for name in ("stdin", "stdout", "stderr"):  # in this order: each open() takes the lowest free descriptor
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123

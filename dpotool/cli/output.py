"""Writes to the terminal: only characters that it can show, and to a stdout that may be full or closed.

Every name and text from a file, folder, model or template goes through `printable` before a terminal sees it.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

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

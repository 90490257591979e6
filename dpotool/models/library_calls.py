"""Calls into transformers and peft: quiet, and when they fail, one line that says what could not be loaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging as transformers_logging

from dpotool.errors import DpotoolError, expand_home, refuse_endless
from dpotool.hub import reach_hub


def refuse_without_model(source: str, what: str = "model") -> None:
    """Raises DpotoolError for a folder that holds none of what makes it a model, or an adapter."""
    folder = expand_home(source)
    if folder.is_dir() and _holds_no_model(folder, what):
        raise DpotoolError(
            "holds no model: there is no config.json in it",
            where=source,
            remedy="Give the folder of a Hugging Face checkpoint (a run folder of `dpotool train` is one)",
        ) from None


@contextmanager
def one_line_errors(what: str, source: str) -> Iterator[None]:
    """Turns the loaders' errors into one line that says which model or tokenizer cannot be loaded.

    Raises:
        DpotoolError: instead of any other exception in the block.
    """
    folder = expand_home(source)
    for path in folder.iterdir() if folder.is_dir() else ():
        refuse_endless(path)
    try:
        yield
    except DpotoolError:
        raise
    except Exception as error:  # files of another version: tokenizers raises a bare one, others whatever they meet
        refuse_without_model(source, what)
        if not folder.exists():
            unreachable = "" if reach_hub() else ", which cannot be reached"
            raise DpotoolError(
                f"no such folder, and no {what} of that name could be had from the hub{unreachable}",
                where=source,
                remedy="Check the path, or the hub id and the connection",
            ) from None
        is_code = "custom code" in str(error)
        raise DpotoolError(
            f"the {what} cannot be loaded ({summarize_error(error)})",
            where=source,
            remedy="If you have read that code and trust it, add --trust-remote-code" if is_code else None,
        ) from None


def _holds_no_model(folder: Path, what: str) -> bool:
    """Whether a folder is plainly no checkpoint; a tokenizer that lies alone in one is a tokenizer all the same."""
    is_tokenizer = what == "tokenizer" and any(folder.glob("*token*"))
    return not is_tokenizer and not (folder / "config.json").is_file()


def summarize_error(error: Exception) -> str:
    """Returns the first line of what a library says; where it ends in a colon, the next one too."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    said = f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."


_LONGEST = 300


@contextmanager
def quiet_transformers(*, shows_bars: bool = False) -> Iterator[None]:
    """Keeps the bars of reading and writing weights off stderr, and peft's use of a name transformers will drop.

    Args:
        shows_bars: show the bars, for a command whose user waits for the model to be read.
    """
    was_enabled = transformers_logging.is_progress_bar_enabled()
    if not shows_bars:
        transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()

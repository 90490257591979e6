"""The `dpotool` command: one Typer app, one file per verb, and the only place where errors become exit codes."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from importlib import import_module
from typing import Annotated

import typer

from dpotool import __version__, interruption
from dpotool.cli.console import guarding_output, printable
from dpotool.errors import DpotoolError

app = typer.Typer(
    name="dpotool",
    help="Measure, explain and undo likelihood displacement in DPO.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"dpotool {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure, explain and undo likelihood displacement in DPO."""


_VERBS = (
    *("train", "score", "diagnose", "compare", "theory_gap", "predict", "sweep", "blend", "generate", "judge", "plot"),
    *("report", "import_", "cache", "validate", "filter_"),
)
"""Modules of this room with a command each, in the order of `dpotool --help`."""
for _verb in _VERBS:
    import_module(f"dpotool.cli.{_verb}").register(app)


def main() -> None:
    """Runs the command line. Exit codes: 0; 1 a user's or data error, in one line; 2 usage; 130 interrupted."""
    with interruption.catching(), guarding_output() as output:
        _prepare_libraries()
        code = _run()
        output.flush()
        if output.error is not None:
            _complain(f"stdout: cannot be written ({output.error.strerror}); what was computed lies in its folder")
            code = code or 1
    sys.exit(code)


def _run() -> int | str:
    """Runs the command; returns its exit code."""
    try:
        app(standalone_mode=True)
        code: int | str = 0
    except SystemExit as left:
        code = left.code or 0
    except DpotoolError as error:
        if not interruption.was_asked_to_stop():
            _complain(str(error))
            return 1
        code = 1
    except KeyboardInterrupt:
        code = interruption.EXIT_CODE
        sys.stderr.write("interrupted\n")
    except OSError as error:  # a place that no command foresaw, such as a name longer than the file system takes
        if not interruption.was_asked_to_stop():
            _complain(_describe_os_error(error))
            return 1
        code = 1
    except Exception:
        if not interruption.was_asked_to_stop():
            raise
        code = 1
    if code == 1 and interruption.was_asked_to_stop():  # an interruption that came out as another exception
        sys.stderr.write("interrupted\n")
        return interruption.EXIT_CODE
    return code


def _describe_os_error(error: OSError) -> str:
    what = error.strerror or (str(error).strip().splitlines() or [type(error).__name__])[0]
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{where}{what}. Check the path, the free space and who may read and write there"


def _complain(text: str) -> None:
    sys.stderr.write(f"error: {printable(text)}\n")


def _prepare_libraries() -> None:
    """Silences the libraries' messages on the terminal and lets torch use huge pages; both are read at import.

    Page faults of ordinary pages can cost more than the arithmetic: an AdamW step of a 135M model on the machine where
    this was measured took 0.3 s with huge pages and 14 s without.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():  # who waits for a download may see how far it is
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {printable(str(message))}\n"
    logging.basicConfig(level=logging.WARNING, format="warning: %(message)s", stream=sys.stderr)
    for handler in logging.root.handlers:
        handler.addFilter(_make_printable)


def _make_printable(record: logging.LogRecord) -> bool:
    """Removes control characters from a line of the log; no line is dropped."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True

"""Writes the reference page of the command line: `python -m dpotool.cli.reference > docs/cli.md`.

It reads the commands as they are registered, not their help screens, so the page depends neither on the terminal nor
on the versions of typer and rich.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.main import get_command

from dpotool.cli.app import app
from dpotool.cli.kinds import VerbCommand, list_listed
from dpotool.cli.verbs import Positional, unescape_markup
from dpotool.measures.registry import write_measures
from dpotool.settings.fields import Kinds

_PREAMBLE = """\
# Command line

<!-- Generated from the commands by `make docs`. Do not edit by hand; a test compares the two. -->

- A command's result goes to stdout. Notes, warnings and progress bars go to stderr, and bars only to a terminal.
- `--json` puts one JSON object on stdout and nothing else.
- `--config FILE` sets options of the command from a YAML file, such as a `run.yaml` (`learning-rate: 5e-7` or
  `learning_rate: 5e-7`). Options on the command line override the file. Settings that belong to other commands are
  ignored and counted. Given a training `run.yaml`, score, theory-gap and predict use that run's evaluation pairs. The
  file may also be a table: `dpotool score MODEL --config TABLE.parquet` uses the settings with which it was made.
- To turn off a flag that is on in the file, write `--no-` before its name: `--no-lora`.
- Exit codes: 0 means success; 1 means that a setting, a file or the data cannot be used, and one line says why; 2 means
  wrong usage; 130 means interrupted, with the work saved.
- A dash in the column *default* means that nothing is set; the text says what happens then.
"""
_GENERAL = "Options"
_APPENDICES = {"dpotool score": ("Measures", write_measures)}
"""Command -> the entries of its registry."""
_TYPE_NAMES = {str: "text", int: "integer", float: "number", bool: "flag", Path: "path"}


@dataclass(frozen=True, slots=True)
class _Parameter:
    """An argument or option, ready to be written down."""

    names: str
    type: str
    default: str
    help: str
    panel: str
    is_argument: bool


def write_reference(cli: typer.Typer = app) -> str:
    """Returns the page as Markdown: every command with its help text, example, arguments and options by panel."""
    root: Any = get_command(cli)
    sections = [
        _describe_command(name, command, function) for name, command, function in _walk(str(cli.info.name), cli, root)
    ]
    return "\n".join([_PREAMBLE, *sections])


def _walk(name: str, cli: typer.Typer, group: Any) -> Iterator[tuple[str, Any, Callable[..., Any] | None]]:
    """Yields each command under its whole name, those of groups after the plain ones."""
    functions = {info.name: info.callback for info in cli.registered_commands}
    for word, function in functions.items():
        yield f"{name} {word}", group.commands[word], function
    for info in cli.registered_groups:
        assert info.typer_instance is not None
        yield from _walk(f"{name} {info.name}", info.typer_instance, group.commands[info.name])


def _describe_command(name: str, command: Any, function: Callable[..., Any] | None) -> str:
    assert function is not None
    annotations = inspect.signature(function, eval_str=True).parameters
    context = command.make_context(name, [], resilient_parsing=True)
    shown = [item for item in command.get_params(context) if not getattr(item, "hidden", False)]
    parameters = [
        _describe_parameter(item, annotations[item.name].annotation if item.name in annotations else None)
        for item in shown
        if item.name != "help"
    ]
    arguments = [parameter for parameter in parameters if parameter.is_argument]
    options = [parameter for parameter in parameters if not parameter.is_argument]
    usage = " ".join([name, "[OPTIONS]", *(argument.names for argument in arguments)])
    parts = [f"## {name}", command.help, f"    {usage}"]
    if command.epilog:
        title, _, words = command.epilog.partition(": ")
        parts.append(f"{title}: `{words}`")
    if arguments:
        parts.append(_table("argument", arguments))
    parts += [_list_choices(each) for each in getattr(function, "positionals", ()) if each.choices is not None]
    for panel in dict.fromkeys(option.panel for option in options):
        parts += [f"### {panel}", _table("option", [option for option in options if option.panel == panel])]
    if name in _APPENDICES:
        title, write = _APPENDICES[name]
        parts += [f"### {title}", write()]
    for _, kinds in list_listed(command.settings) if isinstance(command, VerbCommand) else ():
        parts += [f"### {kinds.title}", _list_kinds(kinds)]
    return "\n\n".join(parts) + "\n"


def _describe_parameter(item: Any, annotation: Any) -> _Parameter:
    """Reads what typer knows of a parameter; its type is the one the command's signature states."""
    is_argument = item.param_type_name == "argument"
    if annotation is None:  # it comes from a registry, not from the command's signature
        type_ = _TYPE_NAMES[item.kind_type]
    else:
        type_ = _name_type(get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation)
    if item.metavar:  # read by a function of its own
        type_ = item.metavar.replace("<int>|", "integer or ")
    return _Parameter(
        names=_name_argument(item) if is_argument else ", ".join(item.opts),
        type=type_,
        default="required" if item.required else _format_default(item.default),
        help=unescape_markup(item.help or ""),
        panel=item.rich_help_panel or _GENERAL,
        is_argument=is_argument,
    )


def _name_argument(item: Any) -> str:
    name = item.name.upper() + ("..." if item.nargs == -1 else "")
    return name if item.required else f"[{name}]"


def _format_default(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "–" if value in (None, "") else f"`{value}`"


def _name_type(annotation: Any) -> str:
    """Returns a type as a reader says it; `T | None` is T, and `list[T]` says that it may be repeated."""
    choices = [choice for choice in get_args(annotation) if choice is not NoneType]
    if get_origin(annotation) is list:
        return f"{_name_type(choices[0])}, repeated"
    return _name_type(choices[0]) if choices else _TYPE_NAMES[annotation]


def _table(title: str, parameters: Sequence[_Parameter]) -> str:
    lines = [f"| {title} | type | default | |", "|---|---|---|---|"]
    for parameter in parameters:
        cells = (f"`{parameter.names}`", parameter.type, parameter.default, _escape(parameter.help))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _list_choices(positional: Positional) -> str:
    """A table of what an argument may be, as its registry has it now."""
    assert positional.choices is not None
    lines = [f"| `{positional.name.upper()}` | what it shows |", "|---|---|"]
    return "\n".join(
        [*lines, *(f"| `{name}` | {_escape(meaning)} |" for name, meaning in positional.choices().items())]
    )


def _list_kinds(kinds: Kinds) -> str:
    lines = ["| name | what it is for |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {_escape(text)} |" for name, text in kinds.describe().items())])


def _escape(text: str) -> str:
    """Keeps Markdown from reading a table's end or an HTML tag into a help text."""
    for sign, escaped in (("|", "\\|"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, escaped)
    return text


if __name__ == "__main__":
    sys.stdout.write(write_reference())

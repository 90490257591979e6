"""Options read from a registry when a command is called, such as those of losses, also of losses registered later.

`train --help` lists every loss and every option that some loss has; `train --loss simpo --help` shows the options of
that one, with its defaults. What is offered for completion is read from the same entries. A command here also answers
other tools' names for its options with its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand
from typer.main import get_command

from dpotool.settings.fields import KindOption, Kinds, Settings, flag_of

_TAKEN = "dpotool.kind_options"
_IS_HELP = "dpotool.is_help"
_CHOSEN = "dpotool.chosen_kinds"


class VerbCommand(TyperCommand):
    """A command of one settings class; `command_class` says which."""

    settings: ClassVar[type[Settings]]

    def get_params(self, ctx: Any) -> list[Any]:
        """Returns the options as they are now: in help of a chosen kind without what does not concern it."""
        params = super().get_params(ctx)
        for name, kinds in self.settings.list_kinds().items():
            chosen = ctx.meta.get(_CHOSEN, {}).get(name) if ctx.meta.get(_IS_HELP) else None
            params = _join(params, kinds, chosen, list(_make_options(name, kinds, chosen)))
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_CHOSEN] = {name: _find_value(args, flag_of(name)) for name in self.settings.list_kinds()}
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if type(error).__name__ == "NoSuchOption":  # typer brings a click of its own, or takes the installed one
                suggest_own_name(error, self.settings, getattr(self.callback, "positionals", ()))
            raise

    def invoke(self, ctx: Any) -> Any:
        """Puts the values of kinds' options aside, for the command does not have them in its signature."""
        known = {param.name for param in self.params}
        extra = [name for name in ctx.params if name not in known]
        ctx.meta[_TAKEN] = {name: ctx.params.pop(name) for name in extra}
        return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        ctx.meta[_IS_HELP] = True
        for name, value in (ctx.default_map or {}).items():
            if ctx.meta.get(_CHOSEN, {}).get(name, "") is None:
                ctx.meta[_CHOSEN][name] = value
        super().format_help(ctx, formatter)
        for name, kinds in list_listed(self.settings):
            chosen = ctx.meta.get(_CHOSEN, {}).get(name)
            _print_kinds(
                kinds.title if chosen is None else chosen, kinds.describe() if chosen is None else kinds.explain(chosen)
            )


def command_class(settings: type[Settings]) -> type[VerbCommand]:
    """Returns the class of a command with these settings."""
    return type("VerbCommand", (VerbCommand,), {"settings": settings})


def take_kind_options(context: Any) -> dict[str, Any]:
    """Returns the options that `invoke` put aside, by the settings that they belong to."""
    values = {name: value for name, value in context.meta.get(_TAKEN, {}).items() if value is not None}
    found: dict[str, Any] = {}
    for kinds in context.command.settings.list_kinds().values():
        assert kinds.options is not None
        names = {option.name for option in kinds.options(None)}
        if given := {name: value for name, value in values.items() if name in names}:
            found[kinds.into] = given
    return found


def list_listed(settings: type[Settings]) -> Iterator[tuple[str, Kinds]]:
    """Yields the settings whose kinds help and reference page list."""
    for about in fields(settings):
        if about.metadata.get("kinds") is not None:
            yield about.name, about.metadata["kinds"]


def complete_kinds(kinds: Kinds) -> Callable[[str], list[tuple[str, str]]]:
    """Returns what completes a kind's name, and the last of several after a comma."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        before, comma, begun = incomplete.rpartition(",")
        return [(f"{before}{comma}{name}", text) for name, text in kinds.describe().items() if name.startswith(begun)]

    return complete


_NOT_HERE = {
    "load_in_4bit": "weights are not quantised here; name a model that is quantised already, or train with --lora",
    "max_prompt_length": "only prompt and answer together have a length, --max-length",
    "fp16": "float16 is not trained in; --bf16 is",
}
_NOT_HERE |= {"load_in_8bit": _NOT_HERE["load_in_4bit"], "use_4bit": _NOT_HERE["load_in_4bit"]}
"""Other tools' options for what there is no option for -> what to do instead."""


def suggest_own_name(error: Any, settings: type[Settings], positionals: Sequence[Any] = ()) -> None:
    """Puts this command's name for what was meant into the complaint about an unknown option."""
    meant = str(error.option_name).strip("-").replace("-", "_")
    names = [each.name for each in positionals if each.name.rstrip("s") == meant.rstrip("s")]
    if meant in _NOT_HERE or names:
        instead = _NOT_HERE.get(meant) or f"{names[0].upper()} is given without an option's name"
        error.message = f"No such option: {error.option_name} ({instead})"
        error.possibilities = []
    for about in fields(settings):
        if meant in about.metadata.get("near", ()):
            error.possibilities = [about.metadata["flag"] or flag_of(about.name)]


def _find_value(args: Sequence[str], flag: str) -> str | None:
    """Reads an option's value before anything is parsed, as help may come before it."""
    for place, word in enumerate(args):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
        if word == flag and place + 1 < len(args):
            return args[place + 1]
    return None


def _make_options(name: str, kinds: Kinds, chosen: str | None) -> Iterator[tuple[KindOption, Any]]:
    """Yields each option with the parameter that typer makes of it."""
    assert kinds.options is not None
    options = kinds.options(chosen)
    if not options:
        return
    panel = f"{flag_of(name)} {chosen}" if chosen else f"Options of single {kinds.title.lower()}"
    throwaway = typer.Typer()

    def function(**_values: Any) -> None: ...

    function.__signature__ = _signature(options, panel)  # type: ignore[attr-defined]
    function.__annotations__ = {}
    throwaway.command()(function)
    command: Any = get_command(throwaway)
    by_name = {param.name: param for param in command.params}
    for option in options:
        by_name[option.name].kind_type = option.type  # for the reference page
        yield option, by_name[option.name]


def _signature(options: Sequence[KindOption], panel: str) -> inspect.Signature:
    def describe(option: KindOption) -> inspect.Parameter:
        text = option.help
        if option.default:
            text = f"{text[0].upper()}{text[1:]}. [default: {option.default}]"
        complete = _complete_among(option.choices) if option.choices else None
        info = typer.Option(
            flag_of(option.name),
            help=text.replace("[", r"\["),
            rich_help_panel=panel,
            show_default=False,
            autocompletion=complete,
        )
        kind: Any = Annotated[option.type | None, info]
        return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)

    return inspect.Signature([describe(option) for option in options])


def _complete_among(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def _join(params: list[Any], kinds: Kinds, chosen: str | None, options: list[tuple[KindOption, Any]]) -> list[Any]:
    """Puts kinds' options among the others: those that others have too only where a kind is chosen, in their place."""
    known = {param.name for param in params}
    if chosen is None:
        return [*params, *(param for option, param in options if option.name not in known)]
    assert kinds.options is not None
    hidden = kinds.without(chosen) if kinds.without else frozenset()
    replaced = {option.name for option in (*kinds.options(None), *kinds.options(chosen))}
    rest = [
        param
        for param in params
        if param.name not in replaced and getattr(param, "rich_help_panel", None) not in hidden
    ]
    return [*(param for _, param in options), *rest]


def _print_kinds(title: str, rows: Mapping[str, str]) -> None:
    """Prints names and what they mean, in a panel like those of the options."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, expand=True)
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(ratio=1)
    for name, text in rows.items():
        table.add_row(name, text)
    Console(highlight=False, markup=False).print(Panel(table, title=title, title_align="left", border_style="dim"))

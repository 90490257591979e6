"""Makes a Typer command out of a settings dataclass: a field is an option, a config file may preset it, flags win."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from dpotool.cli.config_file import read_config
from dpotool.cli.console import Console
from dpotool.cli.kinds import command_class, complete_kinds, take_kind_options
from dpotool.settings.fields import Settings, flag_of

S = TypeVar("S", bound=Settings)

_SETTINGS: dict[str, type[Settings]] = {}
"""Command -> its settings; a config file may contain those of another command."""


@dataclass(frozen=True, slots=True)
class Positional:
    """A command's positional argument."""

    name: str
    type: Any
    help: str
    required: bool = False
    choices: Callable[[], Mapping[str, str]] | None = None
    """What it may be -> what that means, as a registry has it: for help, completion and the reference page."""

    @property
    def argument(self) -> Any:
        """The argument as typer takes it."""
        if self.choices is None:
            return typer.Argument(help=self.help, show_default=False)
        choices = self.choices()
        text = f"{self.help} One of: {', '.join(choices)}."
        return typer.Argument(help=text, show_default=False, autocompletion=lambda: list(choices.items()))


def add_verb(
    app: typer.Typer,
    name: str,
    settings: type[S],
    *,
    positionals: tuple[Positional, ...] = (),
    epilog: str | None = None,
) -> Callable[[Callable[..., None]], None]:
    """Registers `function(settings, console, *positionals)` as the command `name`; its docstring is the help text.

    Args:
        name: of a command, or of a group (`app`) and its command: 'cache ls'.
        epilog: an example.
    """

    def register(function: Callable[..., None]) -> None:
        def command(context: typer.Context, **values: Any) -> None:
            console = Console(as_json=values.pop("json_"))
            values.pop("config")
            arguments = [values.pop(positional.name) for positional in positionals]
            for name_ in [name_ for name_ in values if f"no_{name_}" in values]:
                if values.pop(f"no_{name_}"):
                    values[name_] = False
            # Click fills `values` from flags, then the config file, then the defaults.
            chosen = settings(**values, **take_kind_options(context))
            _join_processes(getattr(chosen, "device", None), console)
            try:
                function(chosen, console, *arguments)
            except KeyboardInterrupt as stop:
                console.note(": ".join(filter(None, ("interrupted", str(stop)))))
                raise typer.Exit(130) from None

        command.__doc__ = function.__doc__
        command.positionals = positionals  # type: ignore[attr-defined]
        _SETTINGS[name] = settings
        command.__signature__ = _signature_of(name, settings, positionals)  # type: ignore[attr-defined]
        command.__annotations__ = {}
        app.command(name.rpartition(" ")[2], epilog=epilog, cls=command_class(settings))(command)

    return register


def _join_processes(device: str | None, console: Console) -> None:
    if device is not None and "LOCAL_RANK" in os.environ:  # set by every launcher; without one, torch may wait
        from dpotool.models.loading import join_processes

        console.note(f"processes: {join_processes(device)}")


def _signature_of(name: str, settings: type[Settings], positionals: tuple[Positional, ...]) -> inspect.Signature:
    parameters = [_parameter("context", typer.Context, inspect.Parameter.empty)]
    for positional in positionals:
        default = inspect.Parameter.empty if positional.required else None
        parameters.append(_parameter(positional.name, Annotated[positional.type, positional.argument], default))
    hints = get_type_hints(settings)
    options = [field for field in fields(settings) if field.metadata.get("is_option", True)]
    parameters += [_option_of(field, hints[field.name]) for field in options]
    parameters += [_switch_off(field.name) for field in fields(settings) if hints[field.name] is bool]
    config = typer.Option(
        "--config",
        help="YAML file with settings, such as a run's run.yaml. Options given here win; --no-FLAG turns a flag off.",
        callback=_preset_from(name, settings),
        is_eager=True,
        show_default=False,
    )
    parameters.append(_parameter("config", Annotated[Path | None, config], None))
    json_ = typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
    parameters.append(_parameter("json_", Annotated[bool, json_], False))
    return inspect.Signature(parameters)


def _option_of(field: Field[Any], hint: Any) -> inspect.Parameter:
    flag = field.metadata["flag"] or flag_of(field.name)
    parser, kinds = field.metadata["parser"], field.metadata["kinds"]
    option = typer.Option(
        *flag.split(","),
        parser=parser,
        metavar="<int>|auto" if parser else None,
        autocompletion=complete_kinds(kinds) if kinds else None,
        help=escape_markup(field.metadata["help"]),
        rich_help_panel=field.metadata["panel"],
        show_default=not (field.default is None or field.default is False or field.default == ""),
    )
    return _parameter(field.name, Annotated[str if parser else hint, option], field.default)


def _switch_off(name: str) -> inspect.Parameter:
    """--no-lora beside --lora, for what a config file switches on; hidden, as it would squeeze the help's texts."""
    option = typer.Option(f"--no-{name.replace('_', '-')}", hidden=True)
    return _parameter(f"no_{name}", Annotated[bool, option], False)


def escape_markup(text: str) -> str:
    """Keeps rich from taking 'dpotool[peft]' for an instruction and dropping its brackets."""
    return text.replace("[", r"\[")


def unescape_markup(text: str) -> str:
    """Returns a help text as it was before `escape_markup`."""
    return text.replace(r"\[", "[")


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _preset_from(name: str, settings: type[Settings]) -> Callable[[typer.Context, Path | None], Path | None]:
    def preset(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            given = read_config(path, settings, command=name, others=_SETTINGS, note=Console().note)
            context.default_map = {**(context.default_map or {}), **given}
        return path

    return preset

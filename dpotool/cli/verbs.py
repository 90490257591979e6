"""Makes a Typer command out of a settings dataclass: a field is an option, a config file may preset it, flags win."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from dpotool.cli.config_file import read_config
from dpotool.cli.console import Console
from dpotool.settings import Settings

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True)
class Positional:
    """A command's positional argument."""

    name: str
    type: Any
    help: str
    required: bool = False


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
        epilog: an example.
    """

    def register(function: Callable[..., None]) -> None:
        def command(context: typer.Context, **values: Any) -> None:
            console = Console(as_json=values.pop("json_"))
            values.pop("config")
            arguments = [values.pop(positional.name) for positional in positionals]
            try:
                # Click fills `values` from flags, then the config file, then the defaults.
                function(settings(**values), console, *arguments)
            except KeyboardInterrupt:
                console.note("interrupted")
                raise typer.Exit(130) from None

        command.__doc__ = function.__doc__
        command.__signature__ = _signature_of(settings, positionals)  # type: ignore[attr-defined]
        command.__annotations__ = {}
        app.command(name, epilog=epilog)(command)

    return register


def _signature_of(settings: type[Settings], positionals: tuple[Positional, ...]) -> inspect.Signature:
    parameters = [_parameter("context", typer.Context, inspect.Parameter.empty)]
    for positional in positionals:
        argument = typer.Argument(help=positional.help, show_default=False)
        default = inspect.Parameter.empty if positional.required else None
        parameters.append(_parameter(positional.name, Annotated[positional.type, argument], default))
    hints = get_type_hints(settings)
    parameters += [_option_of(field, hints[field.name]) for field in fields(settings)]
    config = typer.Option(
        "--config",
        help="YAML file with these settings, e.g. a run's run.yaml; flags win over it.",
        callback=_preset_from(settings),
        is_eager=True,
        show_default=False,
    )
    parameters.append(_parameter("config", Annotated[Path | None, config], None))
    json_ = typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
    parameters.append(_parameter("json_", Annotated[bool, json_], False))
    return inspect.Signature(parameters)


def _option_of(field: Field[Any], hint: Any) -> inspect.Parameter:
    flag = field.metadata["flag"] or f"--{field.name.replace('_', '-')}"
    option = typer.Option(
        flag,
        help=field.metadata["help"],
        rich_help_panel=field.metadata["panel"],
        show_default=field.default not in (None, False),
    )
    return _parameter(field.name, Annotated[hint, option], field.default)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _preset_from(settings: type[Settings]) -> Callable[[typer.Context, Path | None], Path | None]:
    def preset(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            context.default_map = {**(context.default_map or {}), **read_config(path, settings)}
        return path

    return preset

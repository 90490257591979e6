"""What settings are made of: dataclasses whose fields are flags on the command line and keys in a config file.

One place says a setting's name, type, default and help text; the command line (`cli/verbs.py`), `--config` files and
`run.yaml` all follow from it. Imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, Self

from dpotool.errors import DpotoolError, expand_home


@dataclass(frozen=True, slots=True)
class Range:
    """A range of numbers. A value outside of it is refused before anything is loaded."""

    low: float = -math.inf
    high: float = math.inf
    includes_low: bool = True
    includes_high: bool = True

    def __contains__(self, value: object) -> bool:
        """Whether it is a finite number, and a number of the range."""
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            return False
        above = number >= self.low if self.includes_low else number > self.low
        below = number <= self.high if self.includes_high else number < self.high
        return math.isfinite(number) and above and below

    def describe(self, name: str) -> str:
        """Returns the range in words: "a number, 0 <= label_smoothing < 0.5"."""
        low = f"{self.low:g} {'<=' if self.includes_low else '<'} " if math.isfinite(self.low) else ""
        high = f" {'<=' if self.includes_high else '<'} {self.high:g}" if math.isfinite(self.high) else ""
        return f"a number, {low}{name}{high}" if low or high else "a number"


COUNT = Range(1, 2**31 - 1)
"""Of pairs, tokens or steps."""
COUNT_OR_NONE = Range(0, 2**31 - 1)
"""The same where 0 means none."""
SEED = Range(0, 2**32 - 1)
BETA = Range(1e-6, 1e3)
LAMBDA = Range(0, 1e3, includes_low=False)
"""Of a training that was run elsewhere; `losses.schedules` says what can be trained with here."""


@dataclass(frozen=True, slots=True)
class KindOption:
    """An option that only some kinds of a thing have, such as the losses that take `--alpha`."""

    name: str
    type: type
    help: str
    default: str
    """As help shows it; empty where it differs from kind to kind and the text says it."""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kinds:
    """What a setting chooses among, as a registry has it now: for help, completion, config files and the docs."""

    describe: Callable[[], Mapping[str, str]]
    """Name -> what it is, in a line."""
    title: str
    explain: Callable[[str], Mapping[str, str]]
    """Name -> what help says of that one."""
    options: Callable[[str | None], Sequence[KindOption]] | None = None
    """Name -> the options it has; None -> the options of all."""
    into: str = ""
    """The setting with the values of those options."""
    without: Callable[[str], frozenset[str]] | None = None
    """Name -> the panels of help that do not concern it."""


def setting(
    default: Any,
    help: str,  # noqa: A002
    *,
    flag: str | None = None,
    panel: str | None = None,
    parser: Callable[[Any], Any] | None = None,
    range: Range | None = None,  # noqa: A002
    switch: str | None = None,
    near: Sequence[str] = (),
    kinds: Kinds | None = None,
    is_option: bool = True,
    is_recorded: bool = True,
) -> Any:
    """Returns a dataclass field that carries its help text.

    Args:
        flag: where its option is not its name.
        parser: reads a value from the command line or a config file where its type does not say how.
        range: what is accepted; None may always stand for what is not set.
        switch: the setting without which this one has no effect; giving it alone is refused (`check_switches`).
        near: other tools' names for it, which a wrong option or key is answered with.
        kinds: what it chooses among.
        is_option: False for a setting without an option of its own, which kinds fill.
        is_recorded: False for a setting that changes only what is printed, so that no file holds it.
    """
    about: dict[str, Any] = {
        "help": help,
        "flag": flag,
        "panel": panel,
        "parser": parser,
        "range": range,
        "switch": switch,
    }
    about |= {"near": tuple(near), "kinds": kinds, "is_option": is_option, "is_recorded": is_recorded}
    return field(default=default, metadata=about)


def flag_of(name: str) -> str:
    """Returns the command-line flag of a setting: label_smoothing -> --label-smoothing, lambda_ -> --lambda."""
    return "--" + name.strip("_").replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the commands' settings.

    Raises:
        DpotoolError: a number lies outside its range.
    """

    def __post_init__(self) -> None:
        for about in fields(self):
            text = getattr(self, about.name)
            if isinstance(text, str) and text.startswith("~"):  # shells leave it in --output=~/run, and so does YAML
                object.__setattr__(self, about.name, str(expand_home(text)))
            value, range_ = getattr(self, about.name), about.metadata.get("range")
            if range_ is not None and value is not None and value not in range_:
                name = about.name.strip("_")
                raise DpotoolError(
                    f"not a usable {name}",
                    where=flag_of(name),
                    expected=range_.describe(name),
                    got=str(value),
                )

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings that files record, by name; those that only some kinds have stand among them."""
        unrecorded = {about.name for about in fields(self) if not about.metadata.get("is_recorded", True)}
        values = {name: value for name, value in asdict(self).items() if name not in unrecorded}
        for kinds in self.list_kinds().values():
            values |= values.pop(kinds.into, None) or {}
        return values

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Builds settings from what `to_dict` or a run.yaml holds; anything else is passed over."""
        return cls(**sort_settings(cls, values))

    @classmethod
    def list_kinds(cls) -> dict[str, Kinds]:
        """Returns the settings that choose among kinds, each of which has further options."""
        found = {about.name: about.metadata.get("kinds") for about in fields(cls)}
        return {name: kinds for name, kinds in found.items() if kinds is not None and kinds.options is not None}

    def check_switches(self) -> None:
        """Refuses a setting that was given without the one that makes it count.

        Raises:
            DpotoolError: names both.
        """
        for about in fields(self):
            switch = about.metadata.get("switch")
            if switch and getattr(self, about.name) != about.default and not getattr(self, switch):
                raise DpotoolError(
                    f"has no effect without {flag_of(switch)}",
                    where=flag_of(about.name),
                    remedy=f"Add {flag_of(switch)}, or leave it out",
                )


def list_names(settings: type[Settings]) -> set[str]:
    """Returns the names that a config file may use: of all settings, those that only some kinds have included."""
    names = {about.name for about in fields(settings) if about.metadata.get("is_option", True)}
    for kinds in settings.list_kinds().values():
        assert kinds.options is not None
        names |= {option.name for option in kinds.options(None)}
    return names


def sort_settings(settings: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that are settings, those that only some kinds have gathered where they belong.

    A setting whose switch the same values put off is left out: it had no effect where they were written down.
    """
    known: dict[str, Field[Any]] = {about.name: about for about in fields(settings)}
    found = {name: value for name, value in values.items() if name in known}
    for name in list(found):
        switch = known[name].metadata.get("switch")
        if switch and values.get(switch) is False:
            del found[name]
    for kinds in settings.list_kinds().values():
        assert kinds.options is not None
        names = [option.name for option in kinds.options(None) if option.name not in known]
        given = {name: values[name] for name in names if values.get(name) is not None}
        if given:
            found[kinds.into] = {**(found.get(kinds.into) or {}), **given}
    return found


@dataclass(frozen=True, kw_only=True)
class ScreenSettings(Settings):
    """How much a command prints. Files and `--json` hold everything, whatever is chosen here."""

    full: bool = setting(False, "Print every table instead of the first screen.", is_recorded=False)

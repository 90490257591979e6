"""Settings shared by the commands, as dataclasses: a field is a flag on the command line and a key in a config file.

One place says a setting's name, type, default and help text; the command line (`cli/verbs.py`), `--config` files and
`run.yaml` all follow from it. Imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from dpotool.errors import DpotoolError

DEMO = "builtin:demo"
DRY_RUN = "Only show pairs, tokens, stored values, time and memory, from a few measured batches; nothing is written."
"""Help text of --dry-run."""
DEFAULT_BETA = 0.1
AUTO = "auto"
LAYOUTS = ("auto", "shared", "paired")


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that make sense somewhere. What lies outside is refused before anything is loaded."""

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
    """The setting that holds the values of those options."""
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


def parse_batch_tokens(value: int | str) -> int | str:
    """Reads a number of tokens, or 'auto'.

    Raises:
        DpotoolError: it is neither.
    """
    if value == AUTO:
        return AUTO
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise DpotoolError("is out of range", where="--batch-tokens", expected="at least 1, or auto", got=str(value))
    return number


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
                object.__setattr__(self, about.name, str(Path(text).expanduser()))
            value, range_ = getattr(self, about.name), about.metadata.get("range")
            if range_ is not None and value is not None and value not in range_:
                raise DpotoolError(
                    f"not a usable {about.name}",
                    where=flag_of(about.name),
                    expected=range_.describe(about.name),
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
        """Returns the settings that choose among kinds with options of their own."""
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


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Which pairs, and how they become tokens."""

    data: str = setting(
        DEMO,
        "Preference pairs: a .jsonl, .json, .parquet or .csv file, a saved dataset folder, a hub id or builtin:demo.",
    )
    split: str | None = setting(None, "Split of the data. The default depends on the command.")
    limit: int | None = setting(None, "Use the first N rows of the split.", range=COUNT)
    test_fraction: float | None = setting(
        None, "Hold out this fraction as a test split if the data has none, for example 0.05."
    )
    split_seed: int | None = setting(None, "Seed that chooses the rows for --test-fraction. The default is --seed.")
    max_length: int | None = setting(
        None,
        "Maximum length of prompt plus completion in tokens. The default is 2048, or fewer if the model has "
        "fewer positions.",
        range=COUNT,
    )
    truncation: str = setting(
        "trim-prompt",
        "What to do with longer pairs: trim-prompt removes tokens from the start of the prompt, exclude "
        "leaves the pair out.",
    )
    skip_invalid: bool = setting(
        False, "Leave out malformed rows and report how many, instead of stopping at the first."
    )


def parse_steps(text: str | None, n_steps: int) -> frozenset[int]:
    """Reads '5,10,20' as a set of step numbers, and '25%' as the step after which so much of the run is done.

    Raises:
        DpotoolError: it is no list of steps, or a share is not between 0 and 100 %.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    try:
        shares = [float(part.removesuffix("%")) for part in parts if part.endswith("%")]
        steps = {int(part) for part in parts if not part.endswith("%")}
    except ValueError:
        shares, steps = [-1.0], set()
    if not all(0 < share <= 100 for share in shares):
        raise DpotoolError("not a list of steps", where="--save-at", expected="e.g. 5,10,20 or 25%,50%", got=repr(text))
    return frozenset(steps | {max(1, round(n_steps * share / 100)) for share in shares})


@dataclass(frozen=True, kw_only=True)
class ComputeSettings(Settings):
    """How the numbers are computed."""

    batch_tokens: int | str = setting(
        AUTO,
        "Padded tokens in a scoring batch. auto takes what free memory allows, on a CPU at most 2048. A "
        "batch that does "
        "not fit into memory is halved.",
        parser=parse_batch_tokens,
    )
    layout: str = setting(
        AUTO,
        "How rows are built: shared (chosen and rejected in one row, so that their prompt is computed once), paired "
        "(one row each), or auto (whichever costs less).",
    )
    dtype: str = setting("auto", "Numeric type of the weights: float32, bfloat16, float16, float64 or auto.")
    device: str = setting("auto", "Device: cpu, cuda, cuda:N or auto.")
    seed: int = setting(42, "Seed for everything random.", range=Range(0, 2**32 - 1))
    trust_remote_code: bool = setting(False, "Allow code that comes with a checkpoint to run.")

    def __post_init__(self) -> None:
        """Refuses a layout that there is none of, whichever command it is for, before anything is loaded."""
        super().__post_init__()
        if self.layout not in LAYOUTS:
            raise DpotoolError("unknown layout", where="--layout", expected=", ".join(LAYOUTS), got=repr(self.layout))


@dataclass(frozen=True, kw_only=True)
class SubjectSettings(ComputeSettings, DataSettings):
    """What is examined and on what; None means: as its run was trained, or the default for a model from elsewhere."""

    data: str | None = setting(  # type: ignore[assignment]  # resolved by `describe_subject`
        None,
        "Preference pairs. The default is what the run was evaluated on; a model that is not a run needs this option.",
    )
    reference: str | None = setting(None, "Reference model. The default is the run's own, or an adapter's base model.")
    format: str = setting("parquet", "Format of the tables: parquet, csv or jsonl.")
    output: str | None = setting(None, "Folder to write to. The default is the run folder, or runs/<model name>.")

"""Settings shared by the commands, as dataclasses: a field is a flag on the command line and a key in a config file.

One place says a setting's name, type, default and help text; the command line (`cli/verbs.py`), `--config` files and
`run.yaml` all follow from it. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from dpotool.errors import DpotoolError

DEMO = "builtin:demo"
DRY_RUN = "Only show pairs, tokens, stored values, time and memory, from a few measured batches; nothing is written."
"""Help text of --dry-run."""
DEFAULT_BETA = 0.1
AUTO = "auto"
LAYOUTS = ("auto", "shared", "paired")


def setting(
    default: Any,
    help: str,  # noqa: A002
    *,
    flag: str | None = None,
    panel: str | None = None,
    parser: Callable[[Any], Any] | None = None,
) -> Any:
    """Returns a dataclass field that carries its help text.

    Args:
        flag: where its option is not its name.
        parser: reads a value from the command line or a config file where its type does not say how.
    """
    return field(default=default, metadata={"help": help, "flag": flag, "panel": panel, "parser": parser})


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
    """Base of the commands' settings."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Which pairs, and how they become tokens."""

    data: str = setting(
        DEMO, "Preference pairs: a .jsonl/.json/.parquet/.csv file, a saved dataset folder, a hub id or builtin:demo."
    )
    split: str | None = setting(None, "Split of the data; without it, the one that suits the command.")
    limit: int | None = setting(None, "Use the first N rows of the split.")
    test_fraction: float | None = setting(None, "Cut this share off data that has no test split, e.g. 0.05.")
    split_seed: int | None = setting(None, "Seed of the cut that --test-fraction makes; without it --seed.")
    max_length: int | None = setting(
        None, "Longest prompt + completion in tokens; without it 2048, or what the model's positions allow."
    )
    truncation: str = setting(
        "trim-prompt",
        "What happens to longer pairs: trim-prompt drops tokens from the prompt's start, exclude leaves the pair out.",
    )
    skip_invalid: bool = setting(
        False, "Leave malformed rows out, counted and listed, instead of stopping at the first."
    )


@dataclass(frozen=True, kw_only=True)
class ComputeSettings(Settings):
    """How the numbers are computed."""

    batch_tokens: int | str = setting(
        AUTO,
        "Padded tokens per scoring batch; auto: what free memory allows, on a CPU at most 2048. What does not fit into "
        "memory is halved.",
        parser=parse_batch_tokens,
    )
    layout: str = setting(
        AUTO,
        "Rows of scoring and training steps: shared (chosen and rejected in one, their prompt computed once), paired "
        "(one each), or auto, whichever costs less.",
    )
    dtype: str = setting("auto", "float32, bfloat16, float16, float64, or auto.")
    device: str = setting("auto", "cpu, cuda, cuda:N, or auto.")
    seed: int = setting(42, "Seed of everything random.")
    trust_remote_code: bool = setting(False, "Run code that comes with a checkpoint.")

    def __post_init__(self) -> None:
        """Refuses a layout that there is none of, whichever command it is for, before anything is loaded."""
        if self.layout not in LAYOUTS:
            raise DpotoolError("unknown layout", where="--layout", expected=", ".join(LAYOUTS), got=repr(self.layout))


@dataclass(frozen=True, kw_only=True)
class SubjectSettings(ComputeSettings, DataSettings):
    """What is examined and on what; None means: as its run was trained, or the default for a model from elsewhere."""

    data: str | None = setting(  # type: ignore[assignment]  # resolved by `describe_subject`
        None, "Preference pairs; without it, what the run was evaluated on, or builtin:demo."
    )
    reference: str | None = setting(None, "Reference model; without it the run's own, or an adapter's base model.")
    format: str = setting("parquet", "Format of the tables: parquet, csv or jsonl.")
    output: str | None = setting(None, "Folder to write to; without it the run folder, or runs/<model name>.")

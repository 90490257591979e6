"""Settings that several commands share: which pairs, which model, and how the numbers are computed."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.errors import DpotoolError
from dpotool.settings.fields import COUNT, SEED, Range, Settings, setting

DEMO = "builtin:demo"
DRY_RUN = "Only estimate pairs, tokens, stored values, time and memory from a few batches. Nothing is written."
"""Help text of --dry-run."""
DEFAULT_BETA = 0.1
AUTO = "auto"
LAYOUTS = ("auto", "shared", "paired")


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
    if number not in COUNT:
        raise DpotoolError("is out of range", where="--batch-tokens", expected="at least 1, or auto", got=str(value))
    return number


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Which pairs, and how they become tokens."""

    data: str = setting(
        DEMO,
        "Preference pairs: a .jsonl, .json, .parquet or .csv file, a saved dataset folder, a hub id or builtin:demo.",
    )
    split: str | None = setting(
        None,
        "Split of the data. If there are several, the default is train for commands that train, filter or validate, "
        "and test for the others.",
    )
    limit: int | None = setting(None, "Use the first N rows of the split.", range=COUNT)
    test_fraction: float | None = setting(
        None,
        "Hold out this fraction as a test split if the data has none, for example 0.05.",
        range=Range(0, 1, includes_low=False, includes_high=False),
    )
    split_seed: int | None = setting(
        None, "Seed that chooses the rows for --test-fraction. The default is --seed.", range=SEED
    )
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
        "Padded tokens in a scoring batch. auto uses as many as free memory allows, on a CPU at most 2048. A "
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
    seed: int = setting(42, "Seed for everything random.", range=SEED)
    trust_remote_code: bool = setting(False, "Allow code that comes with a checkpoint to run.")

    def __post_init__(self) -> None:
        """Refuses an unknown layout before anything is loaded."""
        super().__post_init__()
        parse_batch_tokens(self.batch_tokens)
        if self.layout not in LAYOUTS:
            raise DpotoolError("unknown layout", where="--layout", expected=", ".join(LAYOUTS), got=repr(self.layout))


@dataclass(frozen=True, kw_only=True)
class SubjectSettings(ComputeSettings, DataSettings):
    """What is examined and on what; None means: as its run was trained, or the default for a model from elsewhere."""

    data: str | None = setting(  # type: ignore[assignment]  # resolved by `describe_subject`
        None,
        "Preference pairs. The default is what the run was evaluated on; a model that is not a run needs this option.",
    )
    reference: str | None = setting(
        None, "Reference model. The default is the reference of the run, or the base model of an adapter."
    )
    format: str = setting("parquet", "Format of the tables: parquet, csv or jsonl.")
    output: str | None = setting(None, "Folder to write to. The default is the run folder, or runs/<model name>.")

"""The metadata of a table: model, reference, pairs, and every setting of the command that made it, resolved.

It travels inside the table as its metadata. `settings` holds what the command would need as options to make the table
again, so that nothing has to be guessed afterwards: `dpotool score MODEL --config TABLE` reads them from there.
`list_flags` and `repeat_import` make command lines of them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dpotool.runs.checked import check_value
from dpotool.runs.manifest import Config, Count, Positive, Scalar
from dpotool.runs.tables import read_raw_metadata

_REMEDY = "Write it again with the command that made it"


class Rows(msgspec.Struct, kw_only=True, frozen=True):
    """Which rows of which data: what leads from a `pair_id` back to its texts."""

    data: str
    """As `--data` takes it: a path, a hub id or builtin:demo."""
    split: str | None = None
    limit: Count | None = None
    test_fraction: float | None = None
    seed: int | None = None
    split_seed: int | None = None
    skip_invalid: bool = False


class Fingerprints(msgspec.Struct, kw_only=True, frozen=True):
    """Hashes of content: two tables with the same ones are of the same models and the same rows."""

    model: str | None = None
    reference: str | None = None
    tokenizer: str | None = None
    template: str | None = None
    data: str | None = None


class TableAbout(msgspec.Struct, kw_only=True, frozen=True):
    """What every kind of table says of itself."""

    command: str | None = None
    """The command that made it: score, theory-gap, predict, import."""
    settings: dict[str, Any] | None = None
    """All resolved settings of the command, by the names that `--config` takes; None in tables of old versions."""
    model: str | None = None
    label: str | None = None
    reference: str | None = None
    data: str | None = None
    """Name of the data, as in the table's own name; `settings` has what `--data` takes."""
    split: str | None = None
    variant: str = ""
    """What differs from the run's recorded settings, e.g. limit-50."""
    beta: Positive | None = None
    max_length: Count | None = None
    """Tokens that prompt and completion were cut to; resolved, also where `settings` leave it open."""
    dtype: str | None = None
    """Numeric type of the weights, resolved: float32."""
    autocast: str | None = None
    """Type of the matrix products where they were made in another one: bfloat16."""
    fingerprints: Fingerprints = Fingerprints()

    def to_dict(self) -> dict[str, Any]:
        """Returns the form in which a table and its summary have it."""
        return dict(msgspec.to_builtins(self))

    @property
    def rows(self) -> Rows | None:
        """Which rows it is of; None where the table does not record it."""
        if not (self.settings or {}).get("data"):
            return None
        return msgspec.convert(self.settings, Rows)


class ScoreAbout(TableAbout, kw_only=True, frozen=True):
    """Of a score or token table."""

    imported_from: str | None = None
    """The file of another tool that it was read from."""


class TheoryAbout(TableAbout, kw_only=True, frozen=True):
    """Of a table of gradient products."""

    gamma: Positive | None = None
    parameters: str | None = None
    """Whose gradients were taken: all, last-N, lora or head."""
    n_parameters: Count | None = None
    n_parameters_by_form: dict[str, int] | None = None
    autograd_fallback: list[str] | None = None
    at_reference: bool | None = None
    """Whether model and reference are the same, as at the start of a training."""
    data_fingerprint: str | None = None
    n_excluded: Count = 0
    """Pairs left out before the table was made."""


class PredictionAbout(TableAbout, kw_only=True, frozen=True, rename={"from_": "from"}):
    """Of a table of predicted and measured changes between two checkpoints."""

    from_: str | None = None
    to: str | None = None
    at: str | None = None
    n: Count | None = None
    n_excluded: Count = 0
    """Pairs left out before the table was made."""
    distance: float | None = None


About = TypeVar("About", bound=TableAbout)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Returns a table's metadata; raises DpotoolError when it is not valid."""
    about = read_raw_metadata(path)
    _check(path, about, TheoryAbout)  # whose keys are those of all
    return about


def _check(path: str | Path, about: Mapping[str, Any], schema: type[About]) -> About:
    found = check_value(about, schema, where=f"{path}: its metadata", remedy=_REMEDY)
    for name, value in (found.settings or {}).items():
        check_value(value, Scalar | list[Scalar], where=f"{path}: settings.{name}", remedy=_REMEDY)  # type: ignore[arg-type]
    check_value(found.settings or {}, Config, where=f"{path}: settings", remedy=_REMEDY)
    return found


def read_about(path: Path, schema: type[About]) -> About:
    """Returns what a table says of itself; raises DpotoolError when that cannot be read or is not what it has to be."""
    about = read_raw_metadata(path)
    rows = about.get("rows")
    if "settings" not in about and isinstance(rows, Mapping):  # as version 0.1 wrote it at first
        known = {name: about.get(name) for name in ("beta", "reference", "max_length")}
        split = about.get("split")
        about = {**about, "settings": {**known, "split": None if split in ("test", "all") else split, **rows}}
    return _check(path, about, schema)


def list_flags(settings: Mapping[str, Any]) -> list[str]:
    """Returns settings, by field name, as flags with their values; a switch has none, what is not set is left out."""
    words = []
    for name, value in settings.items():
        flag = f"--{name.rstrip('_').replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return words


def repeat_import(config: Mapping[str, Any], about: ScoreAbout, output: str, **others: Any) -> str:
    """Returns the `dpotool import` command that makes a score table again, with `others` in place of its settings.

    Args:
        config: of the run folder's manifest.
        about: the table's metadata, which goes before it: a later import into the same folder has another manifest.
    """
    file = about.imported_from or config["file"]
    known = {"beta": about.beta, "data": about.data, "split": about.split}
    own = {name: value for name, value in known.items() if value is not None}
    settings = {name: value for name, value in {**config, **own, **others}.items() if name not in ("file", "output")}
    return shlex.join(["dpotool", "import", str(file), *list_flags(settings), "--output", output])

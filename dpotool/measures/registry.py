"""The registry of measures of a pair under a model, with everything that commands and pages need to know of each.

To add one: write its function in a file of this room and add its entry here; from outside, `register_measure` adds one,
and so does a package that names a `Measure` as an entry point of the group `dpotool.measures`. What reads the entries:
the columns and the summary of `score`, what it prints, its table's schema, and docs/cli.md. Imports no torch.
"""

from __future__ import annotations

import pyarrow as pa

from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.measures.logps import LOGPS
from dpotool.measures.measure import Measure
from dpotool.measures.risks import CHES, SIMILARITY
from dpotool.plugins import register_installed
from dpotool.runs.schemas import SCORE_SCHEMA

ENTRY_POINTS = "dpotool.measures"

MEASURES: dict[str, Measure] = {measure.name: measure for measure in (LOGPS, CHES, SIMILARITY)}
"""Name -> measure, in the order of their columns; `find_measures` also has those of other packages."""


def register_measure(measure: Measure) -> Measure:
    """Adds a measure from outside; `score`, its tables and the reference page of this process then know it.

    Raises:
        ValueError: there is a measure of that name, or a column of that name in a score table.
    """
    taken = {name for known in MEASURES.values() for name in known.schema.names} | set(SCORE_SCHEMA.names)
    if measure.name in MEASURES:
        raise ValueError(f"there is a measure named {measure.name} already")
    if repeated := taken & set(measure.schema.names):
        raise ValueError(f"there are columns named {', '.join(sorted(repeated))} already")
    MEASURES[measure.name] = measure
    return measure


def find_measures() -> dict[str, Measure]:
    """Returns every measure, those of installed packages included."""
    register_installed(ENTRY_POINTS, register_measure)
    return MEASURES


def choose_measures(names: str) -> list[Measure]:
    """Returns the log-probabilities, which all others need, and the measures of a comma-separated list.

    Raises:
        DpotoolError: there is none of that name; the message lists the nearest.
    """
    known = find_measures()
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise DpotoolError(
                f"unknown measure {name!r}",
                where="--measures",
                expected=", ".join(known),
                remedy=suggest_nearest(name, known),
            )
    return [measure for measure in known.values() if measure is LOGPS or measure.name in wanted]


def build_schema(measures: list[Measure]) -> pa.Schema:
    """Returns the schema of a score table with these measures: what every one has, then what each adds."""
    schema = SCORE_SCHEMA
    for measure in measures:
        for field in measure.schema:
            schema = schema if field.name in schema.names else schema.append(field)
    return schema


def write_measures() -> str:
    """Returns the registry in Markdown, for the reference page: each measure in a line, then all columns in a table."""
    measures = find_measures().values()
    lines = [f"- `{measure.name}`: {measure.summary} Price: {measure.price}." for measure in measures]
    lines += ["", "| measure | column | unit | what it is |", "|---|---|---|---|"]
    for measure in measures:
        for field in measure.schema:
            about = {key.decode(): value.decode().replace("|", "\\|") for key, value in field.metadata.items()}
            lines.append(f"| `{measure.name}` | `{field.name}` | {about['unit']} | {about['definition']} |")
    return "\n".join(lines)

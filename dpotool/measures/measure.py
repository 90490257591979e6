"""What a measure is: its columns, what it needs of a model, and how it is computed, summarised and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from dpotool.compare.scored_run import ScoredRun
from dpotool.progress import Progress
from dpotool.stats.bootstrap import bootstrap_ratios

if TYPE_CHECKING:
    import pandas as pd

    from dpotool.data.pairs import TokenizedPair
    from dpotool.likelihood.pair_logps import ScoredPairs
    from dpotool.likelihood.scorer import Scorer

Need = Literal["logps", "tokens", "hidden states", "output layer"]
"""What a measure takes from the model: sums that scoring has anyway, its values per token, or another forward pass."""


@dataclass(frozen=True, slots=True)
class ModelView:
    """Pairs under one model, as a measure is given them."""

    scorer: Scorer
    """For a measure that needs more than `logps`: the model, and how it is run."""
    pairs: Sequence[TokenizedPair]
    logps: ScoredPairs
    """Of these pairs; with per-token values where the measure needs tokens."""
    progress: Progress


Values = Mapping[str, Any]
"""Column -> a value for each pair, in their order."""


@dataclass(frozen=True, slots=True)
class ShownValue:
    """A row of the table that `score` prints."""

    label: str
    key: str
    """In the summary."""
    digits: int = 2
    scale: float = 1.0
    """100 for a share in per cent."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One thing that can be said about each pair under a model."""

    name: str
    summary: str
    """One sentence: what it is good for."""
    needs: Need
    price: str
    """What it costs beside the log-probabilities, for the reference page."""
    columns: tuple[pa.Field, ...]
    """What `compute` gives for each pair under one model (`runs.schemas.column`, with unit and definition)."""
    compute: Callable[[ModelView], Values]
    """Returns those columns."""
    takes_reference: bool = True
    """Compute it under the reference too, into columns `ref_...`; null where there is none."""
    derived: tuple[pa.Field, ...] = ()
    """Columns that follow from the others."""
    derive: Callable[[pd.DataFrame, float], Values] | None = None
    """Takes a frame with all columns of the measure, and beta; returns the derived ones."""
    summarize: Callable[[Measure, ScoredRun, int], dict[str, Any]] | None = None
    """Takes the scored run and a seed; returns what the summary says of it. Without it, the mean of every column."""
    shown: tuple[ShownValue, ...] = field(default=())
    """What `score` prints; without it, every mean."""

    @property
    def schema(self) -> pa.Schema:
        """All its columns in a score table."""
        under_reference = self.columns if self.takes_reference else ()
        return pa.schema([*self.columns, *map(_under_reference, under_reference), *self.derived])

    @property
    def shown_values(self) -> tuple[ShownValue, ...]:
        return self.shown or tuple(ShownValue(f"{name}, mean", name) for name in self.schema.names)

    def summarize_run(self, run: ScoredRun, seed: int) -> dict[str, Any]:
        """Returns what the summary of a score table says of this measure."""
        return summarize_means(self, run, seed) if self.summarize is None else self.summarize(self, run, seed)


def _under_reference(column: pa.Field) -> pa.Field:
    about = {**column.metadata, b"definition": f"{column.name} under the reference".encode()}
    return pa.field(f"ref_{column.name}", column.type, metadata=about)


def summarize_means(measure: Measure, run: ScoredRun, seed: int) -> dict[str, Any]:
    """Returns the mean over scored pairs of every column with a 95 % bootstrap interval; None where a pair has none."""
    known = {name: run.scored[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in measure.schema.names}
    ratios = {name: (values, np.ones(run.n)) for name, values in known.items() if run.n and np.isfinite(values).all()}
    intervals = bootstrap_ratios(ratios, clusters=run.clusters, seed=seed) if ratios else {}
    return {name: intervals[name].to_dict("mean") if name in intervals else None for name in known}


def measure_pairs(
    measures: Sequence[Measure], policy: ModelView, reference: ModelView | None, beta: float
) -> dict[str, np.ndarray]:
    """Returns every column of the measures, a value for each pair; NaN under a reference that there is none of."""
    import pandas as pd

    found: dict[str, np.ndarray] = {}
    for measure in measures:
        columns = dict(measure.compute(policy))
        if measure.takes_reference:
            nothing = dict.fromkeys((column.name for column in measure.columns), np.full(len(policy.pairs), np.nan))
            under_reference = nothing if reference is None else measure.compute(reference)
            columns |= {f"ref_{name}": values for name, values in under_reference.items()}
        if measure.derive is not None:
            columns |= measure.derive(pd.DataFrame(columns), beta)
        found |= {name: np.asarray(values) for name, values in columns.items()}
    return found

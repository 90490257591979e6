"""Which of the trained models to take: the knee of the trade-off.

Of the runs whose reward accuracy lies within the baseline's own 95 % interval, the one that keeps the chosen
log-likelihood highest, if that gain is beyond its interval and chance. A setting that was trained with several seeds is
judged by all of them, not by its luckiest run. docs/verdict.md has the rule and its limits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpotool.compare.differences import Comparison, excludes_zero, is_beyond_chance
from dpotool.compare.seeds import find_repetitions
from dpotool.stats.wording import format_interval, say_if_few

_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run, or a setting with all its seeds, against the baseline."""

    name: str
    run: str
    """Label of the run; of a setting, of the one with the baseline's seed."""
    gain: Mapping[str, Any]
    """Difference in chosen log-likelihood: `mean`, `ci_low`, `ci_high`, `p_adjusted`."""
    cost: Mapping[str, Any] | None
    """Difference in reward accuracy; None where it is not known."""
    floor: float
    """The baseline's accuracy at the lower end of its interval, on the pairs of `gain` (of a setting, on all)."""
    slack: float
    """How far that lies below the baseline's accuracy."""
    n: int
    n_prompts: int | None = None
    seeds: tuple[Any, ...] = ()
    """Of a setting that was trained with several; empty for a run."""

    @property
    def is_affordable(self) -> bool:
        return self.cost is not None and self.cost["mean"] >= -self.slack - _ROUNDING

    @property
    def is_gaining(self) -> bool:
        return excludes_zero(self.gain) and is_beyond_chance(self.gain) and self.gain["mean"] > 0


def recommend(comparison: Comparison, seeds: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any] | None:
    """Returns the run at the knee with its gain and cost against the baseline.

    `recommended` is the label of a run (of a setting with several seeds, named in `setting`, the one with the
    baseline's seed), the baseline's own where nothing else gains; `candidates` are those within its interval. None
    where the baseline has no accuracy, or no other run's log-likelihood can be compared: there is no knee then.

    Args:
        seeds: settings trained with several seeds (`seeds.pool_seeds`).
    """
    table: dict[str, dict[Hashable, Any]] = {str(run["label"]): run for run in comparison.runs.to_dict("records")}
    base = table[comparison.baseline]
    is_known = [each["chosen_logps"] is not None for each in comparison.differences.values()]
    if math.isnan(base["reward_accuracy"]) or (is_known and not any(is_known)):
        return None
    own = {"value": base["reward_accuracy"], "ci_low": base["reward_accuracy_low"]}
    pooled = {label for row in seeds for label in row["runs"].values()}
    candidates = _list_runs(comparison, find_repetitions(comparison, pooled | {comparison.baseline}))
    candidates += _list_settings(seeds, own, base["seed"])
    affordable = [each for each in candidates if each.is_affordable]
    best = max((each for each in affordable if each.is_gaining), key=lambda each: each.gain["mean"], default=None)
    label = comparison.baseline if best is None else best.run
    return {
        "recommended": label,
        "setting": best.name if best is not None and best.seeds else None,
        "lambda": None if math.isnan(table[label]["lambda"]) else table[label]["lambda"],
        "path": str(table[label]["path"]),
        "accuracy_floor": _floor(own) if best is None else best.floor,
        "candidates": [each.name for each in affordable],
        "gain": None if best is None else _interval(best.gain),
        "cost": None if best is None or best.cost is None else _interval(best.cost),
        "statement": _state_none(comparison, candidates) if best is None else _state_best(comparison, best),
    }


def _list_runs(comparison: Comparison, left_out: Collection[str]) -> list[Candidate]:
    """Every run by itself, on the pairs it shares with the baseline."""
    found = []
    for label, difference in comparison.differences.items():
        chosen, accuracy = difference["chosen_logps"], difference["reward_accuracy"]
        if label in left_out or chosen is None:
            continue
        own = {"value": math.nan, "ci_low": math.nan} if accuracy is None else difference["accuracies"]["baseline"]
        gain = chosen["difference"] | {"p_adjusted": chosen["p_adjusted"]}
        cost = None if accuracy is None else accuracy["difference"]
        floor, n_prompts = _floor(own), difference["n_prompts"]
        found.append(Candidate(label, label, gain, cost, floor, own["value"] - floor, difference["n"], n_prompts))
    return found


def _list_settings(seeds: Sequence[Mapping[str, Any]], own: Mapping[str, float], seed: Any) -> list[Candidate]:
    """Every setting with several seeds, against the baseline of the same seeds."""
    found = []
    for row in seeds:
        if row["chosen_logps"] is not None:
            run = row["runs"].get(seed) or row["runs"][row["seeds"][0]]
            values = (row["chosen_logps"], row["reward_accuracy"], _floor(own), own["value"] - _floor(own), row["n"])
            found.append(Candidate(row["label"], run, *values, seeds=tuple(row["seeds"])))
    return found


def _floor(accuracy: Mapping[str, float]) -> float:
    """The lower end of the baseline's accuracy; the accuracy itself where that is not known."""
    return float(accuracy["value"] if math.isnan(accuracy["ci_low"]) else accuracy["ci_low"])


def _interval(difference: Mapping[str, Any]) -> dict[str, float]:
    return {name: difference[name] for name in ("mean", "ci_low", "ci_high")}


def _state_none(comparison: Comparison, candidates: Sequence[Candidate]) -> str:
    base = comparison.baseline
    known = [each for each in candidates if each.cost is not None]
    if not comparison.differences:
        return f"Only {base} here: there is nothing to choose from."
    if not candidates:
        return f"Stay with {base}: all other runs are of its own setting, or without log-likelihoods."
    if not known:
        return f"Stay with {base}: no other run's reward accuracy is known."
    if any(each.is_affordable for each in known):
        return f"Stay with {base}: no run that keeps its accuracy is shown to hold the chosen log-likelihood higher."
    ends = " or ".join(f"{floor:.1f} %" for floor in sorted({round(100 * each.floor, 1) for each in known}))
    return f"Stay with {base}: every other run's reward accuracy lies below {ends}, the lower end of its interval."


def _state_best(comparison: Comparison, best: Candidate) -> str:
    base = comparison.baseline
    gain, cost = format_interval(best.gain), format_interval(best.cost, "+z.1f", 100)
    few = say_if_few(best.n, best.n_prompts)
    if best.seeds:
        return (
            f"Take {best.name}: of what loses on average at most {100 * best.slack:.1f} points of reward accuracy, how "
            f"far {base}'s 95 % interval reaches down, it keeps the chosen log-likelihood highest, {gain} nats above "
            f"{base} of the same seed, over seeds {', '.join(map(str, best.seeds))}; accuracy changes by {cost} points."
            f"{few}"
        )
    n_own = next(run.n for run in comparison.scored if run.label == base)
    shared = f" on the {best.n} pairs they share" if best.n < n_own else ""
    return (
        f"Take {best.name}: of the runs with a reward accuracy within {base}'s 95 % interval{shared} (at least "
        f"{100 * best.floor:.1f} %) it keeps the chosen log-likelihood highest, {gain} nats above {base}; accuracy "
        f"changes by {cost} points.{few}"
    )

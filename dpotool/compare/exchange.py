"""The exchange rate on the trade-off curve: how much likelihood the next step gains, and how much accuracy it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dpotool.compare.differences import Comparison
from dpotool.compare.scored_run import ScoredRun
from dpotool.stats.intervals import Interval, format_interval
from dpotool.stats.paired import compare_means, compare_shares


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The run beside another on the curve: the next lower, or next higher, in chosen log-likelihood."""

    name: str
    is_above: bool
    gain: Interval
    """Chosen log-likelihood, nats: the step from the lower of the two to the higher."""
    cost: Interval
    """Reward accuracy over the same step, a share."""

    @property
    def points_per_nat(self) -> float:
        """Points of accuracy that change for each nat gained on this step."""
        return 100 * self.cost.value / self.gain.value

    def to_dict(self) -> dict[str, Any]:
        """Returns the form of `--json`."""
        gain, cost = self.gain.to_dict("mean"), self.cost.to_dict("mean")
        return {"name": self.name, "is_above": self.is_above, "gain": gain, "cost": cost, "rate": self.points_per_nat}

    def say(self, name: str) -> str:
        """Returns what the step costs, in a sentence."""
        gain, cost = format_interval(self.gain), format_interval(self.cost, "+z.1f", 100)
        way = f"The next step, to {self.name}," if self.is_above else f"The step from {self.name} to {name}"
        rate = f"{self.points_per_nat:+z.1f} points per nat"
        return f"{way} changes the chosen answers by {gain} nats and accuracy by {cost} points ({rate})."


def find_neighbours(comparison: Comparison, label: str) -> tuple[Neighbour, ...]:
    """Returns the runs next below and above one in mean chosen log-likelihood, over the pairs they share with it."""
    runs = {run.label: run for run in comparison.scored}
    means = comparison.runs.set_index("label")["chosen_logps"]
    known = means[means.notna()]
    below, above = known[known < known[label]], known[known > known[label]]
    found = []
    if len(below):
        name = str(below.idxmax())
        found.append(_step(name, runs[name], runs[label], is_above=False))
    if len(above):
        name = str(above.idxmin())
        found.append(_step(name, runs[label], runs[name], is_above=True))
    return tuple(each for each in found if each is not None)


def _step(name: str, lower: ScoredRun, higher: ScoredRun, *, is_above: bool) -> Neighbour | None:
    """The paired differences of the higher run from the lower; None where one has no accuracy."""
    shared = lower.scored.index.intersection(higher.scored.index)
    low, high = lower.restrict(shared), higher.restrict(shared)
    if not len(shared) or any("reward_accuracy" not in run.columns for run in (low, high)):
        return None
    gain = compare_means(high.columns["chosen_logps"], low.columns["chosen_logps"], clusters=low.clusters)
    cost = compare_shares(high.columns["reward_accuracy"], low.columns["reward_accuracy"], clusters=low.clusters)
    return Neighbour(name, is_above, gain.difference, cost.difference) if gain.difference.value else None

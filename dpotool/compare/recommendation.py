"""Which of the trained models to take: of those shown to be no worse, the one with the highest chosen likelihood.

The baseline must itself be a trained run that ranks pairs and lowers the chosen answers, or there is nothing to remedy.
`compare.eligibility` has the conditions. A setting that was trained with several seeds is judged by all of them, not by
its luckiest run. docs/verdict.md has the rule, its defaults and its limits.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpotool.compare.blends import match_trained, write_command
from dpotool.compare.controls import SCALED, Controls
from dpotool.compare.differences import Comparison
from dpotool.compare.eligibility import COIN, Candidate, Rule, list_candidates, measure_alone
from dpotool.compare.exchange import Neighbour, find_neighbours
from dpotool.compare.runs_table import read_interval
from dpotool.compare.seeds import PooledSetting, find_repetitions
from dpotool.stats.intervals import Interval, format_interval, say_if_few
from dpotool.wording import count

TAKE, STAY, NOTHING_DISPLACED, NO_BASELINE = "take", "stay", "nothing displaced", "no baseline"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to take, and why."""

    kind: str
    """TAKE another run, STAY with the baseline, or nothing: NOTHING_DISPLACED, or NO_BASELINE that trains and ranks."""
    statement: str
    rule: Rule
    recommended: str | None = None
    """Label of a run, for STAY that of the baseline; of a setting, its run with the baseline's seed. Else None."""
    setting: str | None = None
    """Name of the setting if several of its seeds were compared together."""
    lambda_: float | None = None
    path: str | None = None
    eligible: tuple[str, ...] = ()
    failures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name -> the conditions that it is not shown to meet (`eligibility.Candidate.failures`)."""
    gain: Interval | None = None
    """Chosen log-likelihood against the baseline, nats."""
    cost: Interval | None = None
    """Reward accuracy against the baseline, a share."""
    margin_kept: float | None = None
    """Its mean margin over the baseline's."""
    neighbours: tuple[Neighbour, ...] = ()
    n_needed: float | None = None
    """If too few pairs are the reason that no run is eligible: how many would rule out the loss."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the form of `--json`."""
        return {
            "kind": self.kind,
            "recommended": self.recommended,
            "setting": self.setting,
            "lambda": self.lambda_,
            "path": self.path,
            "delta": self.rule.delta,
            "margin_share": self.rule.margin_share,
            "candidates": list(self.eligible),
            "failures": {name: list(failed) for name, failed in self.failures.items()},
            "gain": self.gain and self.gain.to_dict("mean"),
            "cost": self.cost and self.cost.to_dict("mean"),
            "margin_kept": self.margin_kept,
            "neighbours": [each.to_dict() for each in self.neighbours],
            "pairs_needed": self.n_needed,
            "statement": self.statement,
        }


def recommend(
    comparison: Comparison,
    seeds: Sequence[PooledSetting] = (),
    rule: Rule | None = None,
    controls: Controls | None = None,
) -> Recommendation | None:
    """Returns the run to take with its gain and cost against the baseline, or why none is recommended.

    None where the baseline has no accuracy, or no other run's log-likelihood can be compared.

    Args:
        seeds: settings trained with several seeds (`seeds.pool_seeds`).
        controls: what costs nothing; never recommended itself, but named where it does as well.
    """
    rule = rule or Rule()
    table: dict[str, dict[Hashable, Any]] = {str(run["label"]): run for run in comparison.runs.to_dict("records")}
    base = table[comparison.baseline]
    is_known = [each.metrics["chosen_logps"] is not None for each in comparison.differences.values()]
    if math.isnan(base["reward_accuracy"]) or (is_known and not any(is_known)):
        return None
    problem = _find_baseline_problem(comparison.baseline, base)
    if problem is not None:
        kind, text = problem
        return Recommendation(kind, text + _say_if_dominated(comparison), rule)
    pooled = {label for row in seeds for label in row.runs.values()}
    left_out = find_repetitions(comparison, pooled | {comparison.baseline})
    left_out |= {blend.label for blend, _ in match_trained(comparison)}  # an approximation of a run that is there
    return _choose(comparison, table, list_candidates(comparison, seeds, left_out, rule), rule, controls or Controls())


def _choose(
    comparison: Comparison,
    table: Mapping[str, Mapping[Hashable, Any]],
    candidates: Sequence[Candidate],
    rule: Rule,
    controls: Controls,
) -> Recommendation:
    eligible = tuple(each.name for each in candidates if each.is_eligible)
    failures = {each.name: each.failures for each in candidates}
    gaining = [each for each in candidates if each.is_eligible and each.is_gaining]
    label, best = comparison.baseline, max(gaining, key=_rank, default=None)
    about: dict[str, Any] = {"rule": rule, "eligible": eligible, "failures": failures}
    if best is None:
        nearest = _find_nearest(candidates)
        text = _state_none(comparison, candidates, nearest) + _say_if_dominated(comparison)
        text += _say_free(comparison, controls, rule, above=0.0)
        if nearest is not None and _is_for_want_of_pairs(nearest):
            about["n_needed"] = nearest.n_needed
        return Recommendation(STAY, text, recommended=label, **_locate(table[label]), **about)
    neighbours = () if best.seeds else find_neighbours(comparison, best.run)
    steps = [each.say(best.name) for each in neighbours if each.name != label]  # that from the baseline is said before
    checked = controls.say(best.name, pooled=True) if best.seeds else None
    checked = checked or controls.say(best.run)
    text = " ".join([_state_best(comparison, best), *steps, *([checked] if checked else [])])
    text += _say_free(comparison, controls, rule, above=best.gain.ci_high)
    return Recommendation(
        TAKE,
        text + say_if_few(best.n, best.n_prompts),
        recommended=best.run,
        setting=best.name if best.seeds else None,
        gain=best.gain,
        cost=best.accuracy_difference,
        margin_kept=best.margin_kept,
        neighbours=neighbours,
        **_locate(table[best.run]),
        **about,
    )


def _say_free(comparison: Comparison, controls: Controls, rule: Rule, *, above: float) -> str:
    """A sentence if the baseline scaled back, which needs no training, is eligible and gains more than `above`."""
    for curve in controls.curves:
        for point in curve.points if curve.kind == SCALED else ():  # the highest chosen likelihood first
            free = measure_alone(point.run, curve.full, rule)
            if free.gain.value <= above or not (free.is_eligible and free.is_gaining):
                continue
            return (
                f" {comparison.baseline} {point.name}, which needs no training, also meets the conditions and "
                f"keeps the chosen answers {'even more likely' if above else 'more likely'}: "
                f"{format_interval(free.gain)} nats more than {comparison.baseline}, with "
                f"{100 * free.margin_kept:.0f} % of its margin "
                f"(`{write_command(point.run.manifest['blend'])}`)."
            )
    return ""


def _rank(candidate: Candidate) -> tuple[float, float, float]:
    """The higher the better: chosen likelihood; between equal ones accuracy, then margin."""
    cost = candidate.accuracy_difference
    return candidate.gain.value, -math.inf if cost is None else cost.value, candidate.margin_kept


def _locate(run: Mapping[Hashable, Any]) -> dict[str, Any]:
    return {"lambda_": None if math.isnan(run["lambda"]) else run["lambda"], "path": str(run["path"])}


def _find_baseline_problem(label: str, base: Mapping[Hashable, Any]) -> tuple[str, str] | None:
    """Why nothing can be recommended against a baseline: it does not rank, was not trained, or displaces nothing."""
    accuracy = format_interval(read_interval(base, "reward_accuracy"), "z.1f", 100, " %")
    if base["reward_accuracy"] == 0 and base["reward_margins"] == 0:
        text = f"Nothing is recommended: every margin of {label} is 0, so it equals its reference and was not trained."
        return NO_BASELINE, f"{text} Choose a trained run with --baseline."
    if not base["reward_accuracy_low"] > COIN or not base["reward_margins_low"] > 0:
        text = f"Nothing is recommended: the baseline {label} is not shown to rank the pairs (accuracy {accuracy})."
        return NO_BASELINE, f"{text} Choose another run with --baseline, or train this one further."
    if not base["chosen_displacement_high"] < 0:
        change = format_interval(read_interval(base, "chosen_displacement"))
        text = f"Nothing is recommended: {label} is not shown to lower the chosen answers ({change} nats on average)"
        return NOTHING_DISPLACED, f"{text}, so there is no displacement to undo."
    return None


def _say_if_dominated(comparison: Comparison) -> str:
    """A sentence where another run is shown to be better than the baseline in everything."""
    names = ("chosen_logps", "reward_accuracy", "reward_margins")
    better = [
        label
        for label, each in comparison.differences.items()
        if all((found := each.metrics[name]) and found.is_shown and found.difference.value > 0 for name in names)
    ]
    if not better:
        return ""
    return f" {comparison.baseline} is worse than {' and '.join(better)} in chosen likelihood, accuracy and margin."


def _is_for_want_of_pairs(candidate: Candidate) -> bool:
    """Whether it fails by a loss that may be none: more pairs could show that it is not as large as delta."""
    cost = candidate.accuracy_difference
    return candidate.failures == ("loss",) and cost is not None and 100 * cost.value > -candidate.rule.delta


def _find_nearest(candidates: Sequence[Candidate]) -> Candidate | None:
    """The gaining run with the smallest loss that cannot be ruled out: the first that more pairs would admit."""
    gaining = [each for each in candidates if each.is_gaining and each.accuracy_difference is not None]
    lost = [each for each in gaining if "loss" in each.failures]
    return max(
        lost, key=lambda each: (_is_for_want_of_pairs(each), each.accuracy_difference.ci_low), default=None  # type: ignore[union-attr]
    )  # fmt: skip


def _state_none(comparison: Comparison, candidates: Sequence[Candidate], nearest: Candidate | None) -> str:
    stay = f"Stay with {comparison.baseline}:"
    if not comparison.differences:
        return f"Only {comparison.baseline} here: there is nothing to choose from."
    if not candidates:
        return f"{stay} all other runs have the same settings as it, or no log-likelihoods."
    if all(each.accuracy_difference is None for each in candidates):
        return f"{stay} no other run's reward accuracy is known."
    if not any(each.is_gaining for each in candidates):
        return f"{stay} no run is shown to keep the chosen answers more likely."
    if any(each.is_eligible for each in candidates):
        return f"{stay} no run that meets the conditions is shown to keep the chosen answers more likely."
    if nearest is not None:
        return f"{stay} {_say_loss(nearest)}"
    named = "; ".join(f"{each.name} {_say_failures(each)}" for each in candidates if each.is_gaining)
    return f"{stay} of the runs that keep the chosen answers more likely, {named}."


def _say_loss(nearest: Candidate) -> str:
    """What a run that is not eligible may lose, and how many pairs would decide it."""
    assert nearest.accuracy_difference is not None
    cost, delta = nearest.accuracy_difference, nearest.rule.delta
    change = format_interval(cost, "+z.1f", 100)
    if 100 * cost.value <= -delta:
        return (
            f"every run that keeps the chosen answers more likely costs too much accuracy, or may do so. The cheapest, "
            f"{nearest.name}, changes accuracy by {change} points, and at most {delta:g} points may be lost."
        )
    text = (
        f"these {count(nearest.n, 'pair')} cannot rule out that {nearest.name}, which comes closest, loses "
        f"{max(0.0, -100 * cost.ci_low):.1f} points of reward accuracy ({change}), and at most {delta:g} points "
        "may be lost."
    )
    others = [name for name in nearest.failures if name != "loss"]
    if others:
        return f"{text} It also {_say_failures(nearest, others)}."
    if math.isnan(nearest.n_needed):
        return text
    return f"{text} About {nearest.n_needed:,.0f} pairs would be enough to rule that out, if it loses none."


def _say_failures(candidate: Candidate, names: Sequence[str] | None = None) -> str:
    accuracy, rule = candidate.accuracy, candidate.rule
    kept = "an unknown share" if math.isnan(candidate.margin_kept) else f"{100 * candidate.margin_kept:.1f} %"
    own = format_interval(accuracy, "z.1f", 100, " %")
    texts = {
        "accuracy unknown": "has no known reward accuracy",
        "pairs": f"shares only {candidate.n} of the baseline's {count(candidate.n_baseline, 'pair')}",
        "loss": f"is not shown to lose less than {rule.delta:g} points",
        "coin": f"is not shown to rank more than half of the pairs right ({own})",
        "margin": f"is not shown to keep {100 * rule.margin_share:g} % of the margin (it keeps {kept})",
    }
    return " and ".join(texts[name] for name in names or candidate.failures)


def _state_best(comparison: Comparison, best: Candidate) -> str:
    base, rule = comparison.baseline, best.rule
    gain, cost = format_interval(best.gain), format_interval(best.accuracy_difference, "+z.1f", 100)
    over = f" of the same seed, over seeds {', '.join(map(str, best.seeds))}" if best.seeds else ""
    return (
        f"Take {best.name}. Of the runs that are shown to lose less than {rule.delta:g} points of reward accuracy, it "
        f"keeps the chosen answers most likely: {gain} nats above {base}{over}. Accuracy changes by {cost} points, and "
        f"{100 * best.margin_kept:.0f} % of the margin remains."
    )

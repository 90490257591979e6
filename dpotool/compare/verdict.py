"""Is a model displaced, and does it matter? One statement by the criteria of docs/verdict.md, with its numbers.

Each criterion is judged by its 95 % interval: it is met or failed only where the whole interval says so, else `open`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpotool.compare.diagnosed_run import find_diagnosis
from dpotool.compare.diagnosis import say_mass
from dpotool.compare.scored_run import ScoredRun
from dpotool.compare.summaries import CHANGE_GAP, KEPT, measure
from dpotool.stats.intervals import Interval, format_interval, say_if_few
from dpotool.wording import count

MISSING = {
    "scored pairs": ("no pair could be scored.", "The summary beside the scores says why the pairs were left out."),
    "log-likelihoods": (
        "there are rewards but no log-likelihoods.",
        "Score the model itself: `dpotool score MODEL --reference START`.",
    ),
    "reference": (
        "displacement is a change from a reference, and there is none.",
        "Score with a reference: `dpotool score RUN --reference START`.",
    ),
    "lengths": (
        "the table has no completion lengths, so the loss of probability per token is unknown.",
        "Import again with chosen_tokens and rejected_tokens, or score the model itself: `dpotool score MODEL`.",
    ),
}
"""What a verdict needs -> why there is none without it, and what to do."""
KINDS = ("none", "benign", "harmful", "unclear")
MET, FAILED, OPEN = "met", "failed", "open"
NEAR = 0.9
"""Smallest ratio, as a geometric mean over chosen tokens, of the policy's probability to the reference's."""
_MEANS = ("chosen_displacement", "rejected_displacement", CHANGE_GAP)
_VALUES = ("reward_accuracy", "chosen_displaced_share", KEPT)
_CRITERIA = {
    "rejected_falls_more": "the rejected completions fall more",
    "ranking_kept": "more than half of the pairs are ranked right",
    "mass_near_chosen": f"chosen tokens keep at least {NEAR:.0%} of their probability".replace("%", " %"),
}
_DENIALS = {
    "rejected_falls_more": "the rejected completions do not fall more",
    "ranking_kept": "fewer than half of the pairs are ranked right",
    "mass_near_chosen": f"chosen tokens lose more than {1 - NEAR:.0%} of their probability".replace("%", " %"),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model is displaced, and whether that matters."""

    kind: str
    """One of KINDS."""
    statement: str
    """A sentence with the numbers."""
    criteria: dict[str, str]
    """`displaced` and the three criteria -> met, failed or open."""
    evidence: dict[str, Interval]
    """The numbers behind: nats, shares, and `chosen_probability_kept`."""
    n: int
    """Scored pairs."""
    next: str
    """What to do."""

    @property
    def word(self) -> str:
        """The kind, as a table says it."""
        return show_kind(self.kind)

    def to_dict(self) -> dict[str, Any]:
        """Returns the form of every summary and of `--json`."""
        return {
            "kind": self.kind,
            "statement": self.statement,
            "criteria": self.criteria,
            "evidence": {
                name: each.to_dict("mean" if name in _MEANS else "value") for name, each in self.evidence.items()
            },
            "n": self.n,
            "next": self.next,
        }


def show_kind(kind: str) -> str:
    """Returns a kind of verdict as a table says it: a reader would take "none" for a verdict that is missing."""
    return "no fall" if kind == "none" else kind


def judge_displacement(run: ScoredRun, *, seed: int = 0) -> Verdict | None:
    """Returns the verdict on a scored run, or None where it lacks what `find_missing` names.

    Where chosen tokens are shown to lose their probability and the folder has a diagnosis of the run too, the
    statement also says where that probability went.
    """
    if find_missing(run) is not None:
        return None
    evidence = measure(run, (*_MEANS, *_VALUES), seed=seed)
    criteria = {
        "rejected_falls_more": _judge(evidence[CHANGE_GAP], 0.0, is_above=False),
        "ranking_kept": _judge(evidence["reward_accuracy"], 0.5),
        "mass_near_chosen": _judge(evidence[KEPT], NEAR),
    }
    displaced = _judge(evidence["chosen_displacement"], 0.0, is_above=False)
    within_noise = _is_within_noise(run, evidence["chosen_displacement"])
    kind = "unclear" if within_noise else _classify(displaced, criteria)
    statement = _state(kind, displaced, criteria, evidence, run.n, run.n_prompts)
    is_lost = kind == "none" and criteria["ranking_kept"] == FAILED and bool(run.columns["reward_margins"].any())
    if is_lost:
        statement += f" But {_with_number('ranking_kept', _DENIALS['ranking_kept'], evidence)}."
    if within_noise:
        statement = _state_noise(run, evidence)
    if criteria["mass_near_chosen"] == FAILED:
        statement += _say_where_it_went(run)
    next_ = _NEXT_WITHIN_NOISE if within_noise else _NEXT_WITHOUT_RANKING if is_lost else _advise(kind)
    return Verdict(kind, statement, {"displaced": displaced, **criteria}, evidence, run.n, next_)


def _say_where_it_went(run: ScoredRun) -> str:
    """What a diagnosis of this run adds; empty without one of the same model on the same pairs."""
    found = None if run.path is None else find_diagnosis([run.folder], run=run)
    if found is None or not found.is_of(run) or not (found.summary.get("mass") or {}).get("shares"):
        return ""
    return f" {say_mass(found.summary['mass'], found.summary.get('vocabulary'))}"


def find_missing(run: ScoredRun) -> str | None:
    """Returns the first key of MISSING that a run lacks for a verdict; None if it has everything."""
    if not run.n:
        return "scored pairs"
    if run.scored["chosen_logps"].isna().all():
        return "log-likelihoods"
    if not run.is_referenced:
        return "reference"
    return None if "chosen_tokens" in run.columns else "lengths"


def _judge(interval: Interval, bound: float, *, is_above: bool = True) -> str:
    """Returns "met" if the whole interval lies above (or below) a bound, "failed" if on the other side, else "open"."""
    low, high = interval.ci_low, interval.ci_high
    if not (math.isfinite(low) and math.isfinite(high)):
        return OPEN
    if not is_above:
        low, high, bound = -high, -low, -bound
    return MET if low > bound else FAILED if high <= bound else OPEN


def _classify(displaced: str, criteria: Mapping[str, str]) -> str:
    """docs/verdict.md in code."""
    if displaced == FAILED:
        return "none"
    if displaced == OPEN:
        return "none" if criteria["mass_near_chosen"] == MET else "unclear"
    if FAILED in criteria.values():
        return "harmful"
    return "benign" if set(criteria.values()) == {MET} else "unclear"


def _state(
    kind: str,
    displaced: str,
    criteria: Mapping[str, str],
    evidence: Mapping[str, Interval],
    n_pairs: int,
    n_prompts: int | None,
) -> str:
    change = f"log pi(chosen) changed by {format_interval(evidence['chosen_displacement'])} nats on average"
    share = f"it fell on {_percent(evidence['chosen_displaced_share'])} of {count(n_pairs, 'pair')}"
    details = f"{change}; {share}"
    few = say_if_few(n_pairs, n_prompts)
    if displaced == FAILED:
        return f"No displacement: {details}.{few}"
    if kind == "none":
        return f"No displacement shown: {details}; chosen tokens keep {_kept(evidence)} of their probability.{few}"
    if displaced == OPEN:
        return f"It is not settled whether there is displacement: {details}.{few}"
    if kind == "benign":
        met = "; ".join(_with_number(name, _CRITERIA[name], evidence) for name in criteria)
        return f"Benign displacement: {details}. But {met}.{few}"
    if kind == "harmful":
        failed = "; ".join(
            _with_number(name, _DENIALS[name], evidence) for name, state in criteria.items() if state == FAILED
        )
        return f"Harmful displacement: {details}, and {failed}.{few}"
    unsettled = ", nor whether ".join(
        _with_number(name, _CRITERIA[name], evidence) for name, state in criteria.items() if state == OPEN
    )
    doubt = f"These pairs do not show whether {unsettled}."
    return f"Displaced, but it is not settled whether that is harmful: {details}. {doubt}{few}"


def _with_number(name: str, clause: str, evidence: Mapping[str, Interval]) -> str:
    if name == "ranking_kept":
        return f"{clause} ({_percent(evidence['reward_accuracy'])})"
    if name == "mass_near_chosen":
        return f"{clause} ({_kept(evidence)})"
    return f"{clause} (by {format_interval(evidence[CHANGE_GAP])} nats against the chosen)"


def _kept(evidence: Mapping[str, Interval]) -> str:
    return _percent(evidence[KEPT])


_NEXT_WITHIN_NOISE = "Score again with --dtype float32, where rounding is some thousand times smaller."

_NEXT_WITHOUT_RANKING = (
    "The problem is the ranking, not displacement. First check whether chosen and rejected "
    "are swapped, or train longer."
)


def _is_within_noise(run: ScoredRun, change: Interval) -> bool:
    """Whether the mean change is no larger than what rounding alone can do to one pair's; a change of 0 is none."""
    found = [(run.noise or {}).get(name) for name in ("logps", "ref_logps")]
    floor = sum(float(each["largest"]) for each in found if each is not None)
    return 0 < abs(change.value) <= floor


def _state_noise(run: ScoredRun, evidence: Mapping[str, Interval]) -> str:
    change = format_interval(evidence["chosen_displacement"])
    return (
        f"No larger than rounding error: log pi(chosen) changed by {change} nats on average over "
        f"{count(run.n, 'pair')}, and two scorings of the same pair can differ by as "
        f"much.{say_if_few(run.n, run.n_prompts)}"
    )


def _advise(kind: str) -> str:
    return {
        "none": "There is nothing to undo. If accuracy or margin is too low, a larger lambda (1 is DPO) may raise it.",
        "benign": "Keep this model, or run `dpotool sweep` to see what a smaller lambda gains and costs.",
        "harmful": "Train with a smaller lambda. `dpotool sweep` finds the one that costs least, and "
        "`dpotool theory-gap` forecasts its effect before training.",
        "unclear": "Score more pairs, with a larger --limit or more held-out --data.",
    }[kind]


def _percent(interval: Interval) -> str:
    return format_interval(interval, "z.1f", 100, " %")

"""The first measure, which all else rests on: log-probabilities of chosen and rejected under policy and reference."""

from __future__ import annotations

from typing import Any

from dpotool.compare.scored_run import ScoredRun, derive_rewards
from dpotool.compare.summaries import summarize_scores
from dpotool.measures.measure import Measure, ModelView, ShownValue, Values
from dpotool.runs.schemas import SCORE_SCHEMA


def compute_logps(view: ModelView) -> Values:
    """Returns the sums over completion tokens, EOS included, in nats."""
    return {"chosen_logps": view.logps.chosen, "rejected_logps": view.logps.rejected}


def _summarize(measure: Measure, run: ScoredRun, seed: int) -> dict[str, Any]:
    return summarize_scores(run, seed=seed)


LOGPS = Measure(
    name="logps",
    summary="Log-probabilities, rewards and displacement: always there, and what verdict and comparison rest on.",
    needs="logps",
    price="a forward pass of each model, once: the values are stored",
    columns=tuple(SCORE_SCHEMA.field(f"{side}_logps") for side in ("chosen", "rejected")),
    compute=compute_logps,
    derived=tuple(
        SCORE_SCHEMA.field(name)
        for name in (
            "chosen_rewards", "rejected_rewards", "reward_margins", "chosen_displacement", "rejected_displacement",
        )
    ),
    derive=derive_rewards,
    summarize=_summarize,
    shown=(
        ShownValue("log pi(chosen), mean", "chosen_logps"),
        ShownValue("log pi(chosen), median", "chosen_logps_median"),
        ShownValue("log pi(rejected), mean", "rejected_logps"),
        ShownValue("log pi(rejected), median", "rejected_logps_median"),
        ShownValue("perplexity on chosen", "chosen_perplexity", 3),
        ShownValue("perplexity on rejected", "rejected_perplexity", 3),
        ShownValue("change of log pi(chosen)", "chosen_displacement"),
        ShownValue("change of log pi(rejected)", "rejected_displacement"),
        ShownValue("pairs with chosen displaced, %", "chosen_displaced_share", 1, 100),
        ShownValue("reward margin", "reward_margins", 4),
        ShownValue("reward accuracy, %", "reward_accuracy", 1, 100),
    ),
)  # fmt: skip

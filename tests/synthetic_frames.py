"""Score tables, theory tables, runs tables and metrics that look like real ones, for the tests of results and plots.

Log-likelihoods are about -2 nats a token over lengths with a long tail, policies move both completions together (as
displacement does), and u, v, |W|^2 and |L|^2 come from gradients, so the table's columns agree with each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dpotool.compare.differences import Comparison, Difference
from dpotool.compare.scored_run import ScoredRun
from dpotool.runs.schemas import SCORE_SCHEMA
from dpotool.stats.intervals import Interval
from dpotool.stats.paired import Tested


def make_score_frame(
    n: int = 300,
    *,
    seed: int = 0,
    beta: float = 0.1,
    displacement: float = -12.0,
    gap: float = 6.0,
    n_excluded: int = 0,
    has_reference: bool = True,
) -> pd.DataFrame:
    """A score table of n scored pairs; `displacement` is the mean change of the chosen, `gap` the mean of a - b."""
    same = np.random.default_rng(0)  # the pairs and the reference are the same for every policy
    tokens = {side: np.maximum(2, same.lognormal(3.4, 0.5, n)).astype(int) for side in ("chosen", "rejected")}
    ref = {side: -tokens[side] * same.lognormal(0.6, 0.25, n) for side in tokens}
    rng = np.random.default_rng(seed + 1)
    common = rng.gamma(2.0, 0.5, n) * displacement
    frame = pd.DataFrame(
        {
            "pair_id": np.arange(n),
            "status": "ok",
            "prompt_tokens": same.integers(5, 60, n),
            "chosen_tokens": tokens["chosen"],
            "rejected_tokens": tokens["rejected"],
            "chosen_logps": ref["chosen"] + common + rng.normal(0, 2 + gap / 3, n),
            "rejected_logps": ref["rejected"] + common - gap + rng.normal(0, 2 + gap / 3, n),
            "ref_chosen_logps": ref["chosen"],
            "ref_rejected_logps": ref["rejected"],
        }
    )
    for side in ("chosen", "rejected"):
        frame[f"{side}_rewards"] = beta * (frame[f"{side}_logps"] - frame[f"ref_{side}_logps"])
    frame["reward_margins"] = frame["chosen_rewards"] - frame["rejected_rewards"]
    frame["score_chosen"], frame["score_rejected"] = 8.0, 5.0
    if not has_reference:
        frame = frame.drop(columns=["ref_chosen_logps", "ref_rejected_logps", "chosen_rewards", "rejected_rewards"])
        frame = frame.drop(columns="reward_margins")
    left_out = pd.DataFrame({"pair_id": np.arange(n, n + n_excluded), "status": "does not fit max length"})
    frame = pd.concat([frame, left_out]) if n_excluded else frame
    return frame.reindex(columns=SCORE_SCHEMA.names).reset_index(drop=True)


def make_theory_frame(n: int = 300, *, seed: int = 0, n_parameters: int = 12, scale: float = 1e4) -> pd.DataFrame:
    """A theory table at policy = reference, from random gradients W and L that share a component."""
    rng = np.random.default_rng(seed)
    size = scale * rng.lognormal(0, 0.6, (n, 1))
    shared = rng.normal(0.45, 0.8, (n, 1)) * rng.normal(size=(n, n_parameters))
    W = size * (rng.normal(size=(n, n_parameters)) + shared)
    L = size * rng.lognormal(0, 0.3, (n, 1)) * (rng.normal(size=(n, n_parameters)) + np.abs(shared) * np.sign(shared))
    inner, w2, l2 = (W * L).sum(1), (W * W).sum(1), (L * L).sum(1)
    with np.errstate(divide="ignore"):
        case = np.select(
            [inner <= np.minimum(w2, l2), inner >= l2], ["chosen_up_rejected_down", "both_up"], "both_down"
        )
        high = np.where(inner > 0, w2 / inner, np.inf)
    return pd.DataFrame(
        {
            "pair_id": np.arange(n),
            "grad_inner_product": inner,
            "chosen_grad_sq_norm": w2,
            "rejected_grad_sq_norm": l2,
            "grad_cosine": inner / np.sqrt(w2 * l2),
            "chosen_logratios": 0.0,
            "rejected_logratios": 0.0,
            "u": 0.5 * inner,
            "v": inner - l2,
            "band_low": np.maximum(0, inner / l2),
            "band_high": high,
            "entanglement": case,
        }
    )


def make_metric_rows(n_steps: int = 120, *, seed: int = 0, drop: float = 40.0, eval_every: int = 20) -> list[dict]:
    """Rows of metrics.jsonl: training batches that scatter, evaluations of a fixed set that do not, from step 0."""
    rng = np.random.default_rng(seed)
    rows = []
    for step in range(n_steps + 1):
        progress = 1 - np.exp(-3 * step / n_steps)
        chosen, rejected = -95 - drop * progress, -90 - 1.4 * drop * progress
        if step:
            logps = {"logps/chosen": chosen + rng.normal(0, 6), "logps/rejected": rejected + rng.normal(0, 6)}
            rows.append({"step": step, "loss": 0.69 - 0.1 * progress, "lambda": 1.0, **logps})
        if step % eval_every == 0:
            rows.append({"step": step, "eval_loss": 0.69, "eval_logps/chosen": chosen, "eval_logps/rejected": rejected})
    return rows


def make_runs_table(lambdas: Sequence[float] = (0.5, 0.75, 0.9, 0.95, 1.0), others: Sequence[str] = ()) -> pd.DataFrame:
    """A runs table of a sweep: the smaller lambda, the higher the chosen log-likelihood and the lower the accuracy."""
    rng = np.random.default_rng(3)
    rows = []
    for index, name in enumerate([*lambdas, *others]):
        f = name if isinstance(name, float) else rng.uniform(0.6, 1.0)
        values = {
            "reward_accuracy": 0.62 + 0.12 * f + rng.normal(0, 0.006),
            "chosen_logps": -95 - 45 * f**3 + rng.normal(0, 1.5),
            "reward_margins": 0.1 + 0.5 * f + rng.normal(0, 0.01),
        }
        half = {"reward_accuracy": 0.05, "chosen_logps": 6.0, "reward_margins": 0.06}
        is_constant = isinstance(name, float)
        label = name if not is_constant else "DPO" if f == 1 else f"DPO-Shift λ={f:g}"
        row = {"label": label, "lambda": f if is_constant else np.nan, "n": 300, "n_excluded": 0, "seed": index}
        row["loss"] = "dpo" if is_constant and f == 1 else "shift" if is_constant or "λ" in str(name) else "ipo"
        row["lambda_schedule"] = "constant" if is_constant else "linear_increase" if "λ" in str(name) else None
        for metric, value in values.items():
            row |= {metric: value, f"{metric}_low": value - half[metric], f"{metric}_high": value + half[metric]}
        rows.append(row)
    return pd.DataFrame(rows)


def make_scored_run(label: str = "DPO", n: int = 300, **options) -> ScoredRun:
    """A run in memory, of `make_score_frame`."""
    return ScoredRun(make_score_frame(n, **options), label)


def make_comparison(runs: pd.DataFrame | None = None, baseline: str | None = None) -> Comparison:
    """A comparison of the runs of a runs table: differences of their values, with intervals half as wide as theirs.

    Without a name the baseline is DPO, or the first run.
    """
    runs = make_runs_table() if runs is None else runs
    table = runs.set_index("label")
    baseline = baseline or ("DPO" if "DPO" in table.index else str(table.index[0]))
    differences = {}
    for label, run in table.drop(baseline).iterrows():
        metrics = {}
        for name in ("chosen_logps", "reward_accuracy", "reward_margins"):
            mean, half = run[name] - table.loc[baseline, name], (run[f"{name}_high"] - run[f"{name}_low"]) / 4
            interval = Interval(mean, mean - half, mean + half)
            metrics[name] = None if np.isnan(mean) else Tested(difference=interval, p_value=0.01)
        differences[str(label)] = Difference(300, None, False, metrics, None)
    scored = [make_scored_run(str(label)) for label in runs["label"]]
    return Comparison(runs, scored, baseline, differences, [])


def make_prediction_frame(n: int = 300, *, seed: int = 0, slope: float = 0.75) -> pd.DataFrame:
    """A prediction table whose measured changes are `slope` times the predicted ones and some noise."""
    rng = np.random.default_rng(seed)
    frame = {"pair_id": np.arange(n), "chosen_logps": -90.0, "rejected_logps": -95.0}
    for side, size in (("chosen", 6.0), ("rejected", 9.0)):
        predicted = 2 - rng.gamma(1.5, size, n)
        frame[f"{side}_change"] = slope * predicted + rng.normal(0, 1.5, n)
        frame[f"predicted_{side}_change"] = predicted
    return pd.DataFrame(frame)


def make_ladder(predicted: float, *, rates: Sequence[float] = (8e-4, 4e-4, 2e-4, 1e-4)) -> dict:
    """One gap of a verification: what is left over falls as the square of the rate, what is measured is near."""
    ladder = [
        {"rate": rate, "measured": predicted * (1 + rate), "residual": abs(predicted) * rate**2} for rate in rates
    ]
    return {"predicted": predicted, "slope": 2.0, "ladder": ladder}


def make_gap_summary(
    shifts: Sequence[float] = (0.5, 0.95), *, batch_sign: float = 1.0, is_verified: bool = True
) -> dict:
    """Those entries of a theory summary that the pictures of gaps read; at the reference gaps are (1 - f) times one."""
    sizes = {"paper": (1600.0, -2400.0), "self_step": (160.0, -32.0), "batch": (6.0 * batch_sign, -0.7)}

    def describe(value: float) -> dict:
        return {"mean": value, "ci_low": value - 0.2 * abs(value), "ci_high": value + 0.4 * abs(value)}

    gaps = {
        f"{f:g}": {
            kind: {name: describe((1 - f) * size) for name, size in zip(("g1", "g2"), both, strict=True)}
            for kind, both in sizes.items()
        }
        for f in shifts
    }
    signs = {"self_step": {"g1": {"value": 0.0}, "g2": {"value": 0.0}}}
    signs["batch"] = {"g1": {"value": 0.066}, "g2": {"value": 0.133}}
    summary = {"n": 60, "n_excluded": {"gradient product is not finite": 2}, "gaps": gaps}
    summary["sign_disagreements"] = dict.fromkeys(gaps, signs)
    if is_verified:
        by_shift = {key: {"g1": make_ladder(8 * (1 - float(key))), "g2": make_ladder(float(key) - 1)} for key in gaps}
        summary["verification"] = {"n": 12, "dtype": "float64", "optimizers": {"sgd": by_shift, "adamw": by_shift}}
    return summary

"""What a diagnosis says: on which tokens the answers moved, where the probability went, which risk measure was right.

Everything here follows from the two tables that `diagnose` writes. Sums are in nats over all pairs divided by their
number, so that the parts of a displacement add up to its mean; intervals are over pairs, pairs of one prompt together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dpotool.compare.scored_run import SIDES
from dpotool.stats.bootstrap import bootstrap_means, read_clusters
from dpotool.stats.correlation import correlate_many

SPAN_TEXTS = {
    "shared_prefix": "before they differ",
    "shared": "later, in both",
    "divergent": "in this one alone",
    "eos": "end token",
}
"""Span -> what tables and pictures call it."""
SPANS = tuple(SPAN_TEXTS)
RISKS = {
    "ches": ("CHES", "ches"),
    "ln_ches": ("ln-CHES", "ches"),
    "ches_all": ("CHES with the last state", "ches"),
    "ln_ches_all": ("ln-CHES with the last state", "ches"),
    "edit_similarity": ("edit similarity", "similarity"),
    "chosen_tokens": ("chosen answer's length", None),
    "length_difference": ("difference in length", None),
    "reference_margin": ("reference margin", None),
    "head_risk": ("output layer's products", "output layer"),
    "driver_score": ("driver score", None),
}
"""Risk measures: column -> what tables call it, and the part of the work that it costs beyond a forward pass."""
POSITION_BINS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
LENGTH = "chosen_tokens"


def add_head_risk(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds CHES's counterpart in gradients of the output layer: <W, L> - |W|^2, above 0 where a step would lower W."""
    return frame.assign(head_risk=frame["head_inner_product"] - frame["head_chosen_sq_norm"])


def summarize_diagnosis(frame: pd.DataFrame, tokens: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """Returns the summary of a diagnosis; what needs a reference is None without one.

    `chosen` and `rejected` each hold the mean `displacement`, its parts by `spans` (they add up to it) with the share
    of tokens in each, `positions` (part by place in the answer) and `worst` (how few tokens carry most of the fall);
    `mass` says where the chosen tokens' probability went; `risks` how each measure ranks the pairs.
    """
    scored = frame[(frame["status"] == "ok") & np.isfinite(frame["chosen_displacement"].astype(float))]
    summary: dict[str, Any] = {
        "n": len(scored),
        "n_excluded": frame.loc[frame["status"] != "ok", "status"].value_counts().to_dict(),
        "n_not_finite": int((frame["status"] == "ok").sum()) - len(scored),
    }
    has_changes = bool(len(scored))
    for side in SIDES:
        mine = tokens[(tokens["side"] == side) & tokens["pair_id"].isin(scored["pair_id"])] if has_changes else None
        summary[side] = _summarize_side(scored, mine, side, seed) if mine is not None else None
    summary["mass"] = _summarize_mass(tokens, scored) if has_changes else None
    summary["risks"] = _summarize_risks(scored, seed) if has_changes else None
    return summary


def _summarize_side(scored: pd.DataFrame, tokens: pd.DataFrame, side: str, seed: int) -> dict[str, Any]:
    names = [f"{side}_displacement", *(f"{side}_{span}" for span in SPANS)]
    columns = {name: scored[name].to_numpy(dtype=np.float64) for name in names}
    means = bootstrap_means(columns, clusters=read_clusters(scored), seed=seed)
    counts = tokens["span"].value_counts()
    spans = {
        span: {
            **means[f"{side}_{span}"].to_dict("mean"),
            "n_tokens": int(counts.get(span, 0)),
            "share_of_tokens": float(counts.get(span, 0) / max(1, len(tokens))),
        }
        for span in SPANS
    }
    changes = (tokens["logp"] - tokens["ref_logp"]).to_numpy(dtype=np.float64)
    return {
        "displacement": means[f"{side}_displacement"].to_dict("mean"),
        "spans": spans,
        "positions": _cut_by_position(tokens["position"].to_numpy(), changes, len(scored)),
        "worst": _find_worst(tokens["pair_id"].to_numpy(), changes),
    }


def _cut_by_position(positions: np.ndarray, changes: np.ndarray, n_pairs: int) -> list[dict[str, Any]]:
    """Parts of the mean displacement by place in the answer; they add up to it."""
    bins = cut_positions(positions)
    rows = []
    for number, first in enumerate(POSITION_BINS):
        is_here = bins == number
        if is_here.any():
            last = POSITION_BINS[number + 1] - 1 if number + 1 < len(POSITION_BINS) else int(positions.max())
            rows.append(
                {
                    "first": first,
                    "last": min(last, int(positions.max())),
                    "n_tokens": int(is_here.sum()),
                    "part": float(changes[is_here].sum() / n_pairs),
                    "per_token": float(changes[is_here].mean()),
                }
            )
    return rows


def cut_positions(positions: np.ndarray) -> np.ndarray:
    """Returns which of POSITION_BINS each place in an answer, counted from 0, falls into."""
    return np.digitize(positions, POSITION_BINS) - 1


def name_positions(row: Mapping[str, Any]) -> str:
    """Returns "5" or "9-16": the first and the last place of a row of `positions`, counted from 1."""
    first, last = row["first"] + 1, row["last"] + 1
    return f"{first}" if first == last else f"{first}-{last}"


def _find_worst(pair_ids: np.ndarray, changes: np.ndarray) -> dict[str, Any] | None:
    """Median over falling pairs of the worst token's share in the fall, and of how many tokens make up half of it.

    The fall of a pair is the sum over its tokens that fell.
    """
    shares, halves = [], []
    for places in pd.Series(np.arange(len(pair_ids))).groupby(pair_ids).indices.values():
        mine = changes[places]
        falls = np.sort(-mine[mine < 0])[::-1]
        if mine.sum() < 0 and len(falls):
            shares.append(falls[0] / falls.sum())
            halves.append(int(np.searchsorted(np.cumsum(falls), falls.sum() / 2) + 1))
    if not shares:
        return None
    return {"n": len(shares), "share": float(np.median(shares)), "n_for_half": float(np.median(halves))}


def _summarize_mass(tokens: pd.DataFrame, scored: pd.DataFrame) -> dict[str, Any] | None:
    """Where the probability went at positions where the chosen token lost some: sums of probability over positions.

    `lost` is what these tokens lost, and `to` where it went: to the rejected answer's next token, to the token that was
    the reference's most likely one already, to the end token, and elsewhere. They add up to what was lost; one that
    lost too is below 0.
    """
    if "p_token" not in tokens:
        return None
    mine = tokens[(tokens["side"] == "chosen") & tokens["p_token"].notna() & tokens["pair_id"].isin(scored["pair_id"])]
    if mine.empty:
        return None
    change = {
        part: (mine[f"p_{part}"] - mine[f"ref_p_{part}"]).fillna(0).to_numpy()
        for part in ("token", "other_side", "ref_top")
    }
    eos = (mine["p_eos"] - mine["ref_p_eos"]).to_numpy() if mine["p_eos"].notna().all() else np.zeros(len(mine))
    eos = np.where(_is_named(mine), 0.0, eos)
    fell = change["token"] < 0
    lost = float(-change["token"][fell].sum())
    to = {"other_side": change["other_side"], "ref_top": change["ref_top"], "eos": eos}
    gone = {name: float(values[fell].sum()) for name, values in to.items()}
    gone["elsewhere"] = lost - sum(gone.values())
    return {
        "n_positions": len(mine),
        "n_fell": int(fell.sum()),
        "lost": lost,
        "to": gone,
        "shares": {name: value / lost for name, value in gone.items()} if lost > 0 else None,
        "entropy": float(mine["entropy"].mean()),
        "ref_entropy": float(mine["ref_entropy"].mean()),
        "total_variation": float(mine["total_variation"].mean()),
    }


def _is_named(tokens: pd.DataFrame) -> np.ndarray:
    """Whether the end token is counted already: as this token, as the rival or as the reference's favourite."""
    p_eos = tokens["p_eos"].to_numpy()
    named = [(tokens["span"] == "eos").to_numpy()]
    named += [np.isclose(tokens[f"p_{part}"], p_eos, rtol=1e-9, atol=0) for part in ("other_side", "ref_top")]
    return np.any(named, axis=0)


def _summarize_risks(scored: pd.DataFrame, seed: int) -> dict[str, Any] | None:
    """Spearman's rank correlation of each measure with the measured chosen displacement, and given the length."""
    frame = add_head_risk(scored)
    columns = {
        name: frame[name].to_numpy(dtype=np.float64) for name in RISKS if frame[name].notna().all() and len(frame)
    }
    measured = frame["chosen_displacement"].to_numpy(dtype=np.float64)
    length = frame[LENGTH].to_numpy(dtype=np.float64)
    found = correlate_many(columns, measured, length, read_clusters(frame), seed=seed)
    if LENGTH in found:
        found[LENGTH]["given"] = None  # nothing is left of the length given the length
    return {name: {"called": RISKS[name][0], "price": RISKS[name][1], **each} for name, each in found.items()}


def say_diagnosis(summary: dict[str, Any], label: str) -> list[str]:
    """Returns what a diagnosis says in plain sentences, the answer first."""
    chosen = summary["chosen"]
    if chosen is None:
        return [f"{label} has no reference, so its changes are unknown. The risk measures are in the table."]
    sentences = [_say_spans(chosen, label)]
    worst = chosen["worst"]
    if worst is not None:
        half = f", and {worst['n_for_half']:.0f} tokens make up half of it" if worst["n_for_half"] > 1 else ""
        sentences.append(
            f"In a typical answer that fell, one token carries {100 * worst['share']:.0f} % of the fall{half}."
        )
    if summary["mass"] is not None and summary["mass"]["shares"] is not None:
        sentences.append(say_mass(summary["mass"], summary.get("vocabulary")))
    best = _find_best_risk(summary["risks"])
    if best is not None:
        sentences.append(best)
    return sentences


def _say_spans(chosen: dict[str, Any], label: str) -> str:
    mean = chosen["displacement"]["mean"]
    spans = {span: chosen["spans"][span]["mean"] for span in SPANS}
    both = spans["shared_prefix"] + spans["shared"]
    verb = "lose" if mean < 0 else "gain"
    text = f"Under {label} the chosen answers {verb} {abs(mean):.2f} nats on average"
    if mean == 0 or any(part * mean < 0 for part in (both, spans["divergent"], spans["eos"])):
        return (
            f"{text}: {both:+.2f} on tokens that the rejected answer has too, {spans['divergent']:+.2f} on tokens "
            f"that it does not have, {spans['eos']:+.2f} on the end token."
        )
    shares = [100 * part / mean for part in (both, spans["divergent"], spans["eos"])]
    return (
        f"{text}: {shares[0]:.0f} % of it on tokens that the rejected answer has too, {shares[1]:.0f} % on tokens that "
        f"it does not have, and {shares[2]:.0f} % on the end token."
    )


def say_mass(mass: dict[str, Any], vocabulary: dict[str, Any] | None) -> str:
    """Returns in a sentence where the probability went that chosen tokens lost, and what gained most."""
    shares = {name: f"{100 * share:z.0f} %" for name, share in mass["shares"].items()}
    text = (
        f"Of the probability that chosen tokens lost, {shares['other_side']} went to the rejected answer's next token, "
        f"{shares['ref_top']} to the token that was most likely already, {shares['eos']} to the end token and "
        f"{shares['elsewhere']} elsewhere."
    )
    gained = (vocabulary or {}).get("gained") or []
    if gained:
        named = " and ".join(repr(item["token"]) for item in gained[:2])
        text += f" Over all positions {named} gained most."
    return text


def _is_beyond_chance(interval: Mapping[str, float]) -> bool:
    return interval["ci_low"] > 0 or interval["ci_high"] < 0


def _find_best_risk(risks: dict[str, Any] | None) -> str | None:
    """Names the measure that ranks the pairs best, and what is left of it given their length."""
    known = {name: each for name, each in (risks or {}).items() if each["rank_correlation"] is not None}
    if not known:
        return None
    known = {name: each for name, each in known.items() if _is_beyond_chance(each["rank_correlation"])}
    if not known:
        return "No measure that was known before training predicts better than chance which answers fell."
    name = max(known, key=lambda name: abs(known[name]["rank_correlation"]["value"]))
    risk = known[name]
    value = risk["rank_correlation"]
    how_far = "further" if value["value"] < 0 else "less"
    text = (
        f"Of what was known before training, one measure ranks the pairs best, {risk['called']}: the higher its value, "
        f"the {how_far} the chosen answer fell (rank correlation "
        f"{value['value']:+.2f} [{value['ci_low']:+.2f}, {value['ci_high']:+.2f}]"
    )
    if risk["given"] is not None and name != LENGTH:
        return f"{text}; {risk['given']['value']:+.2f} once the answer's length is known)."
    return f"{text})."

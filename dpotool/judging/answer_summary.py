"""What a model's answers are like: length, ends, repetition, sameness, distance from the reference; with intervals.

Questions are drawn in the bootstrap, with all their samples. n-grams are of tokens where the answers have them, else of
words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpotool.judging.answers import CUT_OFF, ENDED, Answer, match_answers
from dpotool.judging.judgments import are_identical
from dpotool.stats.bootstrap import bootstrap_means, bootstrap_ratios, bootstrap_shares
from dpotool.stats.paired import compare_means

N_GRAM = 4


def summarize_answers(
    answers: Sequence[Answer],
    baseline: Sequence[Answer] | None = None,
    logps: Mapping[tuple[str, int], tuple[float, float, int]] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the summary of one model's answers.

    Args:
        baseline: another model's answers to the same questions, to count those that are the same.
        logps: (question, sample) -> log pi, log pi_ref (nats, summed over answer tokens) and how many those are.
    """
    clusters = np.array([answer.question_id for answer in answers])
    turns = [_turns_of(answer) for answer in answers]
    finish = [answer.finish for answer in answers]
    means: dict[str, list[Any]] = {
        "characters": [len("".join(answer.turns)) for answer in answers],
        "repetition": [np.mean([repeated_share(turn, N_GRAM) for turn in each]) for each in turns],
        "distinct_2": [np.mean([1 - repeated_share(turn, 2) for turn in each]) for each in turns],
    }
    if all(answer.token_counts and None not in answer.token_counts for answer in answers):
        means["tokens"] = [sum(n for n in answer.token_counts if n) for answer in answers]
    shares = {}
    if all(each and None not in each for each in finish):
        shares = {"ended": [all(f == ENDED for f in each) for each in finish]}
        shares["cut_off"] = [CUT_OFF in each for each in finish]
    summary: dict[str, Any] = {"n": len(answers), "n_questions": len(set(clusters))}
    for name, value in bootstrap_means(means, clusters=clusters, seed=seed).items():
        summary[name] = value.to_dict("mean")
    for name, value in bootstrap_shares(shares, clusters=clusters, seed=seed).items():
        summary[name] = value.to_dict("mean")
    summary["distinct_grams"] = {f"{n}": count_distinct(turns, n) for n in (1, 2, N_GRAM)}
    summary["empty"] = sum(not answer.text.strip() for answer in answers)
    return summary | _compare(answers, baseline, seed) | _estimate_kl(answers, logps, seed)


def _compare(answers: Sequence[Answer], baseline: Sequence[Answer] | None, seed: int) -> dict[str, Any]:
    """Share of answers that are the baseline's, and the difference in length within a question."""
    if baseline is None:
        return {"identical": None, "longer": None}
    pairs, n_unmatched = match_answers(answers, baseline)
    if not pairs:
        return {"identical": None, "longer": None, "unmatched": n_unmatched}
    clusters = [ours.question_id for ours, _ in pairs]
    same = bootstrap_shares({"": [are_identical(*pair) for pair in pairs]}, clusters=clusters, seed=seed)[""]
    lengths = [[len("".join(answer.turns)) for answer in pair] for pair in pairs]
    longer = compare_means(*np.array(lengths, dtype=float).T, clusters=clusters, seed=seed)
    return {"identical": same.to_dict("mean"), "longer": longer.to_dict(), "unmatched": n_unmatched}


def _estimate_kl(
    answers: Sequence[Answer], logps: Mapping[tuple[str, int], tuple[float, float, int]] | None, seed: int
) -> dict[str, Any]:
    """The mean log-ratio per token of answers that the policy drew: an estimate of KL(pi || pi_ref) per token, nats.

    Unbiased for answers sampled at temperature 1 without top-k or top-p; of others it is a description of them.
    """
    if not logps:
        return {"logps_per_token": None, "ref_logps_per_token": None, "kl_per_token": None}
    rows = np.array([logps[answer.question_id, answer.sample] for answer in answers], dtype=np.float64)
    policy, reference, tokens = rows.T
    ratios = {"logps_per_token": (policy, tokens)}
    if np.isfinite(reference).all():
        ratios |= {"ref_logps_per_token": (reference, tokens), "kl_per_token": (policy - reference, tokens)}
    found = bootstrap_ratios(ratios, clusters=[answer.question_id for answer in answers], seed=seed)
    names = ("logps_per_token", "ref_logps_per_token", "kl_per_token")
    return {name: found[name].to_dict("mean") if name in found else None for name in names}


def repeated_share(tokens: Sequence[Any], n: int) -> float:
    """Returns the share of n-grams that occurred before in the same answer: 1 - different / all; 0 for short ones."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def count_distinct(turns: Sequence[Sequence[Sequence[Any]]], n: int) -> float:
    """Returns different n-grams over all n-grams of all answers together: it falls as more answers are counted."""
    grams = [tuple(turn[i : i + n]) for each in turns for turn in each for i in range(len(turn) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _turns_of(answer: Answer) -> Sequence[Sequence[Any]]:
    return answer.token_ids or [turn.split() for turn in answer.turns]

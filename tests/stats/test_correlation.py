"""Correlations in all resamples at once: against scipy, resample by resample, and a partial one worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap, linregress, pearsonr, spearmanr

from dpotool.stats.correlation import correlate_many, correlate_ranks, correlations, over_pairs, rank_correlations
from dpotool.theory.summary import _fit_slopes


def test_values_are_those_of_scipy_and_the_partial_ones_follow_the_formula() -> None:
    draw = np.random.default_rng(0)
    length, noise = draw.normal(size=(2, 80))
    scores = {"a": length + 0.3 * noise, "b": draw.normal(size=80)}
    measured = length + 0.5 * draw.normal(size=80)
    found = correlate_many(scores, measured, length, None)
    for name, column in scores.items():
        s_m, s_g, m_g = (
            spearmanr(*pair).statistic for pair in ((column, measured), (column, length), (measured, length))
        )
        got = found[name]["rank_correlation"]
        assert got is not None and got["value"] == pytest.approx(s_m)
        assert got["ci_low"] < s_m < got["ci_high"]
        partial = found[name]["given"]
        expected = (s_m - s_g * m_g) / np.sqrt((1 - s_g**2) * (1 - m_g**2))
        assert partial is not None and partial["value"] == pytest.approx(expected)
    one_by_one = correlate_ranks(scores["a"], measured, None, 0)
    assert one_by_one is not None
    both = found["a"]["rank_correlation"]
    assert both is not None and both["ci_low"] == pytest.approx(one_by_one["ci_low"], abs=0.03)


def correlate_resample(columns: list[np.ndarray]) -> np.ndarray:
    """Both correlations of the first column by scipy, as a resample was once computed: rows repeated, then ranked."""
    s_m, s_g, m_g = (spearmanr(columns[i], columns[j]).statistic for i, j in ((0, 2), (0, 1), (2, 1)))
    return np.array([s_m, (s_m - s_g * m_g) / np.sqrt((1 - s_g**2) * (1 - m_g**2))])


def test_resamples_that_are_counted_are_those_that_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties, prompts of several pairs, blocks of a few resamples: the ends of the intervals are the slow ones'."""
    monkeypatch.setattr("dpotool.stats.correlation.N_RESAMPLES", 60)
    monkeypatch.setattr("dpotool.stats.correlation._CELLS_PER_BLOCK", 7 * 40)
    draw = np.random.default_rng(2)
    columns = [np.round(draw.normal(size=40), 1) for _ in range(3)]
    clusters = np.array([str(n // 2) for n in range(30)] + [str(n) for n in range(30, 40)])
    found = correlate_many({"s": columns[0]}, columns[2], columns[1], clusters, seed=5)["s"]
    again, prompts = np.random.default_rng(5), np.unique(clusters)
    slow = []
    for _ in range(60):
        drawn = again.integers(len(prompts), size=len(prompts))
        rows = np.concatenate([np.flatnonzero(clusters == prompts[number]) for number in drawn])
        slow.append(correlate_resample([column[rows] for column in columns]))
    for place, kind in enumerate(("rank_correlation", "given")):
        got = found[kind]
        assert got is not None
        np.testing.assert_allclose(
            [got["ci_low"], got["ci_high"]], np.quantile(np.array(slow)[:, place], [0.025, 0.975]), atol=1e-12
        )


@pytest.mark.parametrize(
    ("counted", "by_scipy"),
    [
        (correlations, lambda x, y: pearsonr(x, y).statistic),
        (rank_correlations, lambda x, y: spearmanr(x, y).statistic),
        (_fit_slopes, lambda x, y: linregress(x, y).slope),
    ],
)
@pytest.mark.parametrize("n_prompts", [4, 30, 40])
def test_statistics_over_pairs_are_those_of_scipys_bootstrap(
    monkeypatch: pytest.MonkeyPatch, counted: Any, by_scipy: Callable[..., float], n_prompts: int
) -> None:
    """Ties, prompts of several pairs, blocks of a few resamples; where a resample has one value, the statistic is 0."""
    monkeypatch.setattr("dpotool.stats.correlation.N_RESAMPLES", 60)
    monkeypatch.setattr("dpotool.stats.correlation._CELLS_PER_BLOCK", 7 * 40)
    draw = np.random.default_rng(3)
    predicted = np.repeat(0.1, 4) if n_prompts == 4 else np.round(draw.normal(size=40), 1)
    predicted[0] = 2.3
    measured = 0.7 * predicted + draw.normal(size=len(predicted))
    clusters = np.array([str(n % n_prompts) for n in range(len(predicted))])
    members = [np.flatnonzero(clusters == prompt) for prompt in np.unique(clusters)]

    def resample(drawn: np.ndarray) -> float:
        rows = np.concatenate([members[number] for number in drawn])
        return by_scipy(predicted[rows], measured[rows]) if np.ptp(predicted[rows]) and np.ptp(measured[rows]) else 0.0

    options: Any = {"n_resamples": 60, "method": "percentile", "rng": np.random.default_rng(5), "vectorized": False}
    slow = bootstrap((np.arange(len(members)),), resample, **options).confidence_interval
    expected = {"value": by_scipy(predicted, measured), "ci_low": slow.low, "ci_high": slow.high}
    assert over_pairs(counted, predicted, measured, clusters, 5) == pytest.approx(expected, abs=1e-12)


def test_what_only_leans_on_length_has_nothing_left() -> None:
    """The score is the length itself: its correlation is high, and given length there is nothing to say."""
    length = np.arange(50.0)
    measured = length + np.tile([3.0, -3.0], 25)
    found = correlate_many({"length": length}, measured, length, None)["length"]
    assert found["rank_correlation"] is not None and found["rank_correlation"]["value"] > 0.9
    assert found["given"] is not None and found["given"]["value"] == 0.0


def test_a_column_of_one_value_has_no_correlation() -> None:
    found = correlate_many({"flat": np.ones(9)}, np.arange(9.0), np.arange(9.0) ** 2, None)
    assert found == {"flat": {"rank_correlation": None, "given": None}}


def test_pairs_of_one_prompt_are_drawn_together() -> None:
    """Each pair repeated four times says no more than the pairs by themselves, so the interval stays as wide."""
    draw = np.random.default_rng(1)
    score, measured = draw.normal(size=(2, 30))
    single = correlate_many({"s": score}, measured, np.arange(30.0), None)["s"]["rank_correlation"]
    repeated = [np.repeat(column, 4) for column in (score, measured, np.arange(30.0))]
    clusters = np.repeat(np.arange(30).astype(str), 4)
    grouped = correlate_many({"s": repeated[0]}, repeated[1], repeated[2], clusters)["s"]["rank_correlation"]
    assert single is not None and grouped is not None
    width = single["ci_high"] - single["ci_low"]
    assert grouped["ci_high"] - grouped["ci_low"] == pytest.approx(width, rel=0.15)

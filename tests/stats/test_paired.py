from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import stats

from dpotool.stats.bootstrap import bootstrap_means, bootstrap_shares
from dpotool.stats.paired import (
    MCNEMAR,
    SIGN_FLIPS,
    adjust_holm,
    apply_mcnemar,
    bootstrap_effect_size,
    compare_means,
    compare_shares,
    flip_signs,
)


def test_four_pairs_by_hand():
    """Differences 1, 1, 2, 0: mean 1, standard deviation sqrt(2/3), so d_z = sqrt(3/2).

    Of the 16 sign changes, sums of +-1 +-1 +-2 +-0 reach |4| in 4, so p = 4/16 = 1/4 (both signs of the zero count).
    """
    result = compare_means([2.0, 3.0, 5.0, 1.0], [1.0, 2.0, 3.0, 1.0])

    assert result.difference.value == 1.0
    assert result.effect_size.value == pytest.approx(math.sqrt(1.5))
    assert result.p_value == pytest.approx(0.25)
    assert (result.n, result.n_ties, result.test) == (4, 1, SIGN_FLIPS)


def test_mcnemar_by_hand_and_as_published():
    """2 against 8 of 10: p = 2 (1 + 10 + 45) / 1024 = 0.109375. 59 against 6: twice the binomial tail."""
    assert apply_mcnemar(2, 8) == pytest.approx(0.109375)
    assert apply_mcnemar(59, 6) == pytest.approx(2 * stats.binom.cdf(6, 65, 0.5))
    assert apply_mcnemar(5, 5) == 1.0
    assert apply_mcnemar(0, 0) == 1.0


def test_holm_by_hand():
    """p = .01, .04, .03, .005 over 4: .005*4 = .02, .01*3 = .03, .03*2 = .06, .04*1 = .04 raised to .06."""
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.5, 0.9]) == [1.0, 1.0]
    assert adjust_holm([]) == []


def test_holm_does_not_count_tests_that_could_not_be_made():
    first, missing, last = adjust_holm([0.01, math.nan, 0.04])

    assert (first, last) == pytest.approx((0.02, 0.04))
    assert math.isnan(missing)


def test_shares_count_who_is_right_alone():
    ours = np.array([1, 1, 1, 0, 0, 1, 0], dtype=bool)
    theirs = np.array([1, 0, 0, 1, 0, 1, 0], dtype=bool)

    result = compare_shares(ours, theirs)

    assert result.discordant == (2, 1)
    assert (result.n, result.n_ties, result.test) == (7, 4, MCNEMAR)
    assert result.difference.value == pytest.approx(1 / 7)
    assert result.p_value == 1.0
    assert {"only_model": 2, "only_baseline": 1}.items() <= result.to_dict().items()


def test_few_discordant_pairs_do_not_claim_certainty():
    """3 of 44 pairs speak for the model, none against: Clopper-Pearson's lower end is (0.025)^(1/3) = 0.2924.

    So the difference may be as low as (2 * 0.2924 - 1) * 3 / 44 = -0.0283, in keeping with McNemar's p = 1/4.
    """
    ours = np.arange(44) < 30
    theirs = np.arange(44) < 27

    result = compare_shares(ours, theirs)

    assert result.p_value == 0.25
    assert result.difference.ci_low == pytest.approx((2 * 0.025 ** (1 / 3) - 1) * 3 / 44)
    same = compare_shares(ours, ours).difference
    assert (same.ci_low, same.ci_high) == pytest.approx((0.025 ** (1 / 44) - 1, 1 - 0.025 ** (1 / 44)))


def test_swapping_the_models_turns_the_sign_and_keeps_the_p_value():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.3, 1, 60), rng.normal(0, 1, 60)

    forth, back = compare_means(a, b), compare_means(b, a)

    assert forth.difference.value == pytest.approx(-back.difference.value)
    assert forth.effect_size.value == pytest.approx(-back.effect_size.value)
    assert forth.p_value == pytest.approx(back.p_value, abs=0.01)


def test_the_permutation_test_agrees_with_the_t_test_where_that_holds():
    rng = np.random.default_rng(2)
    differences = rng.normal(0.25, 1.0, 80)

    assert flip_signs(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)


def test_random_signs_give_scipys_permutation_test():
    differences = np.random.default_rng(2).gamma(2.0, 1.0, 50) - 1.7

    theirs = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=50_000, batch=1000, rng=3
    )

    assert flip_signs(differences, n_permutations=50_000) == pytest.approx(theirs.pvalue, abs=0.006)


def test_sixty_thousand_pairs_take_seconds():
    start = time.process_time()
    flip_signs(np.random.default_rng(0).normal(size=60_000), n_permutations=1000)

    assert time.process_time() - start < 5


def test_the_effect_size_interval_is_scipys():
    d = np.random.default_rng(3).normal(0.4, 1.0, 90)

    ours = bootstrap_effect_size(d, n_resamples=20_000)
    theirs = stats.bootstrap(
        (d,), lambda x, axis: x.mean(axis) / x.std(axis, ddof=1), n_resamples=20_000, batch=1000, rng=2
    ).confidence_interval

    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(d.mean() / d.std(ddof=1))
    assert (ours.ci_low, ours.ci_high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * width)


@pytest.mark.parametrize("differences", [[0.1] * 3, [-3.3] * 6, np.full(50, 0.7), np.full(60, 100.3) - 90.3])
def test_differences_that_vary_by_rounding_alone_have_no_effect_size(differences):
    """The standard deviation of three times 0.1 is 1e-17, not 0, and no resample has a spread to divide by."""
    effect = compare_means(differences, np.zeros(len(differences))).effect_size

    assert all(math.isnan(end) for end in (effect.value, effect.ci_low, effect.ci_high))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("differences", [[1.0, 2.0], [1.0, 1.2, 1.1], [0.0] * 40 + [1.0]])
def test_an_effect_size_without_enough_resamples_has_no_interval(differences):
    """Resamples without spread: 1/2 of two pairs, 1/9 of three, (40/41)^41 = 37 % where one pair of 41 differs."""
    d = np.array(differences)
    effect = bootstrap_effect_size(d)

    assert effect.value == pytest.approx(d.mean() / d.std(ddof=1))
    assert math.isnan(effect.ci_low) and math.isnan(effect.ci_high)


def test_models_that_do_not_differ():
    same = np.arange(10.0)
    result = compare_means(same, same)

    assert (result.difference.value, result.difference.ci_low, result.difference.ci_high) == (0, 0, 0)
    assert result.p_value == 1.0
    assert result.n_ties == 10
    assert math.isnan(result.effect_size.value)


def test_prompts_that_do_not_repeat_change_nothing():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=50), rng.normal(size=50)

    assert compare_means(a, b, clusters=np.arange(50).astype(str)) == compare_means(a, b)


def test_copies_of_a_pair_add_nothing_once_they_are_one_prompt():
    """Each pair four times over: as independent pairs the interval halves; as clusters it is that of the originals."""
    rng = np.random.default_rng(5)
    d = rng.normal(0.2, 1, 60)
    copies, prompts = np.repeat(d, 4), np.repeat(np.arange(60), 4)

    once = bootstrap_means({"": d})[""]
    clustered = bootstrap_means({"": copies}, clusters=prompts)[""]
    naive = bootstrap_means({"": copies})[""]

    assert (clustered.ci_low, clustered.ci_high) == pytest.approx((once.ci_low, once.ci_high))
    assert naive.ci_high - naive.ci_low < 0.6 * (once.ci_high - once.ci_low)
    assert flip_signs(copies, prompts) == pytest.approx(flip_signs(d))


def test_shares_of_repeated_prompts_use_the_permutation_test():
    rng = np.random.default_rng(6)
    ours, theirs = rng.random(60) < 0.8, rng.random(60) < 0.6
    result = compare_shares(ours, theirs, clusters=np.repeat(np.arange(20), 3))

    assert result.test == SIGN_FLIPS
    assert result.p_value == flip_signs(ours.astype(float) - theirs, np.repeat(np.arange(20), 3))


@pytest.mark.parametrize("n_speaking", [4, 5])
def test_few_prompts_do_not_claim_certainty_however_many_pairs_they_have(n_speaking):
    """All three pairs of 4 of 40 prompts speak for the model: Clopper-Pearson's lower end is 0.025^(1/4) = 0.398.

    So the difference may be as low as (2 * 0.398 - 1) * 12 / 120 = -0.0205, in keeping with p = 2/16. By pairs, 12 to 0
    would be 0.025 and more.
    """
    prompts = np.repeat(np.arange(40), 3)
    result = compare_shares(prompts < n_speaking, prompts < 0, clusters=prompts)

    assert result.p_value == pytest.approx(2 / 2**n_speaking, abs=0.01)
    assert result.difference.ci_low == pytest.approx((2 * 0.025 ** (1 / n_speaking) - 1) * n_speaking / 40)


def test_prompts_whose_pairs_cancel_count_as_none():
    """One pair for the model and one for the baseline in each of 3 of 30 prompts: what 30 prompts may hide."""
    prompts = np.repeat(np.arange(30), 2)
    first = np.arange(60) % 2 == 0
    result = compare_shares(first & (prompts < 3), ~first & (prompts < 3), clusters=prompts)

    assert (result.difference.ci_low, result.difference.ci_high) == pytest.approx(
        (0.025 ** (1 / 30) - 1, 1 - 0.025 ** (1 / 30))
    )


def test_intervals_of_few_discordant_prompts_hold_no_difference_as_often_as_they_say():
    """Under no difference: 200 prompts of three pairs, 2.5 % of them discordant; of 300 studies 9 % once left out 0."""
    rng = np.random.default_rng(15)
    prompts = np.repeat(np.arange(200), 3)
    misses = []
    for seed in range(300):
        is_discordant, is_ours = rng.random(600) < 0.025, rng.random(600) < 0.5
        interval = compare_shares(
            is_discordant & is_ours,
            is_discordant & ~is_ours,
            clusters=prompts,
            n_resamples=500,
            n_permutations=1,
            seed=seed,
        ).difference
        misses.append(interval.ci_low > 0 or interval.ci_high < 0)

    assert np.mean(misses) <= 0.07


def test_a_share_of_all_prompts_is_no_certainty():
    """Wilson over 10 prompts, not over 30 pairs: the lower end for 10 of 10 is 1 - 0.27753."""
    share = bootstrap_shares({"": [True] * 30}, clusters=np.repeat(np.arange(10), 3))[""]

    assert share.ci_low == pytest.approx(1 - 0.27753, abs=1e-4)


def draw_independent(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.gamma(2.0, 1.0, 80) - 1.5, np.arange(80)


def draw_clustered(rng: np.random.Generator, n_prompts: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of 1 to 3 pairs that share most of what they vary by."""
    prompts = np.repeat(np.arange(n_prompts), rng.integers(1, 4, n_prompts))
    return 0.5 + rng.normal(0, 1, n_prompts)[prompts] + rng.normal(0, 0.5, len(prompts)), prompts


def draw_few_prompts(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return draw_clustered(rng, 40)


@pytest.mark.parametrize(
    ("draw", "fewest", "most"),
    [(draw_independent, 0.92, 0.98), (draw_clustered, 0.92, 0.98), (draw_few_prompts, 0.90, 0.95)],
)
def test_about_95_of_100_intervals_of_a_difference_hold_the_truth(draw, fewest, most):
    """600 samples with a true mean difference of 0.5; a standard error of 0.9 %."""
    rng = np.random.default_rng(12)
    hits = []
    for seed in range(600):
        differences, prompts = draw(rng)
        interval = bootstrap_means({"": differences}, clusters=prompts, n_resamples=1000, seed=seed)[""]
        hits.append(interval.ci_low <= 0.5 <= interval.ci_high)

    assert fewest <= np.mean(hits) <= most


def test_without_clusters_the_same_intervals_would_be_too_narrow():
    rng = np.random.default_rng(12)
    hits = []
    for seed in range(200):
        differences, _ = draw_clustered(rng)
        interval = bootstrap_means({"": differences}, n_resamples=500, seed=seed)[""]
        hits.append(interval.ci_low <= 0.5 <= interval.ci_high)

    assert np.mean(hits) < 0.92


def test_about_95_of_100_intervals_of_an_accuracy_difference_hold_the_truth():
    rng = np.random.default_rng(13)
    hits = []
    for seed in range(600):
        easy = rng.random(150)
        ours, theirs = easy < 0.7, (easy + rng.normal(0, 0.1, 150)) < 0.6
        difference = compare_shares(ours, theirs, n_resamples=1000, n_permutations=1, seed=seed).difference
        hits.append(difference.ci_low <= 0.7 - TRUE_SHARE <= difference.ci_high)

    assert 0.92 <= np.mean(hits) <= 0.98


TRUE_SHARE = 0.6
"""P(U + N(0, 0.1) < 0.6) for U uniform on [0, 1]: the ends are four standard deviations away."""


def test_false_alarms_are_as_rare_as_the_p_value_says():
    rng = np.random.default_rng(14)
    p_values = [flip_signs(rng.normal(0, 1, 30), n_permutations=199, seed=seed) for seed in range(500)]

    assert 0.025 <= np.mean(np.array(p_values) <= 0.05) <= 0.08

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scored_runs import write_scored_run

from dpotool.compare.differences import compare_runs
from dpotool.compare.runs_table import open_runs
from dpotool.compare.seeds import combine_seeds, pool_seeds


def test_two_seeds_by_hand():
    """Differences (1, 3) and (2, 4): seeds 2 and 3, mean 2.5.

    Over pairs the means are 1.5 and 3.5: A = 2 / 2 = 1. Over seeds the variance is 1/2: B = 1/4. Degrees of freedom
    (5/4)^2 / (1/1 + (1/16)/1) = 1.4706.
    """
    found = combine_seeds([np.array([1.0, 3.0]), np.array([2.0, 4.0])], None)

    half = stats.t.ppf(0.975, 25 / 17) * math.sqrt(1.25)
    assert found.difference.value == 2.5
    assert (found.difference.ci_low, found.difference.ci_high) == pytest.approx((2.5 - half, 2.5 + half))
    assert found.seed_sd == pytest.approx(math.sqrt(0.5))
    assert found.p_value == pytest.approx(2 * stats.t.sf(2.5 / math.sqrt(1.25), 25 / 17))


def test_seeds_that_agree_leave_the_interval_of_the_pairs():
    values = np.random.default_rng(0).normal(1, 1, 50)
    found = combine_seeds([values, values, values], None)

    t_interval = stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.difference.ci_low, found.difference.ci_high) == pytest.approx(tuple(t_interval))


def test_about_95_of_100_intervals_hold_the_truth_over_pairs_and_training():
    """600 studies of 3 seeds and 80 pairs; the true mean difference is 1, training moves it by 0.2 or so."""
    rng = np.random.default_rng(3)
    hits = []
    for _ in range(600):
        pairs = 1 + rng.normal(0, 1, 80)
        runs = [pairs + rng.normal(0, 0.2) + rng.normal(0, 0.3, 80) for _ in range(3)]
        found = combine_seeds(runs, None)
        hits.append(found.difference.ci_low <= 1 <= found.difference.ci_high)

    assert 0.92 <= np.mean(hits) <= 0.98


def test_settings_are_pooled_against_the_baseline_of_the_same_seed(tmp_path):
    runs = [
        write_scored_run(tmp_path / f"{name}-{seed}", seed=seed, displacement=displacement, **config)
        for seed in (1, 2, 3)
        for name, displacement, config in (
            ("dpo", -14, {"loss": "dpo"}),
            ("shift", -8, {"loss": "shift", "lambda_": 0.9, "lambda_schedule": "constant"}),
        )
    ]
    for run in runs:
        run.update_manifest(seed=int(run.name[-1]))
    alone = write_scored_run(tmp_path / "ipo-1", seed=4, loss="ipo")

    comparison = compare_runs(open_runs([*runs, alone]))
    [pooled] = pool_seeds(comparison)

    assert (pooled.label, pooled.seeds, pooled.n) == ("DPO-Shift λ=0.9", [1, 2, 3], 120)
    frames = [run.scored["chosen_logps"].to_numpy() for run in comparison.scored]
    by_seed = [float(np.mean(shift - dpo)) for dpo, shift in zip(frames[0:6:2], frames[1:6:2], strict=True)]
    chosen = pooled.metrics["chosen_logps"]
    assert chosen.difference.value == pytest.approx(np.mean(by_seed))
    assert chosen.seed_sd == pytest.approx(np.std(by_seed, ddof=1))
    assert chosen.difference.ci_low < chosen.difference.value < chosen.difference.ci_high


def train_seeds(folder, seeds=(1, 2), *, displacement=-8.0, **config):
    """Runs of one setting, as `sweep --seeds` trains them: the first seed cuts the pairs for all."""
    for seed in seeds:
        split_seed = None if seed == seeds[0] else seeds[0]
        path = folder.with_name(f"{folder.name}-{seed}")
        run = write_scored_run(path, seed=seed, displacement=displacement, split_seed=split_seed, **config)
        settings = run.read_manifest()["config"] | {"seed": seed}
        run.update_manifest(seed=seed, config=settings)
        yield run


SHIFT = {"loss": "shift", "lambda_schedule": "constant", "lambda_": 0.9}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SHIFT | {"learning_rate": 1e-6}, SHIFT | {"learning_rate": 5e-7}),
        (SHIFT | {"epochs": 1.0}, SHIFT | {"epochs": 2.0}),
        ({"loss": "robust", "label_smoothing": 0.1}, {"loss": "robust", "label_smoothing": 0.2}),
        (
            {"loss": "shift", "lambda_schedule": "adaptive", "adaptive_rule": "sign", "lambda_min": 0.75},
            {"loss": "shift", "lambda_schedule": "adaptive", "adaptive_rule": "band", "lambda_min": 0.75},
        ),
    ],
)
def test_runs_of_other_settings_are_no_repetition(tmp_path, ours, theirs):
    """One seed of each setting: nothing to pool. Two: a row for each, whose label says which is which."""
    base = [*train_seeds(tmp_path / "dpo", loss="dpo", displacement=-14)]
    one, other = [*train_seeds(tmp_path / "a", **ours)], [*train_seeds(tmp_path / "b", displacement=-5, **theirs)]

    assert pool_seeds(compare_runs(open_runs([*base, one[0], other[1]]), n_resamples=50)) == []

    rows = pool_seeds(compare_runs(open_runs([*base, *one, *other]), n_resamples=50))
    assert [row.seeds for row in rows] == [[1, 2], [1, 2]]
    assert rows[0].label != rows[1].label
    assert rows[0].metrics["chosen_logps"].difference.value < rows[1].metrics["chosen_logps"].difference.value - 1, (
        "none of -5 among those of -8"
    )


def test_labels_say_the_rule_of_a_lambda_per_pair_and_the_folder_where_no_label_tells_settings_apart(tmp_path):
    base = [*train_seeds(tmp_path / "dpo", loss="dpo")]
    adaptive = {"loss": "shift", "lambda_schedule": "adaptive", "lambda_min": 0.75}
    runs = [run for rule in ("sign", "band") for run in train_seeds(tmp_path / rule, adaptive_rule=rule, **adaptive)]
    rates = [run for rate in (1e-6, 5e-7) for run in train_seeds(tmp_path / f"{rate}", **SHIFT, learning_rate=rate)]

    assert [row.label for row in pool_seeds(compare_runs(open_runs([*base, *runs, *rates]), n_resamples=50))] == [
        "DPO-Shift λ per pair (sign)",
        "DPO-Shift λ per pair (band)",
        "DPO-Shift λ=0.9 (1e-06-1)",
        "DPO-Shift λ=0.9 (5e-07-1)",
    ]


def test_how_a_run_is_looked_at_is_no_setting(tmp_path):
    runs = [*train_seeds(tmp_path / "dpo", (1, 2, 3), loss="dpo"), *train_seeds(tmp_path / "a", (1,), **SHIFT)]
    runs += train_seeds(tmp_path / "b", (2,), **SHIFT, layout="paired")
    runs += train_seeds(tmp_path / "c", (3,), **SHIFT, logging_steps=5, device="cpu")

    [row] = pool_seeds(compare_runs(open_runs(runs), n_resamples=50))
    assert row.seeds == [1, 2, 3]


def test_two_runs_of_one_seed_count_once_and_say_so(tmp_path):
    runs = [*train_seeds(tmp_path / "dpo", loss="dpo"), *train_seeds(tmp_path / "a", **SHIFT)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once = pool_seeds(compare_runs(open_runs(runs), n_resamples=50))
    runs += train_seeds(tmp_path / "more" / "a", displacement=-2, **SHIFT)

    what = r"same settings and seed: DPO-Shift λ=0\.9 \(more/a-1\), DPO-Shift λ=0\.9 \(more/a-2\)$"
    with pytest.warns(UserWarning, match=what):
        [row] = pool_seeds(compare_runs(open_runs(runs), n_resamples=50))
    assert replace(row, runs={}) == replace(once[0], runs={})
    assert ["more" in label for label in row.runs.values()] == [False, False]

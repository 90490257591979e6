"""What is claimed and recommended where nothing, or little, is to be had."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scored_runs import compare_frames, write_scored_run
from synthetic_frames import make_score_frame

from dpotool.compare.compared_table import describe_differences
from dpotool.compare.differences import Comparison
from dpotool.compare.findings import find_out
from dpotool.compare.recommendation import recommend


def draw_studies(n_pairs: int, n_studies: int, n_models: int) -> list[Comparison]:
    """Studies in which no model differs from the baseline but by chance."""
    seeds = itertools.count()
    return [
        compare_frames({f"m{i}": make_score_frame(n_pairs, seed=next(seeds)) for i in range(1 + n_models)}, seed=study)
        for study in range(n_studies)
    ]


def count_claims(comparison: Comparison) -> tuple[bool, bool, bool]:
    """Whether a sentence claims a difference in likelihood, one in accuracy, and whether another run is recommended."""
    sentences = describe_differences(comparison)
    return (
        any(" keeps the chosen " in each or " pushes the chosen " in each for each in sentences),
        any("not beyond chance" not in each and "is the same" not in each for each in sentences),
        recommend(comparison).recommended not in (None, comparison.baseline),
    )


def test_of_five_pairs_nothing_is_claimed_where_nothing_is():
    """The smallest p-value of five pairs is 2/32. By the intervals alone, one model in six had been claimed."""
    claims = [count_claims(study) for study in draw_studies(5, 60, 1)]

    assert np.sum(claims, axis=0).tolist() == [0, 0, 0]


def test_false_claims_are_as_rare_as_the_adjusted_p_value_says():
    """Of 64 studies of three models and eight pairs at most 5 % may claim anything; a standard error of 2.7 %."""
    studies = draw_studies(8, 64, 3)
    claims = np.mean([count_claims(study) for study in studies], axis=0)

    assert (claims <= 0.1).all()
    chosen = [[each.metrics["chosen_logps"].difference for each in study.differences.values()] for study in studies]
    by_interval = np.mean([any(each.excludes_zero for each in intervals) for intervals in chosen])
    assert by_interval > 0.2, "what docs/comparing.md says of the intervals by themselves"


def test_an_interval_beyond_zero_that_the_test_does_not_bear_out_is_no_claim():
    """Differences 1, 1.2 and 1.1: no resample's mean leaves [1, 1.2], and of 8 sign changes 2 are as far: p = 1/4."""
    base = make_score_frame(3)
    other = base.assign(chosen_logps=base["chosen_logps"] + [1.0, 1.2, 1.1])
    comparison = compare_frames({"DPO": base, "IPO": other})

    [sentence] = describe_differences(comparison)
    assert sentence.startswith("IPO and DPO cannot be told apart by the chosen log-likelihood (+1.10 nats [+1.0")
    assert "]; p = 0.250); reward accuracy is the same" in sentence
    assert sentence.endswith(" With only 3 pairs, these intervals are too narrow.")
    assert recommend(comparison).recommended in (None, "DPO")


def make_unlike() -> dict[str, pd.DataFrame]:
    """DPO is right on the last 60 of 100 pairs, the other on the first 40, the only ones it was scored on."""
    base = make_score_frame(100).assign(reward_margins=np.where(np.arange(100) < 40, -1.0, 1.0))
    base.loc[:3, "reward_margins"] = 1.0
    other = base.assign(chosen_logps=base["chosen_logps"] + 3 + np.arange(100) % 5, reward_margins=1.0).iloc[:40]
    other.loc[10:, "reward_margins"] = -1.0
    return {"DPO": base, "IPO": other}


def test_accuracies_are_those_on_the_pairs_both_were_scored_on():
    """By themselves 64 % of 100 against 25 % of 40, far below; on the 40 they share DPO has 10 %, and loses."""
    comparison = compare_frames(make_unlike())

    assert [each.value for each in comparison.differences["IPO"].accuracies] == [0.25, 0.1]
    found = recommend(comparison)
    assert found.recommended == "DPO" and "pairs" in found.failures["IPO"]


def test_a_run_without_accuracy_is_not_said_to_lie_below_it():
    base = make_score_frame(30)
    blind = make_score_frame(30, seed=1, has_reference=False)

    statement = recommend(compare_frames({"DPO": base, "IPO": blind})).statement
    assert statement == "Stay with DPO: no other run's reward accuracy is known."


@pytest.mark.parametrize(("n_prompts", "note"), [(49, " With only 49 prompts, "), (50, "")])
def test_prompts_are_what_is_few(n_prompts, note):
    prompts = (np.arange(120) % n_prompts).astype(str)
    frames = {name: make_score_frame(120, seed=seed).assign(prompt_id=prompts) for seed, name in enumerate("ab")}
    [sentence] = describe_differences(compare_frames(frames))

    assert ("With only" in sentence) == bool(note) and note in sentence


def train_seeds(folder: Path, displacements: dict[int, float], **config) -> list[str]:
    """Runs of one setting and several seeds; what training moved the chosen log-likelihood by differs between them."""
    paths = []
    for seed, displacement in displacements.items():
        run = write_scored_run(folder.with_name(f"{folder.name}-{seed}"), n=150, displacement=displacement, **config)
        run.update_manifest(seed=seed, config=run.read_manifest()["config"] | {"seed": seed})
        paths.append(str(run.path))
    return paths


SHIFT = {"loss": "shift", "lambda_": 0.9}


def test_a_repetition_of_the_baseline_is_not_recommended_over_it(tmp_path):
    """One more DPO run, seven nats above the first by the luck of its seed."""
    paths = train_seeds(tmp_path / "dpo", {42: -14, 43: -7}, loss="dpo")
    found = find_out(paths).recommendation

    assert found.recommended == "DPO (dpo-42)"
    assert found.statement.startswith("Stay with DPO (dpo-42): all other runs have the same settings")


def test_a_setting_is_judged_by_all_its_seeds_not_the_luckiest(tmp_path):
    """Of three seeds one lies far above DPO and two below: by itself, on its pairs, the lucky one would be taken."""
    base = train_seeds(tmp_path / "dpo", {42: -9, 43: -9, 44: -9}, loss="dpo")
    lucky = train_seeds(tmp_path / "shift", {42: -9.5, 43: -10, 44: -4}, **SHIFT)
    assert find_out([*base, lucky[2]]).recommendation.path == lucky[2]

    again = train_seeds(tmp_path / "again" / "shift", {44: -4}, **SHIFT)
    with pytest.warns(UserWarning, match="another run has the same settings and seed"):
        found = find_out([*base, *lucky, *again]).recommendation
    assert found.path == base[0] and found.setting is None


def test_a_setting_that_gains_over_its_seeds_is_taken_by_the_baselines_seed(tmp_path):
    base = train_seeds(tmp_path / "dpo", {42: -14, 43: -13.9, 44: -14.1}, loss="dpo")
    better = train_seeds(tmp_path / "shift", {42: -8, 43: -8.1, 44: -6}, **SHIFT)
    found = find_out([*base, *better])

    recommendation, [pooled] = found.recommendation, found.seeds
    assert (recommendation.path, recommendation.setting) == (better[0], "DPO-Shift λ=0.9")
    assert recommendation.gain.value == pooled.metrics["chosen_logps"].difference.value
    assert pooled.metrics["chosen_logps"].p_adjusted == pooled.metrics["chosen_logps"].p_value < 0.05
    assert " nats above DPO (dpo-42) of the same seed, over seeds 42, 43, 44. " in recommendation.statement

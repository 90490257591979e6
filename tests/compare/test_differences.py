from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scored_runs import write_scored_run
from synthetic_frames import make_score_frame, make_theory_frame

from dpotool.compare.compared_table import (
    build_comparison_frame,
    describe_differences,
    tabulate_comparison,
    tabulate_effects,
    write_rows,
)
from dpotool.compare.differences import MEAN_METRICS, SHARE_METRICS, Comparison, choose_baseline, compare_runs
from dpotool.compare.eligibility import Rule
from dpotool.compare.findings import find_out
from dpotool.compare.recommendation import recommend
from dpotool.compare.runs_table import open_runs
from dpotool.compare.theory_check import check_theory
from dpotool.errors import DpotoolError
from dpotool.runs.folder import RunFolder
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import SCORE_SCHEMA, THEORY_SCHEMA, read_table, write_table


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[RunFolder]:
    tmp_path = tmp_path_factory.mktemp("runs")
    return [
        write_scored_run(tmp_path / "shift-0.9", seed=2, displacement=-8, gap=6, loss="shift", lambda_=0.9),
        write_scored_run(tmp_path / "dpo", seed=1, displacement=-14, gap=6, loss="dpo"),
        write_scored_run(tmp_path / "shift-0.5", seed=3, displacement=-2, gap=0.2, loss="shift", lambda_=0.5),
    ]


@pytest.fixture(scope="module")
def comparison(runs) -> Comparison:
    return compare_runs(open_runs(runs))


def test_differences_are_taken_within_pairs_from_the_dpo_run(runs, comparison):
    assert comparison.baseline == "DPO"
    assert list(comparison.differences) == ["DPO-Shift λ=0.9", "DPO-Shift λ=0.5"]
    ours, theirs = (read_table(run.list_tables("score")[0]) for run in runs[:2])
    difference = comparison.differences["DPO-Shift λ=0.9"]
    expected = (ours["chosen_logps"] - theirs["chosen_logps"]).mean()
    assert difference.metrics["chosen_logps"].difference.value == pytest.approx(expected)
    assert difference.n == 120
    only_ours = ((ours["reward_margins"] > 0) & ~(theirs["reward_margins"] > 0)).sum()
    assert difference.metrics["reward_accuracy"].discordant[0] == only_ours
    assert comparison.problems == []


def test_p_values_are_adjusted_over_the_models_of_each_metric(comparison):
    for metric in (*MEAN_METRICS, *SHARE_METRICS):
        raw, adjusted = (
            np.array([getattr(each.metrics[metric], name) for each in comparison.differences.values()])
            for name in ("p_value", "p_adjusted")
        )
        assert adjusted.min() == pytest.approx(min(1.0, 2 * raw.min()))
        assert (adjusted >= raw).all()


@pytest.mark.parametrize("name", ["DPO-Shift λ=0.5", "shift-0.5", "PATH"])
def test_the_baseline_is_named_by_label_folder_or_path(runs, name):
    assert compare_runs(open_runs(runs), baseline=name.replace("PATH", str(runs[2].path))).baseline == "DPO-Shift λ=0.5"


def test_an_unknown_baseline_names_the_nearest(runs):
    with pytest.raises(
        DpotoolError, match=r"--baseline: no run 'shift-0.8' to compare with\. Did you mean 'shift-0.9'"
    ):
        compare_runs(open_runs(runs), baseline="shift-0.8")


def test_without_a_dpo_run_the_first_is_the_baseline(runs):
    assert compare_runs(open_runs([runs[2], runs[0]])).baseline == "DPO-Shift λ=0.5"


def test_other_data_is_refused(tmp_path, runs):
    other = write_scored_run(tmp_path / "other", data="elsewhere", loss="ipo")
    with pytest.raises(DpotoolError, match="scored on other pairs than DPO; expected data demo, got elsewhere"):
        compare_runs(open_runs([*runs, other]))


def test_changed_data_of_the_same_name_is_refused(tmp_path, runs):
    changed = write_scored_run(tmp_path / "changed", loss="ipo", fingerprints={"data": "other rows"})
    with pytest.raises(DpotoolError, match="under the same name; expected data rows, got other rows"):
        compare_runs(open_runs([*runs, changed]))


def test_what_spoils_a_comparison_is_said(tmp_path, runs):
    frame = make_score_frame(100, seed=5).assign(ref_chosen_logps=-50.0)
    odd = write_scored_run(tmp_path / "odd", frame=frame, beta=0.01, loss="ipo")
    blind = write_scored_run(tmp_path / "blind", frame=make_score_frame(120, has_reference=False), loss="hinge")

    comparison = compare_runs(open_runs([*runs, odd, blind]))

    problems = " ".join(comparison.problems)
    assert "IPO has beta 0.01, DPO 0.1: their reward margins are on different scales" in problems
    assert (
        "IPO and DPO share 100 of 120 scored pairs. Differences and the recommendation use only the shared "
        "pairs" in problems
    )
    assert "IPO and DPO were measured against different references." in problems
    assert "HINGE was scored without a reference, so it has no rewards" in problems
    assert comparison.differences["HINGE"].metrics["reward_accuracy"] is None
    assert comparison.differences["HINGE"].metrics["chosen_logps"].n == 120


def test_pairs_of_one_prompt_are_drawn_together(tmp_path):
    frames = [make_score_frame(60, seed=seed).assign(prompt_id=(np.arange(60) // 3).astype(str)) for seed in (1, 2)]
    a, b = (
        write_scored_run(tmp_path / name, frame=frame, loss=name)
        for name, frame in zip(("dpo", "ipo"), frames, strict=True)
    )
    difference = compare_runs(open_runs([a, b])).differences["IPO"]

    assert (difference.n, difference.n_prompts, difference.prompts_repeat) == (60, 20, True)
    assert difference.metrics["reward_accuracy"].test == "sign-flip permutation test"


def test_sentences_say_way_size_and_doubt(comparison):
    shift, half = describe_differences(comparison)

    assert shift.startswith("DPO-Shift λ=0.9 keeps the chosen log-likelihood ")
    assert " nats higher than DPO [" in shift
    assert "reward accuracy is " in half and "points lower" in half


def test_beyond_chance_is_said_of_the_adjusted_p_value(comparison):
    """Raw 0.03, adjusted for four models 0.12: the table shows 0.120, and the sentence doubts with it."""
    half = comparison.differences["DPO-Shift λ=0.5"]
    accuracies = [replace(half.metrics["reward_accuracy"], p_value=0.03, p_adjusted=p) for p in (0.12, 0.04)]
    doubtful, sure = (
        replace(
            comparison,
            differences={"DPO-Shift λ=0.5": replace(half, metrics={**half.metrics, "reward_accuracy": accuracy})},
        )
        for accuracy in accuracies
    )

    assert tabulate_comparison(doubtful, {})[1][2][7] == "0.120"
    assert "], not beyond chance; the two rank" in describe_differences(doubtful)[0]
    assert "]; the two rank" in describe_differences(sure)[0]


def test_a_model_against_itself(tmp_path):
    same = [write_scored_run(tmp_path / name, seed=1, loss=name) for name in ("dpo", "ipo")]
    [sentence] = describe_differences(compare_runs(open_runs(same)))

    assert sentence == (
        "IPO and DPO cannot be told apart by the chosen log-likelihood (+0.00 nats [+0.00, +0.00]); reward accuracy is "
        "the same [-3.0, +3.0]; the two rank 0 of 120 pairs differently."
    )


def test_tables_for_papers(comparison):
    columns, rows = tabulate_comparison(comparison, {})
    markdown, latex = (write_rows(columns, rows, name) for name in ("markdown", "latex"))

    assert markdown.splitlines()[1].count("---") == len(columns)
    assert markdown.count("\n") == 2 + len(rows)
    assert r"DPO-Shift $\lambda$=0.9 & " in latex
    assert r"accuracy, \% &" in latex
    assert latex.startswith(r"\begin{tabular}{lrrrrrrrrrr}" + "\n" + r"\toprule")
    assert latex.endswith("\\bottomrule\n\\end{tabular}\n")


def test_effect_sizes_have_intervals_and_ties_are_counted(comparison):
    columns, [ours, base, half] = tabulate_effects(comparison)
    assert columns == [
        "model", "chosen, d_z", "rejected, d_z", "margin, d_z", "only it right : only DPO right", "odds ratio",
        "ranked alike", "chosen equally likely", "margin exactly 0",
    ]  # fmt: skip
    chosen = comparison.differences["DPO-Shift λ=0.9"].metrics["chosen_logps"].effect_size
    assert ours[1] == f"{chosen.value:+.2f} [{chosen.ci_low:+.2f}, {chosen.ci_high:+.2f}]"
    only = comparison.differences["DPO-Shift λ=0.5"].metrics["reward_accuracy"].discordant
    assert half[4] == f"{only[0]} : {only[1]}"
    assert half[5].startswith(f"{only[0] / only[1]:.2f} [")
    assert half[6] == f"{120 - sum(only)} of 120"
    assert base[:2] == ["DPO", "baseline"] and base[-1] == "0 of 120"


def test_an_effect_without_spread_or_bound_is_shown_as_such(tmp_path):
    """Each margin of the second run is the first's plus 0.1: no spread, and it alone ranks right the first's ties."""
    frame = make_score_frame(20, seed=1)
    frame["reward_margins"] = [0.0] * 4 + [0.7] * 16
    first = write_scored_run(tmp_path / "dpo", frame=frame, loss="dpo")
    second = write_scored_run(
        tmp_path / "ipo", frame=frame.assign(reward_margins=frame["reward_margins"] + 0.1), loss="ipo"
    )
    _, [base, ours] = tabulate_effects(compare_runs(open_runs([first, second])))
    assert ours[1:5] == ["-", "-", "-", "4 : 0"]
    assert ours[5].startswith("∞ [0.66, ∞]")
    assert (base[-1], ours[-1], ours[7]) == ("4 of 20", "0 of 20", "20 of 20")


def test_of_one_pair_no_interval_is_printed(tmp_path):
    pair = [write_scored_run(tmp_path / name, n=1, seed=seed, loss=name) for seed, name in enumerate(("dpo", "ipo"))]
    comparison = compare_runs(open_runs(pair))
    cells = [cell for table in (tabulate_comparison(comparison, {}), tabulate_effects(comparison)) for cell in table[1]]
    said = " ".join([*describe_differences(comparison), recommend(comparison).statement, *map(str, cells)])
    assert "nan" not in said
    assert "IPO and DPO cannot be told apart by the chosen log-likelihood (" in said


def test_csv_has_every_number(comparison):
    frame = build_comparison_frame(comparison, {})

    assert frame["is_baseline"].tolist() == [False, True, False]
    assert pd.isna(frame.loc[1, "chosen_logps_difference"])
    assert frame.loc[0, "chosen_logps_difference_low"] < frame.loc[0, "chosen_logps_difference"]
    assert frame["reward_accuracy_p_adjusted"].notna().sum() == 2
    odds = frame["reward_accuracy_only_model"] / frame["reward_accuracy_only_baseline"]
    assert frame.loc[2, "reward_accuracy_effect_size"] == pytest.approx(odds[2])
    assert frame.loc[0, "chosen_logps_ties"] == 0


def test_of_the_runs_that_lose_little_enough_the_highest_is_taken(comparison):
    """120 pairs rule out a loss of 20 points for λ=0.9, and for λ=0.5, which ranks like a coin, they do not."""
    recommendation = recommend(comparison, rule=Rule(delta=20))

    assert (recommendation.recommended, recommendation.lambda_) == ("DPO-Shift λ=0.9", 0.9)
    assert recommendation.eligible == ("DPO-Shift λ=0.9",)
    assert recommendation.statement.startswith(
        "Take DPO-Shift λ=0.9. Of the runs that are shown to lose less than 20 points"
    )
    assert recommend(comparison).recommended == "DPO", "a loss of 3 points these pairs do not rule out"


def test_stays_with_dpo_where_nothing_is_gained(tmp_path):
    pair = [
        write_scored_run(tmp_path / "dpo", seed=1, displacement=-2, loss="dpo"),
        write_scored_run(tmp_path / "ipo", seed=2, displacement=-9, loss="ipo"),
    ]
    recommendation = recommend(compare_runs(open_runs(pair)))

    assert recommendation.recommended == "DPO"
    assert "no run is shown to keep the chosen answers more likely" in recommendation.statement
    alone = recommend(compare_runs(open_runs(pair[:1])))
    assert alone.statement == "Only DPO here: there is nothing to choose from."


def test_an_unknown_baseline_is_answered_with_each_name_once():
    runs = pd.DataFrame(
        {"label": ["a", "b"], "path": ["runs/a", "runs/other"], "model": ["a", "b"], "loss": ["dpo", "ipo"]}
    )
    with pytest.raises(DpotoolError) as caught:
        choose_baseline(runs, "runs/log")
    assert str(caught.value).count("other") == 1 and str(caught.value).endswith("Known: a, b, other")
    assert (choose_baseline(runs, "b"), choose_baseline(runs, "runs/other"), choose_baseline(runs, None)) == (1, 1, 0)


def make_advice(changes: dict[str, float]) -> dict:
    ends = {"ci_low": -9.0, "ci_high": 9.0}
    kinds = ("chosen_change", "rejected_change", "margin_change")
    grid: dict = {f: {kind: {"mean": change, **ends} for kind in kinds} for f, change in changes.items()}
    for cell in grid.values():
        cell["accuracy"] = {"value": 0.6, **ends}
    return {
        "n": 9,
        "advice_from": "adamw",
        "advice": {"adamw": {"grid": grid, "optimizer": "adamw", "recommended_lambda": 0.9}},
    }


def test_the_forecast_stands_beside_what_was_measured(comparison):
    theory = check_theory(comparison.runs, make_advice({"0.5": 0.5, "0.9": -0.5, "1": -1.0}))

    assert [row["lambda"] for row in theory["rows"]] == [1.0, 0.9, 0.5]
    dpo = comparison.runs.set_index("label").loc["DPO"]
    assert theory["rows"][0]["predicted_chosen"] == pytest.approx(-1.0 * dpo["reward_margins"] / 0.1)
    assert theory["rows"][0]["measured_chosen"] == pytest.approx(dpo["chosen_displacement"])
    assert theory["rank_agreement"]["chosen"]["tau"] == pytest.approx(1.0)
    assert theory["rank_agreement"]["accuracy"]["tau"] is None, "the forecast holds them all equal"
    assert (
        "rank agreement of +1.00, and by reward accuracy with not defined (Kendall's tau: 1 "
        "means" in theory["statement"]
    )
    assert "It recommended lambda 0.9 before any training" in theory["statement"]


def test_a_forecast_in_reverse_has_tau_minus_one(comparison):
    theory = check_theory(comparison.runs, make_advice({"0.5": -1.0, "0.9": -0.5, "1": 0.5}))

    assert theory["rank_agreement"]["chosen"]["tau"] == pytest.approx(-1.0)


def test_the_sign_is_said_before_the_order(comparison):
    """In the right order, and every sign wrong: 1 = the order of the measured changes, whatever their sign."""
    measured = comparison.runs.set_index("lambda")["chosen_displacement"]
    sign = -1 if (measured < 0).all() else 1
    assert (measured * sign > 0).all(), "all of one sign, which the forecast then has not"
    order = {f"{f:g}": rank - sign * 100.0 for rank, f in enumerate(measured.sort_values().index)}

    theory = check_theory(comparison.runs, make_advice(order))

    assert theory["rank_agreement"]["chosen"]["tau"] == pytest.approx(1.0)
    assert theory["statement"].startswith(
        "The forecast has the sign of the measured change of log pi(chosen) in 0 of 3 runs. "
    )


def test_without_advice_the_printed_theorem_gives_the_order(comparison):
    theory = check_theory(comparison.runs, {"u": {"mean": 2.0}, "v": {"mean": -4.0}})

    assert theory["source"] == "Theorem 2.1 as printed"
    assert [row["predicted_chosen"] for row in theory["rows"]] == pytest.approx([0.0, 0.2, 1.0])


def test_two_lambdas_rank_nothing(runs):
    theory = check_theory(compare_runs(open_runs(runs[:2])).runs, {"u": {"mean": 2.0}, "v": {"mean": -4.0}})

    assert theory["statement"].startswith("2 lambdas are too few")
    assert check_theory(compare_runs(open_runs(runs[1:2])).runs, {"u": {"mean": 2.0}, "v": {"mean": -4.0}}) is None


def test_findings_put_it_all_into_one_object(runs):
    theory = RunFolder(runs[1].path).table_path("theory", "demo", "test")
    write_table(make_theory_frame(5), theory, THEORY_SCHEMA, {"model": "m", "data": "demo", "at_reference": True})
    write_summary(theory, make_advice({"0.5": 0.5, "0.9": -0.5, "1": -1.0}))

    found = find_out([str(run.path) for run in runs], rule=Rule(delta=20))

    content = json.loads(json.dumps(found.to_dict(), default=float))
    assert [model["label"] for model in content["models"]] == ["DPO-Shift λ=0.9", "DPO", "DPO-Shift λ=0.5"]
    assert content["models"][1]["differences"] is None
    assert content["models"][0]["verdict"]["kind"] in ("none", "benign", "harmful", "unclear")
    assert content["theory"]["path"] == str(theory)
    assert str(runs[0].path) in content["next"]


def test_runs_without_scores_say_what_to_run(tmp_path):
    run = write_scored_run(tmp_path / "dpo", loss="dpo")
    run.list_tables("score")[0].unlink()
    with pytest.raises(DpotoolError, match=r"no scores here\. Run `dpotool score"):
        find_out([str(run.path)])


def test_the_same_pairs_under_another_limit_compare(tmp_path):
    prompts = [f"p{number}" for number in range(120)]
    whole = make_score_frame(120, seed=1).assign(prompt_id=prompts)
    part = make_score_frame(120, seed=2).assign(prompt_id=prompts).iloc[:50]
    a = write_scored_run(tmp_path / "dpo", frame=whole, loss="dpo", fingerprints={"data": "all"})
    b = write_scored_run(tmp_path / "ipo", frame=part, loss="ipo", fingerprints={"data": "first 50"})

    comparison = compare_runs(open_runs([a, b]))

    assert comparison.differences["IPO"].n == 50
    write_table(
        part.assign(prompt_id="other"), b.list_tables("score")[0], SCORE_SCHEMA, {"data": "demo", "split": "test"}
    )
    with pytest.raises(DpotoolError, match="scored on other pairs than DPO"):
        compare_runs(open_runs([a, b]))


def test_of_the_checkpoints_of_one_run_the_verdict_is_on_the_last():
    """In any order; the run's own folder is what its training ended with. Elsewhere the first DPO run counts."""

    def choose(*models):
        names = [model.rpartition("/")[2] for model in models]
        return choose_baseline(
            pd.DataFrame(
                {"label": names, "path": models, "model": models, "loss": ["ipo", "dpo", "dpo"][: len(models)]}
            ),
            None,
        )

    assert choose("r/checkpoint-9", "r/checkpoint-10", "r/checkpoint-2") == 1
    assert choose("r/checkpoint-10", "r/checkpoint-9") == 0
    assert choose("r/checkpoint-9", "r/checkpoint-10", "r") == 2
    assert choose("r/checkpoint-10", "other/checkpoint-9") == 1
    assert choose("r/checkpoint-9") == choose("r", "other", "other") - 1 == 0


def test_a_table_that_lost_its_values_is_said_to_have_no_numbers(tmp_path):
    frame = make_score_frame(6).assign(chosen_logps=None)
    run = write_scored_run(tmp_path / "run", frame=frame)
    with pytest.raises(DpotoolError, match=r"no scored pair among 6 rows; got log-likelihood is not finite \(6\)"):
        compare_runs(open_runs([run]))

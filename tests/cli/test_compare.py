"""`dpotool compare` and the verdict that `score` ends with, through the command line."""

from __future__ import annotations

import csv
import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from scored_runs import write_scored_run

from dpotool.plots.gallery import Gallery
from dpotool.plots.registry import PlotKind


@pytest.fixture(autouse=True)
def runs(tmp_path: Path) -> None:
    write_scored_run(tmp_path / "dpo", seed=1, displacement=-14, loss="dpo")
    write_scored_run(tmp_path / "shift", seed=2, displacement=-8, loss="shift", lambda_=0.9)


def test_a_verdict_a_recommendation_a_table_and_what_to_do_fit_a_narrow_terminal(dpotool: Any) -> None:
    outcome = dpotool("compare", "dpo", "shift", "--delta", "20")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    begins = [
        "Verdict on DPO: Harmful",
        "Recommendation: Take DPO-Shift λ=0.9",
        "demo [test], n = 120",
        "Next: shift is better than the baseline",
    ]
    assert [line for line in lines if line.startswith(tuple(begins))] == [
        line for begin in begins for line in lines if line.startswith(begin)
    ]
    assert sum(line.startswith(tuple(begins)) for line in lines) == 4
    [row] = [line.split() for line in lines if line.startswith("DPO-Shift λ=0.9  ")]
    assert row[-1] == "harmful" and row[-2] == "%"
    assert not any(line.startswith("DPO-Shift λ=0.9 keeps") for line in lines)


def test_full_adds_every_number_and_a_sentence_for_each_model(dpotool: Any) -> None:
    full = dpotool("compare", "dpo", "shift", "--full").out
    assert full.startswith(dpotool("compare", "dpo", "shift").out)
    assert "\nDPO-Shift λ=0.9 keeps the chosen log-likelihood " in full
    assert "perplexity (chosen)" in full and "only it right : only DPO right" in full


def test_a_loss_that_may_be_is_not_recommended(dpotool: Any) -> None:
    outcome = dpotool("compare", "dpo", "shift")
    said = " ".join(outcome.out.split())
    assert "Recommendation: Stay with DPO: these 120 pairs cannot rule out that DPO-Shift λ=0.9" in said or (
        "Recommendation: Stay with DPO: every run that keeps" in said
    )
    refused = dpotool("compare", "dpo", "shift", "--delta", "0")
    assert refused.code == 1 and "delta" in refused.err


def test_json_has_it_all_and_nothing_else(dpotool: Any) -> None:
    outcome = dpotool("compare", "dpo", "shift", "--json")
    assert outcome.out.count("\n") == 1
    content = json.loads(outcome.out)
    assert [model["label"] for model in content["models"]] == ["DPO", "DPO-Shift λ=0.9"]
    chosen = content["models"][1]["differences"]["chosen_logps"]
    assert {"difference", "effect_size", "p_value", "p_adjusted", "test", "n", "n_ties"} == chosen.keys()


def test_csv_and_latex_are_only_the_table(dpotool: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(dpotool("compare", "dpo", "shift", "--format", "csv").out)))
    assert [row["label"] for row in rows] == ["DPO", "DPO-Shift λ=0.9"]
    assert float(rows[1]["chosen_logps_difference"]) > 0
    latex = dpotool("compare", "dpo", "shift", "--format", "latex").out
    assert latex.startswith("\\begin{tabular}") and latex.endswith("\\end{tabular}\n")
    markdown = dpotool("compare", "dpo", "shift", "--format", "markdown").out
    assert markdown.startswith("| model |") and "\n- Verdict on DPO" in markdown
    assert "|\n\n- DPO-Shift λ=0.9 keeps" in markdown, "what follows is no row of the table"
    assert latex.count("\\end{tabular}") == markdown.count("| model |") == 2, "differences, and effect sizes with ties"


def test_every_format_has_the_table_over_seeds(dpotool: Any, tmp_path: Path) -> None:
    """What was pooled is in the JSON; the formats say the same."""
    folders = ["dpo", "shift"]
    for name, displacement, config in (("dpo", -14, {"loss": "dpo"}), ("shift", -8, {"loss": "shift", "lambda_": 0.9})):
        run = write_scored_run(tmp_path / f"{name}-43", seed=3, displacement=displacement, **config)
        run.update_manifest(seed=43)
        folders.append(run.name)
    [pooled] = json.loads(dpotool("compare", *folders, "--json").out)["seeds"]
    chosen = pooled["chosen_logps"]["difference"] | {"seed_sd": pooled["chosen_logps"]["seed_sd"]}

    *models, row = csv.DictReader(io.StringIO(dpotool("compare", *folders, "--format", "csv").out))
    assert [(model["seed"], model["n"], model["seeds"]) for model in models] == [
        ("42", "120", ""), ("42", "120", ""), ("43", "120", ""), ("43", "120", ""),
    ]  # fmt: skip
    assert (row["label"], row["seeds"], row["n_shared"]) == ("DPO-Shift λ=0.9", "42 43", "120")
    found = [float(row[f"chosen_logps_{name}"]) for name in ("difference", "difference_low", "difference_high")]
    assert found == pytest.approx([chosen["mean"], chosen["ci_low"], chosen["ci_high"]])
    assert float(row["chosen_logps_seed_sd"]) == pytest.approx(chosen["seed_sd"])

    cell = f"{chosen['mean']:+.2f} [{chosen['ci_low']:+.2f}, {chosen['ci_high']:+.2f}]"
    markdown = dpotool("compare", *folders, "--format", "markdown").out
    assert f"\n| DPO-Shift λ=0.9 | 2 | {cell} |" in markdown and "\n\n| setting | seeds |" in markdown
    latex = dpotool("compare", *folders, "--format", "latex").out
    assert latex.count("\\end{tabular}") == 3 and f"$\\lambda$=0.9 & 2 & {cell} &" in latex


def test_one_line_for_a_wrong_format_or_baseline(dpotool: Any) -> None:
    outcome = dpotool("compare", "dpo", "--format", "excel")
    assert outcome.code == 1
    assert outcome.err.strip() == ("error: --format: unknown format 'excel'. Known: csv, latex, markdown, table")
    assert "no run 'sft' to compare with" in dpotool("compare", "dpo", "--baseline", "sft").err


def test_a_run_named_twice_is_said_once_in_one_line(dpotool: Any) -> None:
    with pytest.warns(UserWarning, match="^named more than once") as caught:
        outcome = dpotool("compare", "dpo", "shift", "./dpo", "--json")
    [line] = [warnings.formatwarning(each.message, each.category, each.filename, each.lineno) for each in caught]
    assert line == "warning: named more than once, counted once: dpo\n"
    assert [model["label"] for model in json.loads(outcome.out)["models"]] == ["DPO", "DPO-Shift λ=0.9"]


def test_a_folder_that_is_no_run(dpotool: Any) -> None:
    outcome = dpotool("compare", "nowhere")
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert "not a run folder" in outcome.err


def test_score_begins_with_its_verdict(dpotool: Any, model: Path, pairs: Path) -> None:
    from tiny_models import save_tiny_model

    other = save_tiny_model(Path("other"), seed=3)
    outcome = dpotool("score", model, "--data", pairs, "--reference", other, "--output", "out")
    assert outcome.code == 0, outcome.err
    verdict = " ".join(outcome.out.split())
    assert verdict.startswith("Verdict on tiny: ") and "log pi(chosen) changed by" in verdict
    summary = json.loads(Path("out/scores/pairs-all.summary.json").read_text())
    assert summary["verdict"]["statement"] in verdict
    assert verdict.endswith(f" Next: {summary['verdict']['next']}")


def test_a_report_shows_the_texts_of_the_pairs(dpotool: Any, model: Path, pairs: Path) -> None:
    from tiny_models import save_tiny_model

    other = save_tiny_model(Path("other"), seed=3)
    assert dpotool("score", model, "--data", pairs, "--reference", other, "--output", "out").code == 0
    outcome = dpotool("report", "out", "-o", "page.html", "--pairs", "2")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].startswith("Verdict on ") and "report: page.html" in lines
    page = Path("page.html").read_text(encoding="utf-8")
    prompts = [json.loads(line)["prompt"] for line in pairs.read_text().splitlines()]
    assert sum(page.count(f">{prompt}</dd>") for prompt in set(prompts)) == 4
    pairs_now = Path("moved.jsonl")
    pairs_now.write_bytes(pairs.read_bytes())
    dpotool("score", model, "--data", pairs_now, "--reference", other, "--output", "moved")
    pairs_now.write_text(pairs.read_text().replace("Say ", "Tell "))
    dpotool("report", "moved", "-o", "page.html")
    assert (
        "The texts cannot be shown: moved.jsonl: the data has changed since it was scored."
        in Path("page.html").read_text()
    )


def test_a_sweep_ends_with_comparison_pictures_and_report(
    dpotool: Any, model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--model", model, "--data", pairs, "--test-fraction", "0.25", "--max-steps", 2, "--lambdas", "0.5,1.0")
    plan = dpotool("sweep", *flags, "--output", "s", "--dry-run")
    assert plan.code == 0, plan.err
    assert "2 of 2 runs would be trained, with 4 optimiser steps in all." in plan.out
    assert not Path("s").exists()
    drawn, draw = [], PlotKind.draw
    monkeypatch.setattr(PlotKind, "draw", lambda kind, scene: (draw(kind, scene), drawn.append(kind.name))[0])
    outcome = dpotool("sweep", *flags, "--output", "s")
    assert outcome.code == 0, outcome.err
    assert "Verdict on DPO: " in outcome.out and "report: s/report.html" in outcome.out
    assert "quadrants" in drawn and len(drawn) == len(set(drawn)), "report and pictures share what is drawn"
    assert Path("s/report.html").stat().st_size < 5_000_000
    assert Path("s/plots/quadrants.png").is_file()
    monkeypatch.setattr("dpotool.report.sections._show_figures", lambda *_: None)  # they have been drawn
    monkeypatch.setattr("dpotool.plots.gallery.draw", lambda *_: Gallery([Path("s/plots/again.png")]))
    content = json.loads(dpotool("sweep", *flags, "--output", "s", "--json").out)
    assert content["n_trained"] == 0 and content["compare"]["baseline"] == "DPO"
    assert (content["pictures"], content["report"]) == (["s/plots/again.png"], "s/report.html")

"""Pictures of judged answers: shares with their counts, the win rate beside them, and beside the likelihood kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from control_runs import draw as draw_scores
from control_runs import write_dpo_with_controls
from scored_runs import write_judgments, write_scored_run

from dpotool.compare.compared_table import build_comparison_frame, tabulate_comparison
from dpotool.compare.findings import find_out
from dpotool.compare.ratings import read_rated, summarize_ratings
from dpotool.compare.win_rates import JudgedRun, describe_judged, read_judged, relate_displacement
from dpotool.errors import DpotoolError
from dpotool.plots.gallery import draw as draw_kind
from dpotool.plots.ratings import plot_ratings
from dpotool.plots.registry import choose_plots
from dpotool.plots.scene import read_scene
from dpotool.plots.win_rates import draw, draw_tradeoff, plot_win_rates
from dpotool.runs.folder import RunFolder
from dpotool.runs.schemas import RATING_SCHEMA
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import write_table
from dpotool.settings.reading import PlotConfig


def judge(run: RunFolder, label: str, wins: int, ties: int, losses: int, judge: str = "grammar") -> None:
    write_judgments(run, label, ["win"] * wins + ["tie"] * ties + ["loss"] * losses, judge)


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    write_scored_run(tmp_path / "dpo", loss="dpo", lambda_=1.0)
    for lambda_, counts in ((0.9, (30, 50, 20)), (0.5, (10, 60, 30))):
        run = write_scored_run(tmp_path / f"s{lambda_}", displacement=-5 * lambda_, loss="shift", lambda_=lambda_)
        judge(run, f"DPO-Shift λ={lambda_}", *counts)
    return [str(tmp_path / name) for name in ("dpo", "s0.9", "s0.5")]


def test_bars_are_the_shares(runs: list[str]):
    judged = read_judged([RunFolder(Path(run)) for run in runs])
    (axes,) = plot_win_rates(judged).axes
    widths = [[patch.get_width() for patch in bars] for bars in axes.containers]
    np.testing.assert_allclose(widths, [[30, 10], [50, 60], [20, 30]])
    texts = [text.get_text() for text in axes.texts]
    assert "55.0 [48.0, 62.0]"[:5] in " ".join(texts) and "30" in texts


def test_words_for_who_cannot_see_it(runs: list[str]):
    drawing = draw(read_scene(runs, PlotConfig()))
    assert drawing.alt.startswith("Win rate over DPO by grammar, in %, counting a tie as half: DPO-Shift λ=0.9 55.0 [")
    assert "DPO-Shift λ=0.5: 10 wins, 60 ties, 30 losses." in drawing.alt


def test_tradeoff_has_a_point_per_judged_run(runs: list[str]):
    drawing = draw_tradeoff(read_scene(runs, PlotConfig()))
    (axes,) = drawing.figure.axes
    points = [
        line.get_xydata()[0] for line in axes.lines if line.get_marker() in ("o", "*") and len(line.get_xdata()) == 1
    ]
    assert sorted(round(float(y), 6) for _, y in points) == [-10, 0, 5]


def test_lambdas_and_judged_controls_are_curves_through_the_tradeoff(tmp_path: Path):
    """DPO scaled back to .6 wins 10 and loses 30 of 100: 40 %, 10 points below DPO's half against itself.

    Its other scale and its checkpoint were not judged, so they have no place on a curve.
    """
    dpo = write_dpo_with_controls(tmp_path / "dpo")
    scaled = next(RunFolder(path) for path in (dpo.path / "controls").iterdir() if "0.6" in path.name)
    for lambda_, counts in ((0.9, (30, 50, 20)), (0.5, (10, 60, 30))):
        run = write_scored_run(tmp_path / f"s{lambda_}", frame=draw_scores(4, -2.2, 3.6), loss="shift", lambda_=lambda_)
        judge(run, f"DPO-Shift λ={lambda_}", *counts)
    judge(scaled, "scaled back", 10, 60, 30)
    paths = [str(dpo.path), str(tmp_path / "s0.9"), str(tmp_path / "s0.5")]

    drawing = draw_tradeoff(read_scene(paths, PlotConfig()))
    lines = {line.get_label(): line.get_xydata() for line in drawing.figure.axes[0].lines}
    np.testing.assert_allclose(lines["λ, trained"][:, 1], [-10, 5, 0], atol=1e-9)
    np.testing.assert_allclose(lines["DPO scaled back"], [[3, -10], [0, 0]], atol=0.1)
    assert "DPO stopped early" not in lines and "DPO scaled back: (+" in drawing.alt
    judge(scaled, "scaled back", 10, 60, 30, "chrf")
    drawing = draw_tradeoff(read_scene(paths, PlotConfig()))
    assert "DPO scaled back" not in drawing.alt, "another judge's newer verdicts stand beside none of these"


def test_without_judgments_the_remedy_is_named(tmp_path: Path):
    run = write_scored_run(tmp_path / "dpo", loss="dpo", lambda_=1.0)
    with pytest.raises(DpotoolError, match=r"no judgments here. Run `dpotool generate"):
        draw(read_scene([str(run.path)], PlotConfig()))


def make_judged(rates: list[float]) -> list[JudgedRun]:
    rows = [{"win_rate": {"ties_half": {"value": rate, "ci_low": rate, "ci_high": rate}}} for rate in rates]
    summaries = [
        {"label": f"r{n}", "baseline": "DPO", "judge": "chrf", "is_proxy": True, **row} for n, row in enumerate(rows)
    ]
    return [JudgedRun(RunFolder(Path(f"r{n}")), summary) for n, summary in enumerate(summaries)]


def test_displacement_and_win_rate_by_hand():
    """Ranks 1 2 3 4 against 1 2 4 3: 1 - 6 (1 + 1) / (4 (16 - 1)) = 0.8; a third of all orders lie as far out."""
    judged = make_judged([0.4, 0.5, 0.7, 0.6])
    runs = pd.DataFrame({"path": [f"r{n}" for n in range(4)], "chosen_displacement": [0.0, 1.0, 2.0, 3.0]})
    relation = relate_displacement(judged, runs)
    assert relation is not None and relation["rank_correlation"] == pytest.approx(0.8)
    assert relation["p_value"] == pytest.approx(8 / 24)
    assert "proxy" in describe_judged(judged, relation)[0] and "+0.80" in describe_judged(judged, relation)[1]
    assert relate_displacement(judged[:3], runs) is None


def test_several_models_in_one_folder_stand_together(tmp_path: Path):
    """As `judge --judgments` writes them; what another judge said of one of them, before, does not."""
    folder = RunFolder(tmp_path)
    judge(folder, "a", 3, 4, 5, judge="chrf")
    judge(folder, "a", 10, 0, 5)
    judge(folder, "b", 1, 4, 5)
    assert [(run.label, run.summary["wins"]) for run in read_judged([folder])] == [("a", 10), ("b", 1)]


def test_y_names_the_picture(runs: list[str], tmp_path: Path):
    gallery = draw_kind("tradeoff", runs, PlotConfig(y="win-rate", output=str(tmp_path / "out")))
    assert [path.name for path in gallery.paths] == ["tradeoff-win-rate.png"]
    assert [kind.name for kind in choose_plots("tradeoff", "margin")] == ["tradeoff-margin"]
    for kind, y in (("tradeoff", "wins"), ("margin", "win-rate")):
        with pytest.raises(
            DpotoolError, match=r"--y: .* expected accuracy, margin, win-rate, with the picture tradeoff"
        ):
            choose_plots(kind, y)


def test_compare_has_a_column(runs: list[str]):
    """30 wins and 50 ties of 100 are 55 %, 10 and 60 are 40 %; the baseline has no win rate over itself."""
    findings = find_out(runs)
    frame = build_comparison_frame(findings.comparison, findings.verdicts, findings.win_rates)
    assert frame["win_rate"].fillna(0).tolist() == pytest.approx([0, 0.55, 0.4])
    assert (frame["win_rate_low"].iloc[1:] < frame["win_rate"].iloc[1:]).all()
    columns, rows = tabulate_comparison(findings.comparison, findings.verdicts, findings.win_rates)
    assert columns[-1] == "win rate, %" and [row[-1][:4] for row in rows] == ["-", "55.0", "40.0"]
    assert findings.to_dict()["win_rates"]["DPO-Shift λ=0.9"]["wins"] == 30
    assert "win rate, %" not in tabulate_comparison(findings.comparison, findings.verdicts)[0]


def rate(folder: RunFolder, label: str, points: dict[str, float]) -> None:
    rows = [
        {"question_id": f"{name}{n}", "turn": 1, "status": "judged", "rating": mean + n, "category": name}
        for name, mean in points.items()
        for n in (-1, 0, 1)
    ]
    table = pd.DataFrame(rows)
    about = {"label": label, "baseline": "DPO", "judge": "gpt-4", "caveat": "a taste", "difference": None}
    path = folder.table_path("rating", label, "gpt-4")
    write_table(table, path, RATING_SCHEMA, about)
    write_summary(path, about | summarize_ratings(table))


def test_the_radar_has_a_spoke_per_category(tmp_path: Path):
    """Two models on four categories; the lines are closed, and a category that one lacks has no spoke."""
    folder = RunFolder(tmp_path)
    rate(folder, "DPO", {"math": 3, "coding": 4, "stem": 6, "writing": 7, "other": 2})
    rate(folder, "Shift", {"math": 4, "coding": 4, "stem": 7, "writing": 7})
    (axes,) = plot_ratings(read_rated([folder])).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["coding", "math", "stem", "writing"]
    lines = {line.get_label(): line.get_ydata().tolist() for line in axes.lines if line.get_marker() in ("o", "s")}
    assert lines == {"DPO": [4, 3, 6, 7, 4], "Shift": [4, 4, 7, 7, 4]}
    angles = axes.lines[0].get_xdata()
    assert np.diff(angles[:4]) == pytest.approx(np.pi / 2)
    alone = {"by_category": {name: {"mean": 5.0, "ci_low": None, "ci_high": None} for name in ("a", "b", "c")}}
    plot_ratings([{**alone, "label": "a", "judge": "j", "caveat": "a taste", "n_questions": 3}])  # and no interval
    with pytest.raises(DpotoolError, match="too few categories for a picture; expected at least 3, got 1"):
        plot_ratings([{"by_category": {"math": {}}}])
    with pytest.raises(DpotoolError, match="no ratings here"):
        read_rated([RunFolder(tmp_path / "none")])

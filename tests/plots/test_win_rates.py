"""Pictures of judged answers: shares with their counts, the win rate beside them, and beside the likelihood kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scored_runs import write_scored_run

from dpotool.compare.win_rates import JudgedRun, describe_judged, read_judged, relate_displacement, summarize_judgments
from dpotool.errors import DpotoolError
from dpotool.judging.judgments import Judgment, build_judgment_frame
from dpotool.plots.config import PlotConfig
from dpotool.plots.scene import read_scene
from dpotool.plots.win_rates import draw, draw_tradeoff, plot_win_rates
from dpotool.runs.atomic import write_json
from dpotool.runs.folder import RunFolder, summary_path
from dpotool.runs.schemas import JUDGMENT_SCHEMA
from dpotool.runs.tables import write_table


def judge(run: RunFolder, label: str, wins: int, ties: int, losses: int) -> None:
    said = ["win"] * wins + ["tie"] * ties + ["loss"] * losses
    rows = [Judgment(str(n), 0, "apart", "judged", v, model_length=9, baseline_length=9) for n, v in enumerate(said)]
    frame = build_judgment_frame(rows)
    about = {"label": label, "baseline": "DPO", "judge": "grammar", "caveat": "exact", "is_proxy": False}
    path = run.table_path("judgment", "demo-test", "vs", "DPO", "grammar")
    write_table(frame, path, JUDGMENT_SCHEMA, about)
    write_json(summary_path(path), about | summarize_judgments(frame))


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
    assert drawing.alt.startswith("Win rate over DPO by grammar, ties as half, %: DPO-Shift λ=0.9 55.0 [")
    assert "DPO-Shift λ=0.5: 10 wins, 60 ties, 30 losses." in drawing.alt


def test_tradeoff_has_a_point_per_judged_run(runs: list[str]):
    drawing = draw_tradeoff(read_scene(runs, PlotConfig()))
    (axes,) = drawing.figure.axes
    points = [
        line.get_xydata()[0] for line in axes.lines if line.get_marker() in ("o", "*") and len(line.get_xdata()) == 1
    ]
    assert sorted(round(float(y), 6) for _, y in points) == [-10, 0, 5]


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
    relation = relate_displacement(judged, {f"r{n}": float(n) for n in range(4)})
    assert relation is not None and relation["rank_correlation"] == pytest.approx(0.8)
    assert relation["p_value"] == pytest.approx(8 / 24)
    assert "proxy" in describe_judged(judged, relation)[0] and "+0.80" in describe_judged(judged, relation)[1]
    assert relate_displacement(judged[:3], {f"r{n}": float(n) for n in range(4)}) is None

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from synthetic_frames import make_metric_rows

from dpotool.errors import DpotoolError
from dpotool.plots.trajectory import Ends, plot_trajectory, read_ends


def make_log(n_steps: int = 60, beta: float = 0.1, **options) -> pd.DataFrame:
    """Log-likelihoods and, from a reference at -95 and -90 nats, rewards, as `dpotool train` logs both."""
    rows = pd.DataFrame(make_metric_rows(n_steps, **options))
    for prefix in ("", "eval_"):
        for side, start in (("chosen", -95), ("rejected", -90)):
            rows[f"{prefix}rewards/{side}"] = beta * (rows[f"{prefix}logps/{side}"] - start)
    return rows


def find_line(axes, x, y):
    return next(
        line
        for line in axes.lines
        if len(line.get_xdata()) == len(x) and np.allclose(line.get_xdata(), x) and np.allclose(line.get_ydata(), y)
    )


def test_evaluations_are_bold_batches_thin_and_both_are_changes_from_the_reference():
    """At step 0 the evaluation is the reference's: 0. After 60 steps chosen fell by 40 (1 - exp(-3)) = 38.01 nats."""
    rows = make_log(60)

    figure = plot_trajectory({"DPO": rows}, model="demo", data="train", betas={"DPO": 0.1}, n_eval_pairs=300)

    (axes,) = figure.axes
    for side, start in (("chosen", -95), ("rejected", -90)):
        raw = rows[["step", f"logps/{side}"]].dropna()
        evaluated = rows[["step", f"eval_logps/{side}"]].dropna()
        thin = find_line(axes, raw["step"], raw[f"logps/{side}"] - start)
        bold = find_line(axes, evaluated["step"], evaluated[f"eval_logps/{side}"] - start)
        assert bold.get_linewidth() > 3 * thin.get_linewidth()
        assert bold.get_marker() != "None"
    assert "chosen −38.01" in [text.get_text() for text in axes.texts]
    assert axes.get_title(loc="left") == "DPO"
    assert axes.get_ylabel() == "mean change of log π\nfrom the reference (nats)"
    assert "demo, train, n = 300 evaluated pairs" in figure.get_suptitle()
    assert "Bold: evaluations, on the same pairs every time." in figure.get_supxlabel().replace("\n", " ")


def test_without_beta_log_likelihoods_themselves_are_drawn_with_where_they_started():
    rows = make_log(60)

    (axes,) = plot_trajectory({"DPO": rows}, model="m", data="d").axes

    evaluated = rows[["step", "eval_logps/chosen"]].dropna()
    find_line(axes, evaluated["step"], evaluated["eval_logps/chosen"])
    find_line(axes, [0, 1], [-95, -95])  # across the axes, at step 0's value
    assert axes.get_ylabel() == "mean log π (nats)"


def test_without_evaluations_a_moving_average_over_batches_is_bold():
    rows = make_log(60).query("loss == loss")

    figure = plot_trajectory({"DPO": rows}, model="m", data="d")

    raw = rows.set_index("step")["logps/chosen"]
    mean = raw.rolling(6, center=True, min_periods=1).mean()
    assert find_line(figure.axes[0], raw.index, mean).get_linewidth() > 2
    assert "a moving average over them" in figure.get_supxlabel().replace("\n", " ")


def test_the_axis_spans_the_result_and_not_the_noise():
    """Evaluations move by 54 nats in all; one batch mean lies 1,000 nats away, and is counted instead of shown."""
    rows = make_log(60)
    rows.loc[rows["step"] == 7, "logps/chosen"] = -1095.0

    figure = plot_trajectory({"DPO": rows}, model="m", data="d")

    low, high = figure.axes[0].get_ylim()
    assert 54 < high - low < 100
    assert "1 batch mean beyond the axis" in figure.get_supxlabel().replace("\n", " ")


def test_first_and_last_are_those_of_evaluations_where_there_are_any() -> None:
    rows = pd.DataFrame(
        [
            {"step": 1, "logps/chosen": -1.0},
            {"step": 0, "eval_logps/chosen": -5.0},
            {"step": 4, "eval_logps/chosen": -7.0},
            {"step": 5, "logps/chosen": -2.0},
        ]
    )
    assert read_ends(rows, "logps/chosen") == Ends((0, 4), -5.0, -7.0)
    assert read_ends(rows.drop(columns="eval_logps/chosen"), "logps/chosen") == Ends((1, 5), -1.0, -2.0)
    assert read_ends(rows, "logps/rejected") is None


@pytest.mark.parametrize("n_steps", [2, 3, 7, 60])
def test_steps_are_whole_numbers(n_steps):
    rows = pd.DataFrame(make_metric_rows(60)).query("step <= @n_steps")
    figure = plot_trajectory({"a": rows, "b": rows}, model="m", data="d")
    for axes in figure.axes:
        ticks = axes.get_xticks()
        assert len(ticks) >= 2 and all(float(tick).is_integer() for tick in ticks)


def test_lines_are_named_where_they_end_the_higher_one_above():
    (axes,) = plot_trajectory({"DPO": pd.DataFrame(make_metric_rows(60))}, model="m", data="d").axes

    chosen, rejected = axes.texts
    assert (chosen.get_text().split()[0], rejected.get_text().split()[0]) == ("chosen", "rejected")
    assert (chosen.get_va(), rejected.get_va()) == ("bottom", "top")
    assert chosen.xy[0] == 60


def test_runs_have_panels_on_the_same_axes():
    metrics = {f"run {i}": pd.DataFrame(make_metric_rows(20, drop=10 * i)) for i in range(5)}

    figure = plot_trajectory(metrics, model="m", data="d")

    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == list(metrics)
    assert len({axes.get_ylim() for axes in shown}) == 1
    assert "n = 110 logged rows" in figure.get_suptitle()


def test_runs_without_evaluation_or_without_training_rows_can_be_drawn():
    rows = make_metric_rows(20)
    training = pd.DataFrame([row for row in rows if "loss" in row])
    evaluation = pd.DataFrame([row for row in rows if "eval_loss" in row])

    figure = plot_trajectory({"a": training, "b": evaluation}, model="m", data="d")

    assert all(axes.has_data() for axes in figure.axes)
    assert "evaluations" in figure.get_supxlabel()
    assert "evaluations" not in plot_trajectory({"a": training}, model="m", data="d").get_supxlabel()


def test_a_step_that_logged_no_number_is_left_out():
    rows = pd.DataFrame([*make_metric_rows(20), {"step": 21, "logps/chosen": None, "logps/rejected": None}])

    (axes,) = plot_trajectory({"DPO": rows}, model="m", data="d").axes

    assert max(line.get_xdata()[-1] for line in axes.lines) == 20


def test_a_single_logged_row_can_be_drawn():
    rows = pd.DataFrame([{"step": 1, "logps/chosen": -5.0, "logps/rejected": -5.0}])

    figure = plot_trajectory({"DPO": rows}, model="m", data="d")

    figure.canvas.draw()
    assert "n = 1 logged row" in figure.get_suptitle()


def test_a_run_that_logged_no_likelihoods_is_named_below_the_others():
    metrics = {"DPO": pd.DataFrame(make_metric_rows(20)), "sft": pd.DataFrame([{"step": 1, "loss": 2.0}])}

    figure = plot_trajectory(metrics, model="m", data="d")

    assert [axes.get_title(loc="left") for axes in figure.axes] == ["DPO"]
    assert figure.get_supxlabel().replace("\n", " ").endswith("Not shown, as they logged no logps/chosen: sft.")


def test_a_run_that_logged_no_likelihoods_is_one_line():
    with pytest.raises(DpotoolError, match=r"sft: no logps/chosen logged. Only preference losses log it"):
        plot_trajectory({"sft": pd.DataFrame([{"step": 1, "loss": 2.0}])}, model="m", data="d")

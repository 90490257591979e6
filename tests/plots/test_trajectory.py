from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from synthetic_frames import make_metric_rows

from dpotool.errors import DpotoolError
from dpotool.plots.trajectory import plot_trajectory


def has_line(axes, x, y) -> bool:
    return any(
        len(line.get_xdata()) == len(x) and np.allclose(line.get_xdata(), x) and np.allclose(line.get_ydata(), y)
        for line in axes.lines
    )


def test_a_panel_shows_batches_their_average_evaluations_and_the_start():
    rows = pd.DataFrame(make_metric_rows(60))

    figure = plot_trajectory({"DPO": rows}, model="demo", data="train", n_eval_pairs=300)

    (axes,) = figure.axes
    for side in ("chosen", "rejected"):
        raw = rows[["step", f"logps/{side}"]].dropna()
        evaluated = rows[["step", f"eval_logps/{side}"]].dropna()
        assert has_line(axes, raw["step"], raw[f"logps/{side}"])
        assert has_line(axes, raw["step"], raw[f"logps/{side}"].rolling(6, center=True, min_periods=1).mean())
        assert has_line(axes, evaluated["step"], evaluated[f"eval_logps/{side}"])
        assert has_line(axes, [0, 1], [evaluated.iloc[0, 1]] * 2)  # across the axes, at step 0's value
    assert axes.get_title(loc="left") == "DPO"
    assert "demo, train, n = 300 evaluated pairs" in figure.get_suptitle()
    assert "Dotted: where training started" in figure.get_supxlabel().replace("\n", " ")


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
    assert (chosen.get_text(), rejected.get_text()) == ("chosen", "rejected")
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

    assert [len(axes.lines) for axes in figure.axes] == [4, 4]
    assert "Points" in figure.get_supxlabel()
    assert "Points" not in plot_trajectory({"a": training}, model="m", data="d").get_supxlabel()


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
    assert figure.get_supxlabel().replace("\n", " ").endswith("Not shown, as no logps/chosen logged: sft.")


def test_a_run_that_logged_no_likelihoods_is_one_line():
    with pytest.raises(DpotoolError, match=r"sft: no logps/chosen logged. Only preference losses log it"):
        plot_trajectory({"sft": pd.DataFrame([{"step": 1, "loss": 2.0}])}, model="m", data="d")

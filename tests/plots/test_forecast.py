from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation
from synthetic_frames import make_theory_frame

from dpotool.errors import DpotoolError
from dpotool.plots.forecast import plot_forecast, put_in_words
from dpotool.theory.advice import advise

LAMBDAS = (0.5, 0.75, 0.9, 1.0)


def make_advice(optimizer: str = "sgd", *, n: int = 120, gain: float = 1.0) -> dict:
    """DPO lowers chosen by 0.8 and rejected by 1.8 per nat of margin; a tenth of lambda less gives back 0.5, 0.59."""
    rng = np.random.default_rng(0)
    size = rng.gamma(4, 0.25, n)
    forecast = {
        f: (gain * size * (-0.8 + 5 * (1 - f)), gain * size * (-1.8 + 5.9 * (1 - f)) + rng.normal(0, 0.4, n))
        for f in LAMBDAS
    }
    frame = make_theory_frame(n)
    bands = (frame["band_low"].to_numpy(), frame["band_high"].to_numpy())
    return advise(forecast, bands, optimizer=optimizer, n_resamples=200)


OUTCOMES = pd.DataFrame(
    [
        {"label": f"λ={f}", "lambda": f, "n": 400, "data": "demo", "split": "test"}
        | {
            f"{name}{end}": value + shift
            for name, value in (
                ("chosen_change", -1.2 * f),
                ("rejected_change", -2.2 * f),
                ("reward_accuracy", 0.7 * f),
            )
            for end, shift in (("", 0.0), ("_low", -0.1), ("_high", 0.1))
        }
        for f in (0.6, 1.0)
    ]
)


def markers_of(axes) -> list:
    return [container.lines[0] for container in axes.containers]


def test_a_column_per_optimizer_with_changes_over_accuracy():
    advice = {"sgd": make_advice(), "adamw": make_advice("adamw")}

    figure = plot_forecast(advice, model="demo", data="train")

    assert len(figure.axes) == 4
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == [
        "Forecast from a step of gradient descent",
        "Forecast from AdamW's first step",
    ]
    grid = advice["sgd"]["grid"]
    changes, accuracy = figure.axes[0], figure.axes[2]
    chosen = [grid[f"{f:g}"]["chosen_change"]["mean"] for f in LAMBDAS]
    np.testing.assert_allclose(changes.lines[0].get_xydata(), np.column_stack([LAMBDAS, chosen]))
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [grid[f"{f:g}"]["accuracy"]["value"] for f in LAMBDAS])
    assert any(list(line.get_ydata()) == [grid["1"]["accuracy"]["value"]] * 2 for line in accuracy.lines), "DPO's"
    assert len(changes.collections) == 2 and len(accuracy.collections) == 1, "intervals"
    assert "demo, train, n = 120 pairs" in figure.get_suptitle()
    assert not changes.containers, "nothing was measured"


def test_the_recommended_lambda_is_named():
    advice = make_advice()
    assert advice["recommended_lambda"] == 0.9

    changes, accuracy = plot_forecast({"sgd": advice}, model="m", data="d").axes

    assert [c.get_text() for c in changes.get_children() if isinstance(c, Annotation)] == ["recommended λ = 0.9"]
    assert all(any(line.get_xdata()[0] == 0.9 == line.get_xdata()[-1] for line in a.lines) for a in (changes, accuracy))


def test_outcomes_are_points_over_the_forecast():
    figure = plot_forecast({"sgd": make_advice()}, model="m", data="d", outcomes=OUTCOMES)

    changes, accuracy = figure.axes
    chosen, rejected = markers_of(changes)
    np.testing.assert_allclose(chosen.get_ydata(), [-0.72, -1.2])
    np.testing.assert_allclose(rejected.get_ydata(), [-1.32, -2.2])
    np.testing.assert_allclose(markers_of(accuracy)[0].get_xydata(), [[0.6, 0.42], [1.0, 0.7]])
    texts = [text.get_text() for text in changes.get_legend().get_texts()]
    assert texts == ["chosen, predicted", "rejected, predicted", "chosen, measured", "rejected, measured"]
    note = figure.get_supxlabel().replace("\n", " ")
    assert "2 runs at the end of training on demo [test] (n = 400)" in note


def test_runs_that_cannot_be_compared_are_spoken_of():
    figure = plot_forecast({"sgd": make_advice()}, model="m", data="d", outcomes=pd.DataFrame())

    assert "No outcomes are shown" in " ".join(figure.get_supxlabel().split())
    without = plot_forecast({"sgd": make_advice()}, model="m", data="d")
    assert "No outcomes" not in " ".join(without.get_supxlabel().split())


def test_the_legend_hides_no_curve():
    figure = plot_forecast({"sgd": make_advice()}, model="m", data="d", outcomes=OUTCOMES)

    figure.canvas.draw()
    changes = figure.axes[0]
    box = changes.get_legend().get_window_extent()
    curves = [line for line in changes.lines if len(line.get_xdata()) == len(LAMBDAS)]
    points = [point for line in curves + markers_of(changes) for point in line.get_xydata()]
    assert len(points) == 2 * (len(LAMBDAS) + len(OUTCOMES))
    assert not any(box.contains(*changes.transData.transform(point)) for point in points)


def test_an_optimizer_without_a_scale_is_left_out_and_none_at_all_is_one_line():
    without = make_advice("adamw", gain=-1.0)
    assert not without["grid"]

    assert len(plot_forecast({"sgd": make_advice(), "adamw": without}, model="m", data="d").axes) == 2
    with pytest.raises(
        DpotoolError, match=r"no forecast to draw: On these 120 pairs .* More pairs would give it one\. Run"
    ):
        plot_forecast({"adamw": without}, model="m", data="d")


def test_the_words_for_a_forecast_hold_its_numbers_and_those_measured() -> None:
    grid = {
        "1": {"chosen_change": {"mean": -1.0}, "rejected_change": {"mean": -2.0}, "accuracy": {"value": 0.75}},
        "0.5": {"chosen_change": {"mean": 1.5}, "rejected_change": {"mean": 1.25}, "accuracy": {"value": 0.5}},
    }
    outcomes = pd.DataFrame(
        [{"label": "DPO", "chosen_change": -1.25, "rejected_change": -2.25, "reward_accuracy": 0.8}]
    )
    advice = {"sgd": {"reason": "no scale"}, "adamw": {"grid": grid}}
    assert put_in_words(advice, outcomes) == (
        "Forecast from adamw's step: λ=0.5 chosen +1.50, rejected +1.25, accuracy 50.0 %; "
        "λ=1 chosen -1.00, rejected -2.00, accuracy 75.0 %. "
        "Measured: DPO chosen -1.25, rejected -2.25, accuracy 80.0 %."
    )

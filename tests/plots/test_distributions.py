from __future__ import annotations

import numpy as np
import pytest
from synthetic_frames import make_score_frame, make_scored_run

from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError
from dpotool.plots.displacement import measure_changes, say_mean
from dpotool.plots.distributions import plot_distributions
from dpotool.plots.theme import format_number


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def grid_of(figure, n_rows):
    assert len(figure.axes) == 4 * n_rows
    return np.array(figure.axes).reshape(n_rows, 4)


def test_a_row_per_model_with_the_reference_first():
    runs = [make_scored_run("DPO", 50, seed=1, n_excluded=2), make_scored_run("DPO-Shift λ=0.9", 50, seed=2)]

    figure = plot_distributions(runs, model="demo", data="pairs (test)", reference="SFT")

    grid = grid_of(figure, 3)
    labels = [axes.get_ylabel() for axes in grid[:, 0]]
    assert labels == ["SFT", "DPO\nn = 50 (2 left out)", "DPO-Shift λ=0.9\nn = 50"]
    assert [axes.get_xlabel() for axes in grid[-1]] == [
        "log π(chosen) (nats)",
        "log π(rejected) (nats)",
        "reward margin (nats)",
        "change of log π(chosen),\npair by pair (nats)",
    ]
    assert "Likelihood" in figure.get_suptitle()
    assert "demo, pairs (test), n = 50 pairs each, 2 left out in all" in figure.get_suptitle()


def test_every_cell_says_its_mean_and_has_it_marked():
    frame = make_score_frame(50, seed=1)

    grid = grid_of(plot_distributions([ScoredRun(frame, "DPO")], model="m", data="d"), 2)

    names = [["ref_chosen_logps", "ref_rejected_logps"], ["chosen_logps", "rejected_logps", "reward_margins"]]
    for row, columns in zip(grid, names, strict=True):
        for axes, name in zip(row[: len(columns)], columns, strict=True):
            assert texts(axes) == [format_number(frame[name].mean())]
            assert any(np.allclose(line.get_xdata(), frame[name].mean()) for line in axes.lines)


def test_the_references_margin_and_change_are_stated_not_drawn():
    cells = grid_of(plot_distributions([make_scored_run(n=50)], model="m", data="d"), 2)[0, 2:]
    assert len(cells) == 2
    for cell in cells:
        assert texts(cell) == ["0 for every pair,\nby definition"]
        assert not cell.patches


def test_the_last_column_is_the_change_pair_by_pair_with_the_interval_of_its_mean():
    run = make_scored_run(n=50, seed=1)

    cell = grid_of(plot_distributions([run], model="m", data="d"), 2)[1, 3]

    change = measure_changes(run)["chosen"]
    assert change.value == pytest.approx((run.table["chosen_logps"] - run.table["ref_chosen_logps"]).mean())
    assert texts(cell) == [say_mean(change).replace(" [", "\n[")]
    assert any(np.allclose(line.get_xdata(), change.value) for line in cell.lines)


def test_columns_share_axes_and_every_model_shows_its_references_outline():
    grid = grid_of(plot_distributions([make_scored_run(name, 50, seed=1) for name in "ab"], model="m", data="d"), 3)

    for column in grid.T:
        assert len({axes.get_xlim() for axes in column}) == 1
        assert len({axes.get_ylim() for axes in column}) == 1
    filled, step, reference = grid[1, 0].patches
    assert filled.get_fill()
    assert not step.get_fill()
    assert reference.get_linestyle() not in ("-", "solid")
    assert grid[1, 1].patches[0].get_hatch()


def test_heights_count_every_pair_within_the_axes():
    frame = make_score_frame(50, seed=1)
    axes = grid_of(plot_distributions([ScoredRun(frame, "DPO")], model="m", data="d"), 2)[1, 2]

    corners = axes.patches[1].get_xy()
    counts = corners[1:-1:2, 1]
    low, high = axes.get_xlim()
    assert counts.sum() == frame["reward_margins"].between(low, high).sum()


def test_without_a_reference_there_is_no_reference_row_and_no_margin():
    frame = make_score_frame(50, has_reference=False)

    grid = grid_of(plot_distributions([ScoredRun(frame, "llama")], model="m", data="d"), 1)

    assert texts(grid[0, 2]) == ["not known without a reference"]
    assert len(grid[0, 0].patches) == 2


def test_the_note_says_what_lies_beyond_the_axes_and_when_references_differ():
    other = make_score_frame(50)
    other["ref_chosen_logps"] -= 5

    figure = plot_distributions([make_scored_run("a", 400), ScoredRun(other, "b")], model="m", data="d")

    assert "of 1,800 values lie beyond the axes" in figure.get_supxlabel().replace("\n", " ")
    assert "references differ; the first row is that of a" in figure.get_supxlabel().replace("\n", " ")


@pytest.mark.parametrize("n", [1, 2])
def test_very_few_pairs_can_be_drawn(n):
    figure = plot_distributions([make_scored_run(n=n)], model="m", data="d")

    figure.canvas.draw()
    assert f"n = {n} pair" in figure.get_suptitle()


def test_a_table_with_nothing_scored_is_one_line():
    nothing = make_score_frame(1, n_excluded=2).iloc[1:]

    with pytest.raises(DpotoolError, match="DPO: no scored pair among"):
        plot_distributions([ScoredRun(nothing, "DPO")], model="m", data="d")

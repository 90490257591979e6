from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.text import Annotation
from synthetic_frames import make_scored_run

from dpotool.errors import DpotoolError
from dpotool.plots.theme import (
    describe_n,
    describe_ns,
    format_number,
    format_significant,
    label_row,
    make_figure,
    mark_lambdas,
    save_figure,
    set_lambda_ticks,
    set_note,
    set_title,
    shorten,
    styled,
    wrap,
)


def draw():
    figure = make_figure(3, 2)
    figure.add_subplot().plot([1, 2, 3])
    return figure


def test_each_format_is_written_as_what_it_says(tmp_path):
    paths = save_figure(draw(), tmp_path / "new" / "a.b", ["png", "pdf", "svg"])

    assert [path.name for path in paths] == ["a.b.png", "a.b.pdf", "a.b.svg"]
    starts = [path.read_bytes()[:5] for path in paths]
    assert starts == [b"\x89PNG\r", b"%PDF-", b"<?xml"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.b.pdf", "a.b.png", "a.b.svg"]


@pytest.mark.parametrize("format_", ["png", "pdf", "svg"])
def test_the_same_picture_is_the_same_file(tmp_path, format_):
    one, two = (save_figure(draw(), tmp_path / name, [format_])[0] for name in "ab")

    assert one.read_bytes() == two.read_bytes()


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DpotoolError, match=r"unknown picture format 'pgn'. Did you mean 'png'\? Known: pdf, png, svg"):
        save_figure(draw(), tmp_path / "a", ["png", "pgn"])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "plots").write_text("")

    with pytest.raises(DpotoolError, match="a file stands where a folder is needed"):
        save_figure(draw(), tmp_path / "plots" / "a")


def test_drawing_leaves_matplotlibs_settings_alone():
    before = mpl.rcParams["font.size"]

    @styled
    def plot():
        assert mpl.rcParams["font.size"] == 9 != before
        return draw()

    plot()
    assert mpl.rcParams["font.size"] == before


def test_titles_say_what_in_bold_then_model_data_and_n():
    figure = draw()

    set_title(figure, "Reward margins", "demo", "test", "", "n = 3 pairs")

    assert figure.get_suptitle() == "$\\bf{Reward\\ margins}$\ndemo, test, n = 3 pairs"


def test_a_dollar_in_a_name_is_no_formula(tmp_path):
    """Half a formula in a title, a label or a legend would end the picture with a traceback."""

    @styled
    def plot():
        figure = make_figure(4, 3)
        axes = figure.subplots()
        axes.plot([1, 2], label="$x_{$")
        axes.set_xlabel(r"a$\frac{$b")
        axes.legend()
        set_title(figure, "Reward margins", "$x_{$", "$")
        return figure

    figure = plot()
    assert save_figure(figure, tmp_path / "a", ("svg",))
    assert figure.get_suptitle().endswith("\n" + r"\$x_{\$, \$")


def test_a_long_title_keeps_its_n():
    figure = draw()

    set_title(figure, "Reward margins", "m" * 90, "n = 3 pairs")

    assert figure.get_suptitle().endswith("n = 3 pairs")
    assert "…" in figure.get_suptitle()


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([(300, 0)], "n = 300 pairs"),
        ([(1, 0)], "n = 1 pair"),
        ([(1200, 4), (1200, 4)], "n = 1,200 pairs, 4 left out"),
        ([(300, 0), (300, 2)], "n = 300 pairs each, 2 left out in all"),
        ([(300, 0), (200, 2)], "n differs: 200 to 300 pairs, 2 left out in all"),
        ([(300, 0), (200, 0)], "n differs: 200 to 300 pairs"),
    ],
)
def test_counts_in_titles(counts, text):
    assert describe_ns([make_scored_run(n=n, n_excluded=n_excluded) for n, n_excluded in counts]) == text


def test_rows_say_how_many_pairs_where_that_differs_and_which_is_recommended():
    one, other = make_scored_run("DPO", 1000), make_scored_run("IPO", 7, n_excluded=1)
    axes = draw().axes[0]

    def label(*arguments, **options) -> str:
        label_row(axes, *arguments, **options)
        return axes.get_ylabel()

    assert describe_n(1000, 2) == "n = 1,000 pairs, 2 left out"
    assert label(one, [one, other]) == "DPO\nn = 1,000"
    assert label(other, [one, other], is_recommended=True) == "IPO\nn = 7 (1 left out)\nrecommended"
    assert label(one, [one, one]) == "DPO"


def test_long_labels_break_where_a_name_does_and_keep_their_end():
    assert wrap("DPO-Shift λ=0.9", 20) == "DPO-Shift λ=0.9"
    assert wrap("runs/shift-tldr-2026/checkpoint-1200", 20) == "runs/shift-tldr-\n2026/checkpoint-1200"
    long = wrap("meta-llama/Meta-Llama-3-8B-Instruct--ultrafeedback-binarized-dpo-lr5e-7", 20)
    assert long.count("\n") <= 2
    assert long.endswith("lr5e-7")
    assert all(len(line) <= 20 for line in long.split("\n"))
    assert len(wrap("x" * 100, 10, 2).split("\n")) <= 2


def test_shortened_text_has_the_length_asked_for():
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 6) == "abc…fg"


def test_numbers_have_a_true_minus_sign():
    assert [format_number(value) for value in (-105.32, 0.955, -0.0444)] == ["−105.3", "0.955", "−0.044"]


def test_numbers_of_any_size_keep_their_figures():
    values = (8.4, 844.3, -1272.8, 4.84e8, -7.951e-5, 0.3347, 0.0, 999.6)

    assert [format_significant(value) for value in values] == [
        "8.40", "844", "−1,270", "4.84·10⁸", "−7.95·10⁻⁵", "0.335", "0.00", "1,000",
    ]  # fmt: skip
    assert format_significant(0.00302, 2) == "3.0·10⁻³"


def test_a_note_is_never_broken_before_a_percent_sign():
    for width in range(3, 9):
        figure = make_figure(width, 3)
        set_note(figure, "Bars: 95 % bootstrap intervals over pairs, which is 95 % of 95 % of 95 % of 95 % of them.")
        assert not any(line.startswith("%") for line in figure.get_supxlabel().split("\n"))


def mark(recommended: float | None, **options: str) -> tuple[list[str], list[float]]:
    axes = make_figure(4, 3).add_subplot()
    mark_lambdas(axes, recommended, **options)
    names = [child.get_text() for child in axes.get_children() if isinstance(child, Annotation)]
    return names, [line.get_xdata()[0] for line in axes.lines]


@pytest.mark.parametrize(
    ("recommended", "names", "lines"),
    [
        (None, ["DPO"], [1.0]),
        (1.0, ["recommended: DPO"], [1.0]),
        (0.75, ["recommended λ = 0.75", "DPO"], [1.0, 0.75]),
        (1.05, ["recommended λ = 1.05", "DPO"], [1.0, 1.05]),
    ],
)
def test_dpo_and_the_recommended_lambda_are_marked(recommended, names, lines):
    assert mark(recommended) == (names, lines)


def test_names_are_left_out_where_there_is_no_room_for_them():
    assert mark(0.9, names="recommended") == (["recommended λ = 0.9"], [1.0, 0.9])
    assert mark(0.9, names="none") == ([], [1.0, 0.9])


def test_every_lambda_has_a_tick_and_those_with_room_a_number():
    axes = make_figure(4, 3).add_subplot()

    set_lambda_ticks(axes, np.array([0.5, 0.75, 0.98, 0.99, 1.0]))

    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "0.75", "0.5"]
    assert axes.get_xticks(minor=True).tolist() == [0.98, 0.99] or len(axes.get_xticks(minor=True)) == 5

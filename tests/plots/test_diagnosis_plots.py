"""Pictures of a diagnosis: what they draw is what its tables hold, and no text of a pair breaks them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from diagnosed_runs import write_diagnosis
from scored_runs import write_scored_run

from dpotool.compare.diagnosed_run import DiagnosedRun, find_diagnosis, make_visible, show_text
from dpotool.errors import DpotoolError
from dpotool.plots.gallery import draw
from dpotool.plots.mass import PARTS, tabulate_mass
from dpotool.plots.registry import get_plot
from dpotool.plots.scene import read_scene
from dpotool.plots.tokens import choose_pair, plot_tokens
from dpotool.settings.reading import PlotConfig

KINDS = ("spans", "mass", "risk", "tokens")
EVIL = "<script>alert(1)</script>$\\frac{1}{0}$ \x1b[31m\u202eשלום مرحبا 中文 \N{GRINNING FACE}_{^"


@pytest.fixture
def run(tmp_path: Path) -> str:
    folder = write_scored_run(tmp_path / "dpo", loss="dpo", lambda_=1.0)
    write_diagnosis(folder, n=40)
    return str(folder.path)


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_drawn_with_words_for_who_cannot_see_it(run: str, kind: str) -> None:
    assert [path.name for path in draw(kind, [run], PlotConfig()).paths] == [f"{kind}.png"]
    drawing = get_plot(kind).draw(read_scene([run], PlotConfig()))
    assert drawing.alt.endswith(".") and any(sign.isdigit() for sign in drawing.alt)


def test_one_pair_has_parts_without_intervals(tmp_path: Path) -> None:
    folder = write_scored_run(tmp_path / "dpo", loss="dpo", lambda_=1.0)
    write_diagnosis(folder, n=1)
    assert "rejected answers" in get_plot("spans").draw(read_scene([str(folder.path)], PlotConfig())).alt


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_diagnosis_the_remedy_is_named(tmp_path: Path, kind: str) -> None:
    folder = write_scored_run(tmp_path / "dpo")
    with pytest.raises(DpotoolError, match="dpotool diagnose"):
        draw(kind, [str(folder.path)], PlotConfig())


def test_all_draws_them_only_where_a_diagnosis_is(run: str, tmp_path: Path, only_names: None) -> None:
    plain = write_scored_run(tmp_path / "plain", loss="dpo", lambda_=1.0)
    assert set(KINDS) <= {path.stem for path in draw("all", [run], PlotConfig()).paths}
    gallery = draw("all", [str(plain.path)], PlotConfig())
    assert set(KINDS) <= gallery.skipped.keys() and not set(KINDS) & {path.stem for path in gallery.paths}


def test_the_spans_drawn_are_those_of_the_summary(run: str) -> None:
    found = DiagnosedRun.open(next(Path(run).glob("diagnosis/*-test.parquet")))
    left, right = get_plot("spans").draw(read_scene([run], PlotConfig())).figure.axes
    widths = [patch.get_width() for patch in left.patches]
    expected = [
        *(found.summary["chosen"]["spans"][span]["mean"] for span in ("shared_prefix", "shared", "divergent", "eos")),
        found.summary["chosen"]["displacement"]["mean"],
    ]
    np.testing.assert_allclose(widths[:5], expected)
    assert sum(expected[:4]) == pytest.approx(expected[4])
    heights = [patch.get_height() for patch in right.patches[: len(found.summary["chosen"]["positions"])]]
    assert sum(heights) == pytest.approx(expected[4])


def test_the_masses_of_every_place_sum_to_one(run: str) -> None:
    found = find_diagnosis(read_scene([run], PlotConfig()).everything)
    assert found is not None
    table = tabulate_mass(found.tokens)
    sums = table[["before", "after"]].groupby("bin").sum()
    np.testing.assert_allclose(sums, 1, atol=1e-9)
    assert set(table.index.unique("part")) == set(PARTS)
    n_looked = ((found.tokens["side"] == "chosen") & found.tokens["p_token"].notna()).sum()
    assert table["n"].groupby("bin").first().sum() == n_looked


def test_the_worst_pair_is_shown_unless_another_is_asked_for(run: str) -> None:
    found = find_diagnosis(read_scene([run], PlotConfig()).everything)
    assert found is not None
    lowest = found.pairs["chosen_displacement"].idxmin()
    assert choose_pair(found, None) == lowest
    assert choose_pair(found, 3) == 3
    assert f"Pair {lowest}." in get_plot("tokens").draw(read_scene([run], PlotConfig())).alt
    assert "Pair 3." in get_plot("tokens").draw(read_scene([run], PlotConfig(pair=3))).alt
    with pytest.raises(DpotoolError, match="such as"):
        draw("tokens", [run], PlotConfig(pair=4000))


def test_tokens_stand_with_their_changes_whatever_they_hold() -> None:
    """Markup, mathematics, control characters, right-to-left script, signs that the font lacks, half a character."""
    texts = [*EVIL.split(" "), "\n", "", " plain"]
    tokens = pd.DataFrame({"token": texts, "span": "divergent", "change": np.linspace(-2, 2, len(texts))})
    figure = plot_tokens({"chosen": tokens, "rejected": tokens.iloc[::-1]}, pair_id=1, model="m", data="d [test]")
    figure.canvas.draw()
    drawn = [text.get_text() for text in figure.axes[0].texts]
    assert "<script>alert(1)</script>$\\frac{1}{0}$" in drawn
    assert any("םולש" in text and "⟨U+202E⟩" in text for text in drawn)  # Hebrew reads from the right
    assert "⟨U+4E2D⟩⟨U+6587⟩" in drawn and "plain" in drawn and "↵" in drawn and "▫" in drawn
    assert "−2.00" in drawn and "+2.00" in drawn
    assert len(list(figure.axes[0].patches)) == len(texts)


def test_nothing_unseen_is_left_in_a_text() -> None:
    assert make_visible("a\x07b\u202ec\n") == "a⟨U+0007⟩b⟨U+202E⟩c↵"
    assert make_visible("שלום") == "שלום"
    assert show_text("a\n\tb\x00\u202e") == "a\n\tb⟨U+0000⟩⟨U+202E⟩"

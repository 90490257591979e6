"""Where the probability of the next token lies in chosen answers, under the reference and under the policy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpotool.compare.diagnosis import cut_positions, name_positions
from dpotool.errors import DpotoolError
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import COLORS, FAINT, INK, describe_n, make_figure, set_note, set_title, styled

PARTS = {
    "token": ("the chosen token", COLORS[0], ""),
    "other_side": ("the rejected answer's next token", COLORS[1], "/////"),
    "ref_top": ("what was most likely already", COLORS[4], "....."),
    "top": ("what is most likely now", COLORS[3], "xxxxx"),
    "rest": ("everything else", FAINT, ""),
}


def draw(scene: Scene) -> Drawing:
    """Draws the masses of a diagnosis; raises DpotoolError where there is none."""
    found = scene.need_diagnosis()
    if "p_token" not in found.tokens or found.tokens["p_token"].isna().all():
        raise DpotoolError(
            "this diagnosis did not look where the probability went",
            where=str(found.path),
            remedy="Run `dpotool diagnose` again, without --no-mass",
        )
    table = tabulate_mass(found.tokens)
    figure = plot_mass(table, n=int(found.summary["n"]), **found.title)
    whole = np.average(table[["before", "after"]].unstack("part"), axis=0, weights=table["n"].groupby("bin").first())
    before, after = whole.reshape(2, -1)
    order = table.index.unique("part").sort_values()
    texts = [
        f"{PARTS[part][0]} {100 * b:.1f} and {100 * a:.1f} %"
        for part, b, a in sorted(zip(order, before, after, strict=True), key=lambda each: list(PARTS).index(each[0]))
    ]
    return Drawing(figure, f"Mean probability in chosen answers before and after training: {', '.join(texts)}.")


def tabulate_mass(tokens: pd.DataFrame) -> pd.DataFrame:
    """Returns mean probabilities over the positions looked into of chosen answers, by place and part.

    Index: bin, part. Columns: `name` of the bin, `n` positions, `before` (reference) and `after` (policy). The parts of
    a bin sum to one; a rejected answer's next token that there is none of counts as zero.
    """
    mine = tokens[(tokens["side"] == "chosen") & tokens["p_token"].notna()]
    bins = cut_positions(mine["position"].to_numpy(dtype=np.int64))
    rows = []
    for number in np.unique(bins):
        here = mine[bins == number]
        places = {"first": int(here["position"].min()), "last": int(here["position"].max())}
        for part in PARTS:
            before, after = (float(here[f"{model}p_{part}"].fillna(0).mean()) for model in ("ref_", ""))
            rows.append((int(number), part, name_positions(places), len(here), before, after))
    return pd.DataFrame(rows, columns=["bin", "part", "name", "n", "before", "after"]).set_index(["bin", "part"])


@styled
def plot_mass(table: pd.DataFrame, *, n: int, model: str, data: str) -> Figure:
    """Draws the parts by place under the reference, under the policy, and their difference; see `tabulate_mass`.

    Args:
        n: number of pairs, for the title; model, data: for the title too.
    """
    figure = make_figure(10.4, 4.4)
    before, after, change = figure.subplots(1, 3)
    names = table["name"].groupby("bin").first().tolist()
    for axes, column, title in ((before, "before", "under the reference"), (after, "after", "after training")):
        _stack(axes, table[column].unstack("part"))
        axes.set_title(title, fontsize=9)
        axes.set_ylim(0, 100)
    before.set_ylabel("mean probability of the next token (%)")
    _draw_changes(change, (table["after"] - table["before"]).unstack("part"))
    change.set_title("difference", fontsize=9)
    change.set_ylabel("change (points)")
    for axes in (before, after, change):
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    after.set_xlabel("place in the chosen answer (tokens)")
    handles, labels = before.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, handleheight=1.4)
    set_title(figure, "Where the probability of the next token lies", model, data, describe_n(n))
    set_note(
        figure,
        "If two of these are the same token, it counts for the first one. The rejected answer's next token is "
        "there only where the two answers have just diverged.",
    )
    return figure


def _stack(axes: Axes, shares: pd.DataFrame) -> None:
    base = np.zeros(len(shares))
    for part, (label, color, hatch) in PARTS.items():
        heights = 100 * shares[part].to_numpy()
        axes.bar(
            range(len(base)), heights, bottom=base, width=0.85, color=color, hatch=hatch, edgecolor="white",
            linewidth=0.4, label=label,
        )  # fmt: skip
        base += heights


def _draw_changes(axes: Axes, changes: pd.DataFrame) -> None:
    width = 0.85 / len(PARTS)
    for number, (part, (label, color, hatch)) in enumerate(PARTS.items()):
        axes.bar(
            np.arange(len(changes)) + (number - (len(PARTS) - 1) / 2) * width, 100 * changes[part], width=width,
            color=color, hatch=hatch, edgecolor="white", linewidth=0.3, label=label,
        )  # fmt: skip
    axes.axhline(0, color=INK, linewidth=0.8)

"""The registry of pictures, which `plot`, its help, its reference page, `all` and the report read.

To add one: write a module with a function from a `Scene` to a `Drawing`, add its entry to `PLOTS`, and test it. From
outside, `register_plot` adds one, and so does a package that names a `PlotKind` as an entry point of the group
`dpotool.plots`. Imports neither matplotlib nor pandas, as help and completion read the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.plugins import register_installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dpotool.plots.scene import Scene
    from dpotool.runs.folder import RunFolder

ENTRY_POINTS = "dpotool.plots"
ALL = "all"


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure and its alternative text, for readers who cannot see it."""

    figure: Figure
    alt: str
    """What the figure shows, with its numbers, in whole sentences."""


@dataclass(frozen=True, slots=True)
class Need:
    """A kind of table or log that pictures are made of."""

    find: Callable[[RunFolder], Sequence[Path]]
    """The files of that kind in a run folder."""
    command: str
    """What makes them."""
    is_extra: bool = False
    """Whether a report says nothing if there is none."""


NEEDS = {
    "scores": Need(lambda run: run.list_tables("score"), "`dpotool train` and `dpotool score`"),
    "log": Need(lambda run: [run.metrics_path] if run.metrics_path.exists() else [], "`dpotool train`"),
    "theory": Need(lambda run: run.list_tables("theory"), "`dpotool theory-gap`"),
    "prediction": Need(lambda run: run.list_tables("prediction"), "`dpotool predict`"),
    "diagnosis": Need(lambda run: run.list_tables("diagnosis"), "`dpotool diagnose`", is_extra=True),
    "judgments": Need(lambda run: run.list_tables("judgment"), "`dpotool generate` and `dpotool judge`"),
    "ratings": Need(lambda run: run.list_tables("rating"), "`dpotool judge --bench mt-bench`", is_extra=True),
}


@dataclass(frozen=True, slots=True)
class PlotKind:
    """One kind of picture."""

    name: str
    """On the command line, and of its file."""
    rank: int
    """Order in `all` and in the report: the most telling first. A report that is too large loses the last first."""
    needs: str
    """A key of NEEDS."""
    shows: str
    """The question it answers, in a clause: for help and the reference page."""
    caption: str
    """Sentences below the figure in a report: how to read it."""
    source: str | Callable[[Scene], Drawing]
    """The function that draws it, or "module:function" where that is to be imported only when it is drawn.

    It raises DpotoolError, with the remedy, where the scene lacks what it needs.
    """
    section: str | None = None
    """Its heading in a report, which kinds can share; None for one that is not in reports."""
    is_in_all: bool = True
    """Whether `dpotool plot all` draws it."""

    def draw(self, scene: Scene) -> Drawing:
        """Returns the figure with its alternative text."""
        if not isinstance(self.source, str):
            return self.source(scene)
        module, _, function = self.source.partition(":")
        drawing: Drawing = getattr(import_module(module), function)(scene)
        return drawing


_ENTRIES = (
    PlotKind(
        "quadrants", 10, "scores",
        "which way each pair moved: change of the chosen against change of the rejected answer",
        "Each point is a test pair. Below the horizontal line its chosen answer became less likely than under the "
        "reference; below the dashed diagonal the pair is ranked wrongly. The white plus is the mean.",
        "dpotool.plots.quadrants:draw", "Which way the pairs moved",
    ),
    PlotKind(
        "tradeoff", 20, "scores",
        "what each run gains in chosen log-likelihood against the baseline, and what that costs in accuracy",
        "Differences from the baseline over the same pairs. A run to the right keeps the chosen answers more likely; a "
        "run further down ranks fewer pairs right. No run beats one on the dashed Pareto front in both.",
        "dpotool.plots.tradeoff:draw", "Gain and cost against the baseline",
    ),
    PlotKind(
        "tradeoff-margin", 25, "scores",
        "the same with the cost in reward margin",
        "Differences from the baseline over the same pairs: chosen log-likelihood and reward margin.",
        "dpotool.plots.tradeoff:draw_margin",
    ),
    PlotKind(
        "win-rate", 27, "judgments",
        "how often each run's answers were preferred to the baseline's: wins, ties and losses",
        "Wins, ties and losses of each run's answers against the baseline's. The win rate on the right counts a tie as "
        "half; its interval is over questions. Every judge has preferences; the note on the judge names them.",
        "dpotool.plots.win_rates:draw", "Does it answer better",
    ),
    PlotKind(
        "tradeoff-win-rate", 28, "judgments",
        "win rate against the difference in chosen log-likelihood",
        "To the right: chosen answers more likely than under the baseline; above the line: answers preferred to its.",
        "dpotool.plots.win_rates:draw_tradeoff",
    ),
    PlotKind(
        "mt-bench", 29, "ratings",
        "the judge's grades of each run's answers, a spoke for each category of questions",
        "Mean grade of each run's answers by category, from 1 to 10, with 95 % intervals over questions. A category "
        "has few questions. Read the spokes; the area depends on the order of the categories.",
        "dpotool.plots.ratings:draw", "Does it answer better",
    ),
    PlotKind(
        "accuracy", 30, "scores",
        "how reward accuracy differs from the baseline's, against λ",
        "Difference in reward accuracy from the baseline over the same pairs; λ = 1 is DPO. The scale on the right "
        "gives the accuracy itself.",
        "dpotool.plots.accuracy:draw", "Accuracy against λ",
    ),
    PlotKind(
        "displacement", 40, "scores",
        "how far each pair's chosen and rejected log-likelihoods moved from the reference, a row for each run",
        "Change of each pair's log-likelihoods from the reference: chosen answers above each line, rejected ones below "
        "it. The bars at the means are 95 % intervals over pairs.",
        "dpotool.plots.displacement:draw", "How far the likelihoods moved",
    ),
    PlotKind(
        "margin", 50, "scores",
        "reward margins, a row for each run, with the share above zero",
        "Reward margins. The share to the right of zero is the reward accuracy.",
        "dpotool.plots.margin:draw", "How far the likelihoods moved",
    ),
    PlotKind(
        "distributions", 60, "scores",
        "log-likelihoods and margins in the layout of the DPO-Shift paper, and the change pair by pair beside them",
        "Log-likelihoods of chosen and rejected answers, reward margins, and the change of each pair's chosen "
        "log-likelihood. The dashed outline is the reference.",
        "dpotool.plots.distributions:draw",
    ),
    PlotKind(
        "spans", 62, "diagnosis",
        "on which tokens the answers moved: before they differ, in both, in one alone, the end token; and where",
        "The change of log-likelihood taken apart by tokens: the parts of each answer add up to its change. The bars' "
        "lines are 95 % intervals over pairs.",
        "dpotool.plots.spans:draw", "Where the probability went",
    ),
    PlotKind(
        "mass", 64, "diagnosis",
        "where the probability of the next token lies in chosen answers, before and after training, by position",
        "Mean probability of the next token at every place of the chosen answers: of the chosen token itself, of the "
        "rejected answer's next token where the two have just diverged, of what was and of what is most likely.",
        "dpotool.plots.mass:draw", "Where the probability went",
    ),
    PlotKind(
        "risk", 66, "diagnosis",
        "which measure that was known before training ranks the pairs by how far their chosen answers fell",
        "Left: Spearman's rank correlation of each measure with the change of chosen answers, by itself and given "
        "the length of the answer. Right: the two that rank best, pair by pair.",
        "dpotool.plots.risk:draw", "Where the probability went",
    ),
    PlotKind(
        "tokens", 68, "diagnosis",
        "both answers of a pair (--pair, else the worst), each token coloured by the change of its log-probability",
        "Each token with the change of its log-probability in nats: falls orange, gains violet, the stronger the "
        "further. A framed token does not occur in the other answer.",
        "dpotool.plots.tokens:draw",
    ),
    PlotKind(
        "trajectory", 70, "log",
        "how the log-likelihoods changed while training",
        "Points joined by a bold line are evaluations, on the same pairs every time. Thin lines are means over "
        "training batches, which hold other pairs at every step.",
        "dpotool.plots.trajectory:draw", "While training",
    ),
    PlotKind(
        "forecast", 80, "theory",
        "what `theory-gap` predicts for each λ, and what came of it in the runs named beside it",
        "Lines are the forecast made before training; large points are what training measured.",
        "dpotool.plots.forecast:draw", "Predicted and measured",
    ),
    PlotKind(
        "theory", 90, "theory",
        "u and v of the theorem for each pair",
        "u and v of Theorem 2.1 for each pair, before training.",
        "dpotool.plots.theory:draw", "Predicted and measured",
    ),
    PlotKind(
        "band", 100, "theory",
        "for which λ a step on a pair alone raises the chosen and lowers the rejected answer",
        "Share of the pairs for which a step on the pair alone raises the chosen or lowers the rejected answer, "
        "against λ.",
        "dpotool.plots.band:draw",
    ),
    PlotKind(
        "prediction", 110, "prediction",
        "measured against predicted change of each pair",
        "Measured against predicted change of each pair's log-likelihoods between two checkpoints.",
        "dpotool.plots.prediction:draw",
    ),
    PlotKind(
        "gap-ladder", 120, "theory",
        "whether the error of the first-order prediction falls with the square of the learning rate "
        "(`theory-gap --verify`)",
        "Error of the exact first-order gaps against the learning rate. A slope of 2 means that they are right.",
        "dpotool.plots.gap_ladder:draw",
    ),
    PlotKind(
        "gap", 130, "theory",
        "the gaps g1 and g2 of DPO-Shift over DPO; straight lines at the reference, so not part of `all`",
        "The gaps g1 and g2 as printed, exact to first order, and measured, against f.",
        "dpotool.plots.gap:draw", is_in_all=False,
    ),
)  # fmt: skip
PLOTS: dict[str, PlotKind] = {kind.name: kind for kind in _ENTRIES}
"""Name -> kind of picture; `find_plots` also has those of other packages."""


def register_plot(kind: PlotKind) -> PlotKind:
    """Adds a picture from outside; `plot`, `all`, the report and the reference page of this process then know it.

    Raises:
        ValueError: there is a picture of that name, or what it needs is no key of NEEDS.
    """
    if kind.name in (*PLOTS, ALL):
        raise ValueError(f"there is a picture named {kind.name} already")
    if kind.needs not in NEEDS:
        raise ValueError(f"{kind.needs!r} is none of {', '.join(NEEDS)}")
    PLOTS[kind.name] = kind
    return kind


def find_plots() -> dict[str, PlotKind]:
    """Returns every kind of picture by rank, those of installed packages included."""
    register_installed(ENTRY_POINTS, register_plot)
    return dict(sorted(PLOTS.items(), key=lambda item: item[1].rank))


def get_plot(name: str) -> PlotKind:
    """Returns the picture of that name.

    Raises:
        DpotoolError: there is none; the message names the nearest.
    """
    known = find_plots()
    if name not in known:
        raise DpotoolError(f"unknown picture {name!r}", where="plot", remedy=suggest_nearest(name, [*known, ALL]))
    return known[name]


_TRADEOFFS = {"accuracy": "tradeoff", "margin": "tradeoff-margin", "win-rate": "tradeoff-win-rate"}
"""What `--y` sets against the likelihood -> the picture."""


def choose_plots(name: str, y: str | None = None) -> list[PlotKind]:
    """Returns the kinds that the user names: the one of that name, or for `all` several.

    Raises DpotoolError for an unknown name or y, and for y beside another picture than `tradeoff`.
    """
    if y is not None:
        if name != "tradeoff" or y not in _TRADEOFFS:
            raise DpotoolError(
                f"{y!r} cannot stand on the y axis of {name}", where="--y",
                expected=f"{', '.join(_TRADEOFFS)}, with the picture tradeoff",
            )  # fmt: skip
        name = _TRADEOFFS[y]
    return [kind for kind in find_plots().values() if kind.is_in_all] if name == ALL else [get_plot(name)]

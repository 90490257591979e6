"""A comparison as rows: for a screen, a paper (Markdown, LaTeX) or another program (CSV), and a sentence per model."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dpotool.compare.differences import MEAN_METRICS, SHARE_METRICS, Comparison, Difference
from dpotool.compare.seeds import PooledSetting
from dpotool.compare.verdict import Verdict
from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.stats.intervals import format_ends, format_interval, say_if_few
from dpotool.stats.paired import PairedDifference, Tested, read_difference
from dpotool.wording import count

FORMATS = ("table", "csv", "markdown", "latex")
_LATEX_SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "λ": r"$\lambda$", "→": r"$\to$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "<": r"$<$", "Δ": r"$\Delta$", "∞": r"$\infty$",
}  # fmt: skip


Verdicts = Mapping[str, Verdict | None]
Rates = Mapping[str, Mapping[str, float]]
"""Label -> win rate over the baseline, ties as half: value, ci_low, ci_high; of runs whose answers were judged."""


def tabulate_differences(comparison: Comparison, verdicts: Verdicts) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows within 80 columns: what each model gains in likelihood and costs, and its verdict.

    No margin is a share of a baseline's that cannot be told from 0.
    """
    columns = ["model", "chosen, nats", "accuracy, points", "margin", "verdict"]
    runs = comparison.runs.set_index("label")
    margins = runs["reward_margins"].astype(float) / runs["beta"].astype(float)
    base = margins[comparison.baseline]
    is_positive = runs["reward_margins_low"].astype(float)[comparison.baseline] > 0
    rows = []
    for label, margin in margins.items():
        kept = f"{100 * margin / base:.0f} %" if is_positive and math.isfinite(margin) else "-"
        found = comparison.differences.get(str(label))
        cells = ["baseline", "baseline"]
        if found is not None:
            cells = [_brief(found.metrics["chosen_logps"], 2), _brief(found.metrics["reward_accuracy"], 1, 100)]
        rows.append([str(label), *cells, kept, _say_kind(verdicts.get(str(label)))])
    return columns, rows


def tabulate_comparison(
    comparison: Comparison, verdicts: Verdicts, win_rates: Rates | None = None
) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows for a reader: each model's numbers, its differences with intervals, adjusted p.

    Where answers were judged, the last column is their win rate.
    """
    columns = ["model", "log pi(chosen)", "perplexity (chosen)", "chosen, difference", "p (chosen)", "accuracy, %"]
    columns += ["accuracy, difference in points", "p (accuracy)", "displacement", "rejected, difference"]
    columns += ["margin, difference", *(["win rate, %"] if win_rates else [])]
    rows = []
    for run in comparison.runs.to_dict("records"):
        label = str(run["label"])
        difference = comparison.differences.get(label)
        kind = _say_kind(verdicts.get(label))
        chosen, accuracy = _number(run["chosen_logps"], 2), _number(run["reward_accuracy"], 1, 100)
        perplexity = _number(run["chosen_perplexity"], 3)
        judged = [format_interval((win_rates or {}).get(label), ".1f", 100)] if win_rates else []
        if difference is None:
            rows.append([label, chosen, perplexity, "baseline", "", accuracy, "baseline", "", kind, "", "", *judged])
            continue
        found = difference.metrics
        kept, ranked = found["chosen_logps"], found["reward_accuracy"]
        cells = [label, chosen, perplexity, _interval(kept, 2), format_p(kept)]
        cells += [accuracy, _interval(ranked, 1, 100), format_p(ranked), kind]
        cells += [_interval(found["rejected_logps"], 2), _interval(found["reward_margins"], 3)]
        rows.append([*cells, *judged])
    return columns, rows


EFFECTS_TITLE = (
    "Effect sizes against {baseline}, and ties. d_z: mean difference over the standard deviation of the differences; "
    "odds ratio: pairs that only this model ranks right, for each that only {baseline} does"
)
"""The title of `tabulate_effects`."""


def tabulate_effects(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows with the effect size of each difference, its interval, and the ties behind it."""
    base = comparison.baseline
    columns = [
        "model",
        "chosen, d_z",
        "rejected, d_z",
        "margin, d_z",
        f"only it right : only {base} right",
        "odds ratio",
    ]
    columns += ["ranked alike", "chosen equally likely", "margin exactly 0"]
    rows = []
    for run in comparison.scored:
        margins = run.scored["reward_margins"]
        zero = "-" if margins.isna().any() else f"{int((margins == 0).sum())} of {len(margins)}"
        difference = comparison.differences.get(run.label)
        if difference is None:
            rows.append([run.label, "baseline", *[""] * 6, zero])
            continue
        found = difference.metrics
        cells = [_effect(found[name]) for name in ("chosen_logps", "rejected_logps", "reward_margins")]
        ranked, chosen = found["reward_accuracy"], found["chosen_logps"]
        only = None if ranked is None else ranked.discordant
        cells.append("-" if only is None else f"{only[0]} : {only[1]}")
        cells.append(_effect(ranked, sign=""))
        cells += ["-" if each is None else f"{each.n_ties} of {each.n}" for each in (ranked, chosen)]
        rows.append([run.label, *cells, zero])
    return columns, rows


def _effect(found: PairedDifference | None, sign: str = "+") -> str:
    """Returns "+0.42 [+0.31, +0.53]"; "-" where nothing varies, so that there is no scale to measure on."""
    return format_interval(None if found is None else found.effect_size, f"{sign}z.2f")


def tabulate_seeds(seeds: Sequence[PooledSetting]) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows for settings trained with several seeds: differences, intervals over training too."""
    columns = ["setting", "seeds", "chosen, difference", "SD over seeds", "accuracy, difference in points"]
    columns += ["SD over seeds (accuracy)", "margin, difference"]
    rows = []
    for pooled in seeds:
        cells = [pooled.label, str(len(pooled.seeds))]
        for name, digits, scale, has_spread in (
            ("chosen_logps", 2, 1, True),
            ("reward_accuracy", 1, 100, True),
            ("reward_margins", 3, 1, False),
        ):
            found = pooled.metrics[name]
            cells.append(_interval(found, digits, scale))
            if has_spread:
                cells.append("-" if found is None else f"{scale * found.seed_sd:.{digits}f}")
        rows.append(cells)
    return columns, rows


def format_p(found: PairedDifference | None) -> str:
    """Returns the adjusted p-value: "0.012", "< 0.001"."""
    if found is None or found.p_adjusted is None:
        return "-"
    return "< 0.001" if found.p_adjusted < 0.001 else f"{found.p_adjusted:.3f}"


def describe_differences(comparison: Comparison) -> list[str]:
    """Returns a plain sentence for each model but the baseline."""
    return [_describe(label, comparison.baseline, each) for label, each in comparison.differences.items()]


def _describe(label: str, baseline: str, difference: Difference) -> str:
    kept, accuracy = difference.metrics["chosen_logps"], difference.metrics["reward_accuracy"]
    few = say_if_few(difference.n, difference.n_prompts)
    if kept is None:
        known = "there is nothing to compare" if accuracy is None else _describe_accuracy(accuracy)
        return f"{label} against {baseline}: {known}.{few}"
    chosen = kept.difference
    if kept.is_shown:
        verb, way = ("keeps", "higher") if chosen.value > 0 else ("pushes", "lower")
        low, high = sorted((abs(chosen.ci_low), abs(chosen.ci_high)))
        text = f"{label} {verb} the chosen log-likelihood {abs(chosen.value):.2f} nats {way} than {baseline} "
        text += f"[{low:.2f}, {high:.2f}]"
    else:
        text = f"{label} and {baseline} cannot be told apart by the chosen log-likelihood "
        doubt = f"; p = {format_p(kept)}" if chosen.excludes_zero else ""
        text += f"({format_interval(chosen, unit=' nats')}{doubt})"
    if accuracy is None:
        return f"{text}; there is no reference, so no reward accuracy.{few}"
    return f"{text}; {_describe_accuracy(accuracy)}.{few}"


def _describe_accuracy(accuracy: PairedDifference) -> str:
    hedge = "" if accuracy.is_beyond_chance else ", not beyond chance"
    n_disagreeing = sum(accuracy.discordant or ())
    ends = format_ends(accuracy.difference, "+z.1f", 100)
    tail = f"{ends}{hedge}; the two rank {n_disagreeing} of {count(accuracy.n, 'pair')} differently"
    points = 100 * accuracy.difference.value
    if points == 0:
        return f"reward accuracy is the same{tail.replace(hedge, '')}"
    return f"reward accuracy is {abs(points):.1f} points {'higher' if points > 0 else 'lower'}{tail}"


def build_comparison_frame(comparison: Comparison, verdicts: Verdicts, win_rates: Rates | None = None) -> pd.DataFrame:
    """Returns a row per model and a column per number, for other programs; nothing rounded.

    `<metric>_difference` with `_low`, `_high`, `<metric>_p_value`, `_p_adjusted`, `_effect_size` with its ends (Cohen's
    d_z, of a share the odds ratio; inf where unbounded), `_ties`, and of a share `_only_model` and `_only_baseline`,
    the pairs it is true of in one of the two alone; empty for the baseline. `win_rate` of judged answers, as a share.
    """
    kept = ["label", "path", "loss", "lambda_schedule", "lambda", "beta", "seed", "data", "split", "n", "n_excluded"]
    rows = []
    for run in comparison.runs.to_dict("records"):
        label = str(run["label"])
        row: dict[str, Any] = {name: run.get(name) for name in kept}
        row["is_baseline"] = label == comparison.baseline
        verdict, difference = verdicts.get(label), comparison.differences.get(label)
        row["verdict"] = None if verdict is None else verdict.kind
        row["n_shared"] = None if difference is None else difference.n
        row |= {f"chosen_perplexity{end}": run.get(f"chosen_perplexity{end}") for end in ("", "_low", "_high")}
        for name in (*MEAN_METRICS, *SHARE_METRICS):
            row |= {name: run.get(name), f"{name}_low": run.get(f"{name}_low"), f"{name}_high": run.get(f"{name}_high")}
            row |= _flatten(name, None if difference is None else difference.metrics[name])
        rate = (win_rates or {}).get(label, {})
        row |= {f"win_rate{end}": rate.get(name) for end, name in _RATE_ENDS.items()}
        rows.append(row)
    for row in rows:  # bytes of a name that are no UTF-8 are written out: pandas takes none
        row["path"] = str(row["path"]).encode("utf-8", "backslashreplace").decode()
    return pd.DataFrame(rows)


_RATE_ENDS = {"": "value", "_low": "ci_low", "_high": "ci_high"}


def _flatten(name: str, found: PairedDifference | None) -> dict[str, Any]:
    ends = ("value", "ci_low", "ci_high")
    shift = [found and getattr(found.difference, end) for end in ends]
    effect = [found and getattr(found.effect_size, end) for end in ends]
    row = dict(zip((f"{name}_difference{end}" for end in _RATE_ENDS), shift, strict=True))
    row |= dict(zip((f"{name}_effect_size{end}" for end in _RATE_ENDS), effect, strict=True))
    row |= {f"{name}_p_value": found and found.p_value, f"{name}_p_adjusted": found and found.p_adjusted}
    row[f"{name}_ties"] = found and found.n_ties
    if name in SHARE_METRICS:
        only = (found and found.discordant) or (None, None)
        row |= {f"{name}_only_model": only[0], f"{name}_only_baseline": only[1]}
    return row


def write_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], format: str) -> str:  # noqa: A002
    """Returns the table as CSV, a Markdown table or a LaTeX tabular (booktabs)."""
    if format == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([columns, *rows])
        return buffer.getvalue()
    if format == "markdown":
        lines: list[Sequence[str]] = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
        return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    head, *body = (" & ".join(map(_escape_latex, row)) + r" \\" for row in [columns, *rows])
    begin = rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])


def check_format(name: str) -> None:
    """Raises DpotoolError, naming the nearest, for a format that is not known."""
    if name not in FORMATS:
        raise DpotoolError(f"unknown format {name!r}", where="--format", remedy=suggest_nearest(name, FORMATS))


def _escape_latex(text: str) -> str:
    return "".join(_LATEX_SIGNS.get(sign, sign) for sign in text)


def _interval(found: Tested | None, digits: int, scale: float = 1.0) -> str:
    return format_interval(read_difference(found), f"+z.{digits}f", scale)


def _brief(found: Tested | None, digits: int, scale: float = 1.0) -> str:
    """Returns "+1.23 [1.10, 1.36]": only the difference itself has a sign where it is above 0."""
    if found is None:
        return "-"
    interval = found.difference
    return f"{scale * interval.value:+z.{digits}f}{format_ends(interval, f'z.{digits}f', scale)}"


def _say_kind(verdict: Verdict | None) -> str:
    return "-" if verdict is None else verdict.word


def _number(value: float, digits: int, scale: float = 1.0) -> str:
    return "-" if math.isnan(value) else f"{scale * value:.{digits}f}"

"""Everything known about several scored runs: differences, verdicts, recommendation, and the forecast of theory.

`compare` and `sweep` print it, and `report` makes its pages from it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpotool.compare.blends import say_deviations, say_how_to_save
from dpotool.compare.compared_table import describe_differences
from dpotool.compare.control_checks import check_controls
from dpotool.compare.controls import Controls
from dpotool.compare.differences import Comparison, compare_runs
from dpotool.compare.eligibility import Rule
from dpotool.compare.recommendation import TAKE, Recommendation, recommend
from dpotool.compare.runs_table import expand_sweeps, open_runs
from dpotool.compare.scored_run import ScoredRun
from dpotool.compare.seeds import PooledSetting, pool_seeds
from dpotool.compare.theory_check import check_theory, explain_unchecked, find_theory, select_forecast
from dpotool.compare.verdict import MISSING, Verdict, find_missing, judge_displacement
from dpotool.compare.win_rates import JudgedRun, describe_judged, read_judged, relate_displacement
from dpotool.errors import DpotoolError
from dpotool.runs.about import read_metadata
from dpotool.runs.folder import RunFolder
from dpotool.runs.summaries import read_summary


@dataclass(frozen=True, slots=True)
class Findings:
    """A comparison with what follows from it."""

    comparison: Comparison
    folders: list[RunFolder]
    """All run folders named, with those of sweeps and of runs without scores."""
    verdicts: dict[str, Verdict | None]
    """label -> verdict; None where something is missing for one (`find_missing`)."""
    sentences: list[str]
    recommendation: Recommendation | None
    theory: dict[str, Any] | None
    """Prediction beside measurement (`check_theory`)."""
    theory_table: Path | None
    """The theory table that is a forecast of any of these runs, whether or not there are measurements to compare."""
    no_theory: str | None
    """Why `theory` is None, as a clause."""
    seeds: list[PooledSetting]
    """Settings trained with several seeds, pooled (`pool_seeds`)."""
    controls: Controls
    """The baseline scaled back and stopped early, and every run beside them; empty where none were scored."""
    judged: list[JudgedRun]
    """The scored runs whose answers were judged."""
    win_rate_and_displacement: dict[str, Any] | None
    """Rank correlation of displacement and win rate over the runs (`relate_displacement`)."""

    @property
    def win_rates(self) -> dict[str, Mapping[str, float]]:
        """Label of a judged run among those compared -> its win rate, ties as half: value, ci_low, ci_high."""
        rates = {run.folder.path: run.rate for run in self.judged}
        return {run.label: rates[run.folder.path] for run in self.comparison.scored if run.folder.path in rates}

    @property
    def judged_sentences(self) -> list[str]:
        """Sentences on the win rate of each run, and on its correlation with displacement."""
        return describe_judged(self.judged, self.win_rate_and_displacement)

    @property
    def base(self) -> ScoredRun:
        """The run that the others are compared with."""
        return next(run for run in self.comparison.scored if run.label == self.comparison.baseline)

    @property
    def statement(self) -> str:
        """The verdict on the baseline, in a sentence."""
        verdict = self.verdicts[self.comparison.baseline]
        if verdict is None:
            return f"No verdict: {MISSING[self.find_missing(self.comparison.baseline)][0]}"
        return verdict.statement

    def find_missing(self, label: str) -> str:
        """Returns what a run without a verdict lacks for one, of `verdict.MISSING`."""
        [run] = [run for run in self.comparison.scored if run.label == label]
        return find_missing(run) or ""

    def say_kind(self, label: str) -> str:
        """Returns a run's verdict in a word, or what it lacks for one ("no reference")."""
        verdict = self.verdicts[label]
        return f"no {self.find_missing(label)}" if verdict is None else verdict.word

    @property
    def next_action(self) -> str:
        """What to do now: take the model at the knee, or what the baseline's verdict asks for."""
        base = self.comparison.baseline
        verdict = self.verdicts[base]
        if self.recommendation is not None and self.recommendation.kind == TAKE:
            best = self.verdicts[str(self.recommendation.recommended)]
            return _advise(self.comparison, self.recommendation, None if best is None else best.kind)
        if verdict is None:
            return MISSING[self.find_missing(base)][1]
        return verdict.next

    def to_dict(self) -> dict[str, Any]:
        """Returns the whole as one object for JSON."""
        return {
            "baseline": self.comparison.baseline,
            "models": [self._describe(run) for run in self.comparison.runs.to_dict("records")],
            "sentences": self.sentences,
            "problems": self.comparison.problems,
            "statement": self.statement,
            "recommendation": self.recommendation and self.recommendation.to_dict(),
            "theory": self.theory,
            "seeds": [each.to_dict() for each in self.seeds],
            "controls": self.controls.to_dict(),
            "next": self.next_action,
            "win_rates": {run.label: dict(run.summary) for run in self.judged},
            "win_rate_and_displacement": self.win_rate_and_displacement,
        }

    def _describe(self, run: Mapping[Hashable, Any]) -> dict[str, Any]:
        label = str(run["label"])
        verdict, difference = self.verdicts[label], self.comparison.differences.get(label)
        return {
            "label": label,
            "path": str(run["path"]),
            "lambda": run["lambda"],
            "seed": run["seed"],
            "n": int(run["n"]),
            "verdict": verdict and verdict.to_dict(),
            "differences": difference and difference.to_dict(),
        }


def _advise(comparison: Comparison, recommendation: Recommendation, kind: str | None) -> str:
    """What to do with a run that is better than the baseline; `kind` is that of its verdict."""
    [run] = [each for each in comparison.scored if each.label == recommendation.recommended]
    command = say_how_to_save(run)
    go_on = f"Save it with `{command}`" if command is not None else f"Go on with {recommendation.path}"
    if kind == "unclear":
        return f"{go_on}, and score more pairs: these do not show whether its displacement is harmful."
    if kind != "harmful":
        return f"{go_on}."
    return (
        f"{recommendation.path} is better than the baseline, but its displacement is harmful too: "
        f"{_try_smaller(comparison, run)}"
    )


def _try_smaller(comparison: Comparison, run: ScoredRun) -> str:
    """Which smaller lambda to look at: between two that were trained without training, else one more to train."""
    rows = {str(row["label"]): row for row in comparison.runs.to_dict("records")}
    own = rows[run.label]
    lambda_, seed = float(own["lambda"]), own["seed"]
    below = [row for row in rows.values() if row["lambda"] < lambda_ and row["seed"] == seed]
    if math.isnan(lambda_):
        return "`dpotool sweep` finds what a smaller lambda of DPO-Shift gives and costs."
    if not below:
        return f"train one with a lambda above 0 and below {lambda_:g}."
    nearest = max(below, key=lambda row: float(row["lambda"]))
    between = f"between lambda {nearest['lambda']:g} and {lambda_:g}"
    ends = shlex.join([str(own["path"]), str(nearest["path"])])
    return f"see what lies {between}, without training: `dpotool blend {ends}`."


def _check_theory(comparison: Comparison, table: Path | None) -> tuple[dict[str, Any] | None, str | None]:
    """The forecast compared with the measurement, or the reason why they cannot be compared."""
    if table is None:
        return None, "no theory table"
    runs = select_forecast(read_metadata(table), comparison.runs)
    summary = (read_summary(table, "theory") or {}) | {"path": str(table)}
    checked = check_theory(runs, summary)
    return checked, explain_unchecked(runs, summary) if checked is None else None


def find_out(
    paths: Sequence[str],
    *,
    baseline: str | None = None,
    data: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    rule: Rule | None = None,
) -> Findings:
    """Compares the runs that the paths stand for, judges each and names the one to take.

    Raises DpotoolError when a path is no run, no run is scored, or they were scored on different data.
    """
    folders = expand_sweeps(paths)
    scored = [folder for folder in folders if folder.list_tables("score")]
    if not scored:
        raise _no_scores(paths[0], folders)
    return conclude(
        open_runs(scored, data=data, split=split, limit=limit), folders, baseline=baseline, seed=seed, rule=rule
    )


def conclude(
    scored: Sequence[ScoredRun],
    folders: Sequence[RunFolder],
    *,
    baseline: str | None = None,
    seed: int = 0,
    rule: Rule | None = None,
) -> Findings:
    """Compares runs that are open already, as `find_out` does.

    Args:
        folders: all run folders named, with those of sweeps and of runs without scores.
        rule: what a remedy may cost.

    Raises DpotoolError when the runs were scored on different data.
    """
    comparison = compare_runs(scored, baseline=baseline, seed=seed)
    comparison.problems.extend(_name_unscored(folders))
    verdicts = {run.label: judge_displacement(run, seed=seed) for run in comparison.scored}
    seeds = pool_seeds(comparison)
    table = find_theory(folders, comparison.runs)
    theory, no_theory = _check_theory(comparison, table)
    judged = read_judged([run.folder for run in comparison.scored if run.path is not None])
    controls = check_controls(comparison, seeds, seed=seed)
    said = [controls.say(run.label) for run in comparison.scored]
    said += [controls.say(row.label, pooled=True) for row in seeds]
    return Findings(
        comparison=comparison,
        folders=list(folders),
        verdicts=verdicts,
        sentences=[*describe_differences(comparison), *say_deviations(comparison, seed=seed), *filter(None, said)],
        recommendation=recommend(comparison, seeds, rule, controls),
        theory=theory,
        theory_table=table,
        no_theory=no_theory,
        seeds=seeds,
        judged=judged,
        win_rate_and_displacement=relate_displacement(judged, comparison.runs),
        controls=controls,
    )


def _no_scores(path: str, folders: Sequence[RunFolder]) -> DpotoolError:
    is_import = all(folder.read_manifest()["kind"] == "import" for folder in folders)
    if is_import and any(folder.list_tables("imported") for folder in folders):
        remedy = "It holds imported scores of pairs: name it beside scored runs in `dpotool report`"
    elif is_import:
        remedy = (
            "It is a log that was imported: `dpotool report` and `dpotool plot trajectory` show it. For pairs run "
            "`dpotool score CHECKPOINT --reference START --data PAIRS`"
        )
    else:
        remedy = f"Run `dpotool score {path}` first"
    return DpotoolError("no scores here", where=path, remedy=remedy)


def _name_unscored(folders: Sequence[RunFolder]) -> list[str]:
    """Sentences on named runs without scores; folders of theory tables and sweeps have no scores to miss."""
    return [
        f"{folder.name} has no score table: it is not among the models compared."
        for folder in folders
        if not folder.list_tables("score") and folder.read_manifest()["kind"] in ("train", "score", "import")
    ]

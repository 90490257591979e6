"""Run folders with manifest, score table and judgments, as `train`, `score` and `judge` leave them, without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from synthetic_frames import make_score_frame

from dpotool.compare.differences import Comparison, _find_problems, adjust_differences, compare_pairs
from dpotool.compare.runs_table import METRICS
from dpotool.compare.scored_run import ScoredRun, derive_rewards
from dpotool.compare.summaries import summarize_scores
from dpotool.compare.win_rates import summarize_judgments
from dpotool.judging.judgments import Judgment, build_judgment_frame
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
from dpotool.runs.schemas import JUDGMENT_SCHEMA
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import SCORE_SCHEMA, write_table


def write_scored_run(
    path: Path,
    *,
    frame: pd.DataFrame | None = None,
    n: int = 120,
    seed: int = 1,
    displacement: float = -12.0,
    gap: float = 6.0,
    beta: float = 0.1,
    data: str = "demo",
    split: str = "test",
    kind: str = "train",
    fingerprints: dict[str, str] | None = None,
    about: dict[str, Any] | None = None,
    blend: tuple[str, str, float, float | None] | None = None,
    **config: Any,
) -> RunFolder:
    """A scored run; `config` is what its manifest says (loss, lambda_, ...).

    Args:
        blend: both models, the share of the second one, and the lambda: what makes the run a blend.
    """
    run = RunFolder(path)
    if blend is not None:
        kind, config = "blend", config | {"loss": "blend", "lambda_": blend[3]}
    manifest = collect_manifest(kind, {"seed": 42, "model": "m", **config}, data={"train": {}, "eval": {}})
    if blend is not None:
        manifest["blend"] = dict(zip(("first", "second", "weight", "lambda"), blend, strict=True))
    run.write_manifest(manifest | {"status": "finished"})
    if frame is None:
        frame = make_score_frame(n, seed=seed, displacement=displacement, gap=gap, beta=beta)
    frame = settle_margins(frame, beta)
    metadata = {"data": data, "split": split, "beta": beta, "fingerprints": fingerprints or {"data": "rows"}}
    write_table(frame, run.table_path("score", data, split), SCORE_SCHEMA, metadata | (about or {}))
    return run


def settle_margins(frame: pd.DataFrame, beta: float) -> pd.DataFrame:
    """The frame with rewards of its log-likelihoods, and where its margins are others, rejected ones that give them."""
    known = derive_rewards(frame, beta)
    frame = frame.assign(chosen_rewards=known["chosen_rewards"], rejected_rewards=known["rejected_rewards"])
    is_off = (known["reward_margins"] - frame["reward_margins"]).abs() > 1e-9
    if is_off.any():
        off = frame[is_off]
        rejected = off["ref_rejected_logps"] + (off["chosen_rewards"] - off["reward_margins"]) / beta
        excess = rejected.clip(lower=0.0)
        frame.loc[is_off, "rejected_logps"] = rejected - excess
        frame.loc[is_off, "ref_rejected_logps"] -= excess
        frame.loc[is_off, "rejected_rewards"] = off["chosen_rewards"] - off["reward_margins"]
    return frame.drop(columns=["chosen_displacement", "rejected_displacement"], errors="ignore")


def write_judgments(run: RunFolder, label: str, verdicts: Sequence[str], judge: str = "grammar", **more: Any) -> None:
    """Judgments of a run's answers against DPO's to the questions "0", "1", ...; `more` goes into the summary."""
    rows = [
        Judgment(str(n), 0, "apart", "judged", verdict, model_length=9, baseline_length=9)
        for n, verdict in enumerate(verdicts)
    ]
    frame = build_judgment_frame(rows)
    about = {"label": label, "baseline": "DPO", "judge": judge, "caveat": "exact", "is_proxy": False, **more}
    path = run.table_path("judgment", f"{label}-test", "vs", "DPO", judge)
    write_table(frame, path, JUDGMENT_SCHEMA, about)
    write_summary(path, about | summarize_judgments(frame))


def compare_frames(frames: dict[str, pd.DataFrame], *, seed: int = 0, n_resamples: int = 500) -> Comparison:
    """As `compare_runs` of runs that lie nowhere, with few resamples; the first is the baseline."""
    scored = [
        ScoredRun(frame, label, manifest={"config": {"loss": label}, "seed": 1}) for label, frame in frames.items()
    ]
    base, rows = scored[0], []
    for run in scored:
        summary = summarize_scores(run, n_resamples=n_resamples)
        row: dict[str, Any] = {"label": run.label, "path": run.label, "lambda": math.nan, "seed": 1}
        for name in METRICS:
            found = summary[name] or {}
            row[name] = found.get("mean", found.get("value", math.nan))
            row |= {f"{name}_{end}": found.get(f"ci_{end}", math.nan) for end in ("low", "high")}
        rows.append(row)
    differences = adjust_differences({run.label: compare_pairs(run, base, n_resamples, seed) for run in scored[1:]})
    return Comparison(pd.DataFrame(rows), scored, base.label, differences, _find_problems(scored, base, differences))

"""Runs whose changes and margins are as a test says, and a DPO run with both of its controls, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scored_runs import write_scored_run
from synthetic_frames import make_score_frame

from dpotool.runs.folder import RunFolder

N = 300


def make_frame(chosen: Any, margin: Any) -> pd.DataFrame:
    """Pairs whose chosen answer changed by `chosen` nats, and whose log-ratios differ by `margin`."""
    frame = make_score_frame(N)
    frame["chosen_logps"] = frame["ref_chosen_logps"] + chosen
    frame["rejected_logps"] = frame["ref_rejected_logps"] + (chosen - margin)
    frame["reward_margins"] = 0.1 * np.asarray(margin)
    return frame


def draw(seed: int, chosen: float, margin: float) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(0).normal(0, 0.8, N)
    return make_frame(chosen + shared + rng.normal(0, 0.2, N), margin + shared + rng.normal(0, 0.2, N))


def write_dpo_with_controls(path: Path) -> RunFolder:
    """A DPO run with both controls, and one of other pairs that is none."""
    run = write_scored_run(path, frame=draw(1, -4.0, 4.0), loss="dpo")
    run.metrics_path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (10, 40)))
    for weight, change in ((0.6, -1.0), (0.8, -2.2)):
        point = run.path / "controls" / f"blend-weight-{weight}"
        write_scored_run(point, frame=draw(2, change, 4 * weight), blend=("m", str(run.path), weight, None))
    write_scored_run(run.path / "checkpoint-10", kind="score", frame=draw(3, -5.0, 2.0))
    write_scored_run(run.path / "checkpoint-20", kind="score", frame=draw(3, -5.0, 1.0), data="other")
    return run

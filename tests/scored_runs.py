"""Run folders with a manifest and a score table, as `dpotool train` and `score` leave them, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from synthetic_frames import make_score_frame

from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
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
    **config: Any,
) -> RunFolder:
    """A scored run; `config` is what its manifest says (loss, lambda_, ...)."""
    run = RunFolder(path)
    manifest = collect_manifest(kind, {"seed": 42, "model": "m", **config}, data={"train": {}, "eval": {}})
    run.write_manifest(manifest | {"status": "finished"})
    if frame is None:
        frame = make_score_frame(n, seed=seed, displacement=displacement, gap=gap, beta=beta)
    metadata = {"data": data, "split": split, "beta": beta, "fingerprints": fingerprints or {"data": "rows"}}
    write_table(frame, run.table_path("score", data, split), SCORE_SCHEMA, metadata | (about or {}))
    return run

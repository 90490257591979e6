"""`import dpotool`: light, documented, and the same numbers as the command line."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import save_tiny_model, write_pairs

import dpotool

ROOT = Path(__file__).parents[1]


def test_importing_is_light() -> None:
    code = (
        "import sys, dpotool; print([n for n in ('torch', 'transformers', 'pandas', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_stable_name_is_there_and_described() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for name in dpotool.__all__:
        assert inspect.getdoc(getattr(dpotool, name)), name
        assert f"`{name}" in page, name
    assert set(re.findall(r"dpotool\.(\w+)\(", page)) <= set(dpotool.__all__)


def test_pairs_come_as_a_frame() -> None:
    frame = dpotool.load_pairs(limit=5)
    assert frame.columns.tolist() == ["pair_id", "prompt", "chosen", "rejected", "score_chosen", "score_rejected"]
    assert frame["pair_id"].tolist() == [0, 1, 2, 3, 4]


def test_loss_by_hand() -> None:
    """At the reference every log-ratio is 0: DPO costs log 2 whatever beta, with gradients -beta / 2 and beta / 2."""
    policy = [torch.tensor([-3.0, -5.0], requires_grad=True), torch.tensor([-4.0, -6.0], requires_grad=True)]
    compute = dpotool.loss("dpo", beta=0.2)
    losses = compute(
        policy_chosen_logps=policy[0],
        policy_rejected_logps=policy[1],
        reference_chosen_logps=policy[0].detach(),
        reference_rejected_logps=policy[1].detach(),
    )
    np.testing.assert_allclose(losses.detach(), np.log(2), rtol=1e-6)
    losses.sum().backward()
    assert policy[0].grad is not None and policy[1].grad is not None
    np.testing.assert_allclose(policy[0].grad, -0.1)
    np.testing.assert_allclose(policy[1].grad, 0.1)
    with pytest.raises(dpotool.DpotoolError, match="gamma"):
        dpotool.loss("dpo", gamma=1.0)


def test_from_training_to_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = save_tiny_model(tmp_path / "tiny"), write_pairs(tmp_path / "pairs.jsonl", 24)
    monkeypatch.chdir(tmp_path)
    shared = {"model": str(model), "data": str(data), "test_fraction": 0.5, "max_steps": 1, "batch_size": 4}
    runs = [str(tmp_path / name) for name in ("dpo", "shift")]
    dpotool.train(**shared, output=runs[0])
    dpotool.train(**shared, loss="shift", lambda_=0.5, output=runs[1])
    scores = dpotool.score(*runs)
    sizes = scores.groupby("model").size().tolist()
    assert len(sizes) == 2 and sizes[0] == sizes[1] > 5
    table = next(Path(runs[0]).glob("scores/*.parquet"))
    pd.testing.assert_series_equal(
        scores.loc[scores["model"] == "dpo", "chosen_displacement"],
        pd.read_parquet(table)["chosen_displacement"],
    )
    assert dpotool.open_scores(str(table)).n == sizes[0]
    findings = dpotool.compare_runs(*runs)
    assert findings.comparison.baseline == "DPO"
    found = dpotool.verdict(runs[0])
    assert found is not None and found["statement"]
    assert isinstance(dpotool.plot("quadrants", *runs), matplotlib.figure.Figure)
    products = dpotool.gradient_products(str(model), data=str(data), limit=6, output=str(tmp_path / "theory"))
    assert products["chosen_grad_sq_norm"].gt(0).all() and len(products) == 6
    assert dpotool.diagnose(runs[0]).frame["chosen_displacement"].notna().all()
    page = dpotool.write_report(*runs, output=str(tmp_path / "page.html"))
    text = page.path.read_text(encoding="utf-8")
    assert text.startswith("<!") and "The texts cannot be shown" not in text

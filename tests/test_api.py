"""`import dpotool`: light, documented, and the same numbers as the command line."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import save_tiny_model, write_pairs

import dpotool
from dpotool.losses import registry as losses
from dpotool.measures import registry as measures
from dpotool.plots import registry as plots
from dpotool.plugins import register_installed

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
    moved = dpotool.predict(runs[1], limit=4)
    assert len(moved.frame) == 4 and moved.summary["n"] == 4
    [half] = dpotool.blend(*runs, weight="0.5", output=str(tmp_path / "half")).scores
    assert half.summary["n"] == sizes[0]
    page = dpotool.write_report(*runs, output=str(tmp_path / "page.html"))
    text = page.path.read_text(encoding="utf-8")
    assert text.startswith("<!") and "The texts cannot be shown" not in text


def test_a_sweep_from_python(tmp_path: Path) -> None:
    model, data = save_tiny_model(tmp_path / "tiny"), write_pairs(tmp_path / "pairs.jsonl", 12)
    swept = dpotool.run_sweep(
        model=str(model), data=str(data), test_fraction=0.5, max_steps=1, batch_size=2, lambdas="0.5,1.0",
        controls=False, output=str(tmp_path / "sweep"),
    )  # fmt: skip
    assert swept.table["lambda"].tolist() == [1.0, 0.5] and not swept.failures


def test_answers_are_made_and_judged_from_python(tmp_path: Path) -> None:
    """Every question has an outcome, by the likeness of each answer to the chosen one."""
    model, data = save_tiny_model(tmp_path / "tiny"), write_pairs(tmp_path / "pairs.jsonl", 6)
    made = [
        dpotool.generate(str(model), data=str(data), max_new_tokens=4, temperature=heat, output=str(tmp_path / name))[0]
        for name, heat in (("cold", 0.0), ("hot", 2.0))
    ]
    assert [len(each.answers) for each in made] == [6, 6]
    [judged] = dpotool.judge(*(str(tmp_path / name) for name in ("cold", "hot")), judge="chrf")
    assert judged.summary["wins"] + judged.summary["ties"] + judged.summary["losses"] == 6
    assert set(judged.frame["question_id"]) == {answer.question.question_id for answer in made[0].answers}


def test_packages_add_losses_measures_and_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry point in each group, as an installed package has them; one that is broken is an error that names it."""
    spec = dpotool.LossSpec("far", lambda **_: None, "Far.", "f", "f", "this test", needs=frozenset())
    measure = dpotool.Measure(name="none", summary="None.", needs="logps", price="none", columns=(), compute=dict)
    kind = dpotool.PlotKind("blank", 999, "scores", "nothing", "Nothing.", lambda scene: scene)
    groups = {"dpotool.losses": spec, "dpotool.measures": measure, "dpotool.plots": kind}
    monkeypatch.setattr(
        "importlib.metadata.entry_points",
        lambda group: [SimpleNamespace(name="x", dist=None, load=lambda: groups[group])],
    )
    places = [(losses, "LOSSES", losses.find_losses), (measures, "MEASURES", measures.find_measures)]
    for module, name, find in [*places, (plots, "PLOTS", plots.find_plots)]:
        register_installed.cache_clear()
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
        assert groups[module.ENTRY_POINTS].name in find()
        register_installed.cache_clear()
        with pytest.raises(dpotool.DpotoolError, match=f"{module.ENTRY_POINTS}: the entry point 'x' .* already"):
            find()
    register_installed.cache_clear()

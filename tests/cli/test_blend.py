"""`dpotool blend`: rows as of a trained run, exact ends, a checkpoint for any tool, and refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from shell_scripts import call_dpotool
from tiny_models import build_byte_tokenizer, save_tiny_model
from training_helpers import read_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpotool.runs.folder import RunFolder
from dpotool.runs.tables import read_table

LOGPS = ["chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps"]


@pytest.fixture(scope="module")
def runs(model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two steps of DPO, of DPO-Shift from the same start, and of DPO-Shift with another seed; the first two scored."""
    folder = tmp_path_factory.mktemp("runs")
    told = ["--data", pairs, "--test-fraction", "0.5", "--max-steps", "2", "--learning-rate", "0.01", "--device", "cpu"]
    losses = {
        "dpo": ["--loss", "dpo"],
        "half": ["--loss", "shift", "--lambda", "0.5"],
        "seed": ["--loss", "shift", "--lambda", "0.5", "--seed", "7", "--split-seed", "42"],
    }
    for name, loss in losses.items():
        words = ["train", "--model", model, *loss, *told, "--output", folder / name]
        outcome = call_dpotool([str(word) for word in words])
        assert outcome.code == 0, outcome.err
    for name in ("dpo", "half"):
        assert call_dpotool(["score", str(folder / name)]).code == 0
    return {name: folder / name for name in losses} | {"start": model}


def read_scores(folder: Path) -> pd.DataFrame:
    (table,) = RunFolder(folder).list_tables("score")
    return read_table(table).set_index("pair_id")


def test_points_by_lambda_are_scored_as_runs_are(dpotool: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    words = ("blend", runs["dpo"], runs["half"], "--at", "1,0.75,0.5", "--output", tmp_path / "out", "--json")
    found = json.loads(dpotool(*words).out)["results"]
    assert [(each["lambda"], each["weight"]) for each in found] == [(1, 0), (0.75, 0.5), (0.5, 1)]
    for name, end in {"blend-1": "dpo", "blend-0.5": "half"}.items():
        pd.testing.assert_frame_equal(read_scores(tmp_path / "out" / name), read_scores(runs[end]))
    middle, ends = read_scores(tmp_path / "out" / "blend-0.75"), [read_scores(runs[name]) for name in ("dpo", "half")]
    assert not np.allclose(middle["chosen_logps"], ends[0]["chosen_logps"], rtol=1e-4)
    np.testing.assert_array_equal(middle["ref_chosen_logps"], ends[0]["ref_chosen_logps"])
    again = dpotool(*words[:-1])
    assert again.code == 0
    said = " ".join(again.out.split())
    assert "3 blends of" in said and "nothing was trained" in said
    order = [again.out.index(text) for text in ("1 trained", "1 blended", "0.75 blended", "0.5 blended", "0.5 trained")]
    assert order == sorted(order)
    [title] = [line for line in again.out.splitlines() if "95 % intervals" in line]
    assert all(len(line) <= 80 for line in again.out[again.out.index(title) :].split("scores:")[0].splitlines())
    compared = dpotool("compare", runs["dpo"], runs["half"], *sorted((tmp_path / "out").iterdir()))
    assert compared.code == 0, compared.err
    assert "blend λ=0.75" in compared.out


def test_a_saved_blend_is_a_checkpoint_for_any_tool(dpotool: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = dpotool("blend", runs["dpo"], runs["half"], "--at", "0.9", "--write", out)
    assert outcome.code == 0, outcome.err
    assert f"checkpoint: {out}" in outcome.out
    a, b, saved = (read_weights(folder) for folder in (runs["dpo"], runs["half"], out))
    for name, value in saved.items():
        expected = 0.8 * a[name].double() + 0.2 * b[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=2e-7, atol=1e-9)
    AutoModelForCausalLM.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out).chat_template == build_byte_tokenizer().chat_template
    kept = {path.name for path in out.iterdir()}
    assert {"run.yaml", "scores", "model.safetensors", "config.json", "tokenizer.json"} <= kept
    assert not any(name.startswith(".") for name in kept)
    before = read_scores(out)
    assert dpotool("score", out).code == 0  # knows its reference and its pairs, as a run does
    pd.testing.assert_frame_equal(read_scores(out), before)
    again = dpotool("blend", runs["dpo"], runs["half"], "--at", "0.9", "--write", out)
    assert again.code == 1 and "not empty" in again.err


def test_dpo_is_scaled_back_to_its_start(dpotool: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    words = ("blend", runs["start"], runs["dpo"], "--weight", "0,0.5,1", "--output", tmp_path / "out")
    outcome = dpotool(*words)
    assert outcome.code == 0, outcome.err
    assert "warning" not in outcome.err, "the start of a run is known to be its start"
    nothing, half, whole = (read_scores(tmp_path / "out" / f"blend-weight-{w}") for w in ("0", "0.5", "1"))
    assert (nothing["chosen_displacement"] == 0).all()
    assert (whole[LOGPS] == read_scores(runs["dpo"])[LOGPS]).all(axis=None)
    assert 0 < half["reward_margins"].abs().mean() < whole["reward_margins"].abs().mean()


def test_what_cannot_be_blended_is_refused_in_a_line(dpotool: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    other_tokens = save_tiny_model(tmp_path / "tokens", tokenizer=build_byte_tokenizer(chat_template="{{ messages }}"))
    cases: dict[str, tuple[object, ...]] = {
        "also differ in seed": (runs["dpo"], runs["seed"], "--at", "0.75"),
        "have no lambdas to go by": (runs["start"], runs["dpo"], "--at", "0.75"),
        "numbers from 0.5 to 1": (runs["dpo"], runs["half"], "--at", "0.4"),
        "numbers from 0 to 1": (runs["start"], runs["dpo"], "--weight", "1.5"),
        "is named twice": (runs["dpo"], runs["dpo"]),
        "saves one point": (runs["dpo"], runs["half"], "--at", "0.6,0.7", "--write", tmp_path / "w"),
        "chat template": (runs["start"], other_tokens, "--reference", runs["start"], "--data", pairs_of(runs)),
        "Give one of the two": (runs["dpo"], runs["half"], "--at", "0.6", "--weight", "0.5"),
    }
    for words, call in cases.items():
        outcome = dpotool("blend", *call, "--output", tmp_path / "x")
        assert outcome.code == 1, words
        assert words in outcome.err and outcome.err.count("error:") == 1, outcome.err
    assert not (tmp_path / "x").exists() and not (tmp_path / "w").exists()


def pairs_of(runs: dict[str, Path]) -> str:
    return str(RunFolder(runs["dpo"]).read_manifest()["config"]["data"])


def test_the_start_may_be_a_run_too(dpotool: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    """SFT, then DPO from it: that SFT began elsewhere, on other pairs, does not keep DPO from being scaled back."""
    told = ("--test-fraction", "0.5", "--max-steps", "2", "--device", "cpu")
    sft = ("train", "--loss", "sft", "--model", runs["start"], "--data", pairs_of(runs), "--limit", "4")
    assert dpotool(*sft, *told, "--output", tmp_path / "sft").code == 0
    dpo = ("train", "--loss", "dpo", "--model", tmp_path / "sft", "--data", pairs_of(runs))
    assert dpotool(*dpo, *told, "--output", tmp_path / "dpo").code == 0
    words = ("blend", tmp_path / "sft", tmp_path / "dpo", "--weight", "0", "--output", tmp_path / "out")
    outcome = dpotool(*words)
    assert outcome.code == 0, outcome.err
    scores = read_scores(tmp_path / "out" / "blend-weight-0")
    np.testing.assert_array_equal(scores["chosen_logps"], scores["ref_chosen_logps"])
    assert "nothing says" not in outcome.err


def test_runs_of_other_starts_are_refused(dpotool: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    start = save_tiny_model(tmp_path / "new", seed=3)
    told = ("--data", pairs_of(runs), "--test-fraction", "0.5", "--max-steps", "1", "--device", "cpu")
    assert dpotool("train", "--model", start, "--loss", "dpo", *told, "--output", tmp_path / "run").code == 0
    outcome = dpotool("blend", runs["half"], tmp_path / "run", "--output", tmp_path / "x")
    assert outcome.code == 1 and "began at other weights" in outcome.err

"""`score RUN --checkpoints all`: a row a checkpoint, and the sentence that says when displacement began."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpotool.errors import DpotoolError
from dpotool.measures.checkpoints import describe_trajectory, list_checkpoints


def test_every_checkpoint_is_scored_oldest_first(dpotool: Any, model: Path, pairs: Path) -> None:
    settings = ["--model", model, "--data", pairs, "--test-fraction", 0.5, "--learning-rate", 0.1, "--batch-size", 4]
    trained = dpotool("train", *settings, "--max-steps", 3, "--save-steps", 1, "--device", "cpu", "--output", "run")
    assert trained.code == 0, trained.err
    scored = dpotool("score", "run", "--checkpoints", "all", "--device", "cpu", "--no-noise-floor", "--json")
    assert scored.code == 0, scored.err
    found = json.loads(scored.out)
    models = [result["model"] for result in found["results"]]
    assert models == ["run/checkpoint-1", "run/checkpoint-2", "run/checkpoint-3", "run"]
    changes = [result["chosen_displacement"]["mean"] for result in found["results"]]
    assert len(set(changes)) == 3 and changes[2] == changes[3], "the last checkpoint is the run itself"
    for result in found["results"]:
        assert Path(result["path"]).is_file()
    one = dpotool("score", "run", "--checkpoints", "3,1", "--device", "cpu", "--no-noise-floor")
    assert one.code == 0 and one.out.index("step 3") < one.out.index("step 1"), "as asked for"
    assert "accuracy, %" in one.out and f"{100 * found['results'][0]['reward_accuracy']['value']:.1f} [" in one.out
    none = dpotool("score", "run", "--checkpoints", "2,7", "--device", "cpu")
    assert none.code == 1 and "has no checkpoint of step 7" in none.err and "all, or some of 1, 2, 3" in none.err


def test_a_folder_of_checkpoints_alone_is_scored_one_by_one(dpotool: Any, model: Path, pairs: Path) -> None:
    """As a training that was not saved at its end leaves it; a label is that of all of them."""
    for step in (20, 100):
        shutil.copytree(model, f"sft/checkpoint-{step}")
    told = ["--data", pairs, "--reference", model, "--label", "mine", "--device", "cpu", "--no-noise-floor", "--json"]
    scored = dpotool("score", "sft", *told)
    assert scored.code == 0, scored.err
    assert "the folder holds checkpoints but no final model" in scored.err
    found = json.loads(scored.out)["results"]
    assert [result["model"] for result in found] == ["sft/checkpoint-20", "sft/checkpoint-100"]
    assert [result["label"] for result in found] == ["mine/checkpoint-20", "mine/checkpoint-100"]
    assert len({result["path"] for result in found}) == 2


def test_the_sentence_names_the_first_certain_step() -> None:
    def summary(model: str, displaced: str, kind: str) -> dict[str, Any]:
        return {"model": model, "verdict": {"kind": kind, "criteria": {"displaced": displaced}}}

    early = [summary("r/checkpoint-10", "open", "none"), summary("r/checkpoint-20", "met", "unclear")]
    assert describe_trajectory(early[:1]) == (
        "The probability of the chosen answers is not shown to have fallen at any of 1 checkpoint."
    )
    assert describe_trajectory(early) == (
        "The probability of the chosen answers is first shown to have fallen at step 20. The fall is not shown "
        "to be harmful at any of 2 checkpoints."
    )
    assert describe_trajectory([*early, summary("r", "met", "harmful")]) == (
        "The probability of the chosen answers is first shown to have fallen at step 20. The fall is first harmful "
        "at the end."
    )
    assert describe_trajectory([{"model": "r", "verdict": None}]) is None


def test_a_run_without_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-old").mkdir()
    with pytest.raises(DpotoolError, match="holds no checkpoints"):
        list_checkpoints(str(tmp_path), "all")

"""A pass over mean gradients that was cut off goes on where it was, to the same sums bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pairs
from model_families import build_family

from dpotool.gradients import unfinished, weighted_gradients
from dpotool.gradients.unfinished import UnfinishedPasses
from dpotool.gradients.weighted_gradients import Gradient, compute_mean_gradients
from dpotool.progress import Progress

PAIRS = make_pairs(6)


class Listener(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    warn = note


def compute(
    folder: Path | None, *, weights_seed: int = 0, batch_tokens: int = 20
) -> tuple[Gradient, Gradient, Listener]:
    model, listener = build_family("llama", dtype=torch.float32, seed=weights_seed), Listener()
    keeper = None if folder is None else UnfinishedPasses(folder, str(weights_seed), listener)
    chosen, rejected = compute_mean_gradients(
        model, PAIRS, dict(model.named_parameters()), batch_tokens=batch_tokens, unfinished=keeper
    )
    return chosen, rejected, listener


@pytest.fixture
def cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a run leaves that was killed in its second pass, when it had saved after every batch."""
    run, calls = weighted_gradients._add_batch, []

    def fail(*args: object, **kwargs: object) -> None:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        run(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(unfinished, "SECONDS_BETWEEN_SAVES", -1.0)
        patch.setattr(unfinished, "_BYTES_PER_SECOND", np.inf)
        patch.setattr(unfinished, "LARGEST_SHARE", np.inf)
        patch.setattr(weighted_gradients, "_add_batch", fail)
        with pytest.raises(KeyboardInterrupt):
            compute(tmp_path)
    return tmp_path


def test_a_resumed_pass_ends_as_an_uninterrupted_one(cut_off: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, run = [], weighted_gradients._add_batch
    monkeypatch.setattr(weighted_gradients, "_add_batch", lambda *args, **kw: (calls.append(1), run(*args, **kw)))
    expected = compute(None)
    n_batches, _ = len(calls), calls.clear()
    *got, listener = compute(cut_off)
    assert n_batches > 9 and len(calls) == n_batches - 8
    assert [line.partition(":")[0] for line in listener.said] == ["mean gradients, pass 1", "mean gradients, pass 2"]
    for ours, theirs in zip(got, expected[:2], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("changes", [{"weights_seed": 1}, {"batch_tokens": 40}], ids=["weights", "settings"])
def test_a_state_of_other_work_is_refused_in_a_line(cut_off: Path, changes: dict[str, int]) -> None:
    expected = compute(None, **changes)
    *got, listener = compute(cut_off, **changes)
    assert "of other weights, pairs or settings, so these gradients begin anew" in listener.said[0]
    for ours, theirs in zip(got, expected[:2], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_damaged_state_begins_anew(cut_off: Path) -> None:
    expected = compute(None)
    for path in cut_off.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-7])
    *got, listener = compute(cut_off)
    assert all("damaged" in line for line in listener.said) and len(listener.said) == 2
    assert all(torch.equal(got[1][name], theirs) for name, theirs in expected[1].items())


def test_nothing_is_saved_that_costs_more_than_it_is_worth(tmp_path: Path) -> None:
    """A pass of less than a minute leaves no file, and one that is finished leaves no folder."""
    compute(tmp_path / "states")
    assert not (tmp_path / "states").exists()

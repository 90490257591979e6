"""Estimates from a few batches: which ones are run, and what follows from their times."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import make_pairs
from model_families import build_family

from dpotool.estimates import estimate as cost
from dpotool.estimates.estimate import (
    count_tokens,
    cut_strata,
    estimate_scoring,
    measure_peak_bytes,
    reset_peak_bytes,
    time_strata,
)
from dpotool.likelihood.scorer import Scorer


class Clock:
    """A clock that only work moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(cost.time, "perf_counter", lambda: self.now)


def test_strata_have_equal_work_and_hold_every_item_once() -> None:
    assert cut_strata([4, 4, 2, 2, 2, 2], 2) == [[0, 1], [2, 3, 4, 5]]
    assert cut_strata([7], 5) == [[0]]
    strata = cut_strata(list(range(100, 0, -1)), 5)
    assert [number for stratum in strata for number in stratum] == list(range(100))
    assert len(strata) == 5


def test_time_proportional_to_work_is_found_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight items of 10 and eight of 5 at 2 s a unit are 240 s, from five of them and one to warm up."""
    clock, ran = Clock(monkeypatch), []
    work = [10.0] * 8 + [5.0] * 8
    monkeypatch.setattr(cost, "PROBE_SECONDS", 1e9)

    def run(number: int) -> None:
        ran.append(number)
        clock.now += 2 * work[number]

    assert time_strata(work, run) == (pytest.approx(240.0), 5)
    assert ran[0] == 15, "the smallest warms up"
    assert ran[1] == 0, "the largest comes first: its memory is the peak"


def test_a_slow_probe_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def run(number: int) -> None:
        clock.now += cost.PROBE_SECONDS + 1

    seconds, n_probed = time_strata([1.0] * 10, run)
    assert n_probed == 1
    assert seconds == pytest.approx(10 * (cost.PROBE_SECONDS + 1))
    assert time_strata([], run) == (0.0, 0)


@pytest.mark.parametrize(("layout", "n_padded", "n_batches"), [("paired", 100, 3), ("shared", 70, 2)])
def test_scoring_is_counted_as_it_would_run(layout: str, n_padded: int, n_batches: int) -> None:
    """Ten pairs of one shape: 3 prompt, 2 and 2 tokens. In two rows 10 tokens a pair, four pairs a batch of 40; in one
    row 7 tokens, five pairs a batch."""
    pairs = [make_pairs(1)[0].__class__(n, (1, 5, 6), (7, 2), (8, 2)) for n in range(10)]
    assert count_tokens(pairs) == 100
    found = estimate_scoring(Scorer(build_family("llama"), batch_tokens=40, layout=layout), pairs)
    assert (found.n_tokens, found.n_padded_tokens, found.batch_tokens) == (100, n_padded, 40)
    assert (found.n_batches, found.n_probed) == (n_batches, n_batches)
    assert found.seconds > 0


def test_peak_memory_is_at_least_what_is_held() -> None:
    held = torch.ones(2**23)  # 32 MiB
    assert measure_peak_bytes(torch.device("cpu")) > held.numel() * 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a process's peak")
def test_a_peak_can_begin_anew() -> None:
    device = torch.device("cpu")
    held = torch.ones(2**26)  # 256 MiB
    before = measure_peak_bytes(device)
    del held
    assert reset_peak_bytes(device)
    assert measure_peak_bytes(device) < before - 2**27

"""The token budget: what auto chooses, and batches that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pairs
from model_families import build_family

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.likelihood import budget, pair_logps
from dpotool.likelihood.budget import estimate_bytes_per_token, measure_free_memory, resolve_batch_tokens
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.likelihood.scorer import Scorer
from dpotool.settings.shared import parse_batch_tokens

MODEL = build_family("llama")
PAIRS = make_pairs(12)
EXPECTED = compute_pair_logps(MODEL, PAIRS, batch_tokens=1)
CPU_REFUSAL = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA_REFUSAL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[int]]]:
    """Lets no batch of more than so many pairs fit; the list it returns holds the pair ids of those that did."""

    def install(most: int, error: Exception = CPU_REFUSAL) -> list[list[int]]:
        real, ran = pair_logps._score_batch, []

        def score(model: Any, pairs: Sequence[TokenizedPair], *rest: Any) -> Any:
            if len(pairs) > most:
                raise error
            ran.append([pair.pair_id for pair in pairs])
            return real(model, pairs, *rest)

        monkeypatch.setattr(pair_logps, "_score_batch", score)
        return ran

    return install


@pytest.mark.parametrize("error", [CPU_REFUSAL, CUDA_REFUSAL], ids=["cpu", "cuda"])
@pytest.mark.parametrize("batch_tokens", ["auto", 10_000])
def test_a_batch_that_does_not_fit_is_halved(
    refuse: Callable[..., list[list[int]]], error: Exception, batch_tokens: str | int, caplog: pytest.LogCaptureFixture
) -> None:
    """All twelve pairs are one batch at first; three fit. Each pair runs once, and the values are as without."""
    ran = refuse(3, error)
    advanced: list[int] = []
    got = compute_pair_logps(MODEL, PAIRS, batch_tokens=batch_tokens, on_progress=advanced.append)
    assert sorted(pair_id for batch in ran for pair_id in batch) == list(range(12))
    assert sum(advanced) == 12
    np.testing.assert_allclose(got.chosen, EXPECTED.chosen, rtol=1e-12)
    np.testing.assert_allclose(got.rejected, EXPECTED.rejected, rtol=1e-12)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "out of memory with a batch of 12 pairs: going on with half as many"
    assert len(said) == len(set(said))


def test_auto_plans_what_remains_anew_and_a_fixed_budget_is_kept(refuse: Callable[..., list[list[int]]]) -> None:
    """Six pairs of 10 tokens, 20 with both rows. Of a budget of 80 only the first batch fails here."""
    pairs = [TokenizedPair(n, (1, 5, 6, 7, 8), (5, 6, 7, 8, 2), (9, 10, 11, 12, 2)) for n in range(8)]
    batches, failed, ran = [[0, 1, 2, 3], [4, 5, 6, 7]], [], []

    def run(batch: Sequence[int]) -> int:
        if not failed:
            failed.append(batch)
            raise CPU_REFUSAL
        ran.append(list(batch))
        return len(batch)

    assert [n for _, n in budget.run_within_memory(pairs, batches, run)] == [2, 2, 4]
    assert ran == [[0, 1], [2, 3], [4, 5, 6, 7]]
    failed.clear()
    ran.clear()
    planned: list[tuple[list[int], int]] = []

    def plan(places: Sequence[int], tokens: int) -> list[list[int]]:
        planned.append((list(places), tokens))
        return [list(places[:2]), list(places[2:4]), list(places[4:])]

    assert [n for _, n in budget.run_within_memory(pairs, batches, run, plan=plan)] == [2, 2, 4]
    assert planned == [(list(range(8)), 40)]


def test_finished_pairs_are_kept_when_one_does_not_fit_at_all(
    refuse: Callable[..., list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shortest pair comes last, and fails by itself: the others are in the store, and are not computed again."""
    pairs = sorted(PAIRS, key=lambda pair: -pair.longest)
    worst, real = pairs[-1], pair_logps._score_batch

    def score(model: Any, batch: Sequence[TokenizedPair], *rest: Any) -> Any:
        if worst in batch:
            raise CUDA_REFUSAL
        return real(model, batch, *rest)

    monkeypatch.setattr(pair_logps, "_score_batch", score)
    with pytest.raises(DpotoolError) as caught:
        Scorer(MODEL, batch_tokens=1000).score(pairs)
    lengths = f"{len(worst.prompt_ids)} prompt, {len(worst.chosen_ids)} chosen and {len(worst.rejected_ids)} rejected"
    assert str(caught.value) == (
        f"pair {worst.pair_id}: does not fit into the accelerator even by itself; got {lengths} tokens. "
        "Lower --max-length, or use --dtype bfloat16 or another --device"
    )
    monkeypatch.setattr(pair_logps, "_score_batch", real)
    assert Scorer(MODEL).score(pairs).n_stored == 11


def test_other_errors_are_not_taken_for_memory(refuse: Callable[..., list[list[int]]]) -> None:
    refuse(3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        compute_pair_logps(MODEL, PAIRS, batch_tokens=1000)


def test_a_real_refusal_of_the_cpu_allocator_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert budget.is_out_of_memory(caught.value)


def test_auto_follows_free_memory_and_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A float64 Llama, hidden 32, feed-forward 64: 8 * (8 * 32 + 4 * 64) + 8 * 32 = 4352 bytes a token."""
    config = MODEL.config
    per_token = 8 * (8 * config.hidden_size + 4 * config.intermediate_size) + 8 * config.hidden_size
    assert estimate_bytes_per_token(MODEL) == per_token
    assert estimate_bytes_per_token(MODEL, with_gradients=True) == config.num_hidden_layers * per_token
    chunk = budget.estimate_chunk_bytes(MODEL)
    monkeypatch.setattr(budget, "measure_free_memory", lambda device: 2 * (chunk + 100 * per_token))
    assert resolve_batch_tokens("auto", MODEL) == 100
    monkeypatch.setattr(budget, "measure_free_memory", lambda device: 0)
    assert resolve_batch_tokens("auto", MODEL) == 1
    monkeypatch.setattr(budget, "measure_free_memory", lambda device: 10**15)
    assert resolve_batch_tokens("auto", MODEL) == 2048
    assert resolve_batch_tokens(77, MODEL) == 77


@pytest.mark.parametrize(("width", "expected"), [(32, 16_384), (896, 16_384), (2048, 8192), (4096, 4096), (8192, 4096)])
def test_on_a_gpu_a_wide_model_is_busy_with_fewer_tokens(
    width: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "measure_free_memory", lambda device: 10**15)
    monkeypatch.setattr(budget, "MOST_TOKENS", {})
    monkeypatch.setattr(budget, "find_hidden_size", lambda model: width)
    assert resolve_batch_tokens("auto", MODEL) == expected
    assert resolve_batch_tokens("auto", MODEL, with_gradients=True) == 16_384


def test_the_process_with_the_least_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "gather_object", lambda own: [*own, 300])
    monkeypatch.setattr(budget, "measure_free_memory", lambda device: 10**15)
    assert resolve_batch_tokens("auto", MODEL) == 300
    monkeypatch.setattr(budget, "measure_free_memory", lambda device: 0)
    assert resolve_batch_tokens("auto", MODEL) == 1
    assert resolve_batch_tokens(2000, MODEL) == 2000, "a number is everybody's already"


def test_a_budget_is_a_number_or_auto() -> None:
    assert [parse_batch_tokens(value) for value in ("auto", "512", 300)] == ["auto", 512, 300]
    for wrong in ("0", "many", -4):
        with pytest.raises(DpotoolError, match=rf"--batch-tokens: is out of range; .* or auto, got {wrong}"):
            parse_batch_tokens(wrong)


def test_free_memory_is_less_than_the_machine_has() -> None:
    import psutil

    assert 0 < measure_free_memory(torch.device("cpu")) <= psutil.virtual_memory().total


def test_what_files_take_up_in_a_control_group_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit 1000, 990 in use, of which 800 were read from files and can go: 810 are left; no limit: the machine's."""
    monkeypatch.setattr(budget, "_CONTROL_GROUP", tmp_path)
    for name, text in (("max", "1000"), ("current", "990"), ("stat", "anon 150\nactive_file 40\ninactive_file 800\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert measure_free_memory(torch.device("cpu")) == 810
    (tmp_path / "memory.stat").unlink()
    assert measure_free_memory(torch.device("cpu")) == 10
    (tmp_path / "memory.max").write_text("max\n")
    assert measure_free_memory(torch.device("cpu")) > 1000


def test_a_budget_below_the_longest_pair_is_announced_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_family("llama")
    compute_pair_logps(model, PAIRS, batch_tokens="auto")
    assert caplog.text == ""
    monkeypatch.setattr(budget, "measure_free_memory", lambda device: 0)
    for _ in range(2):
        got = compute_pair_logps(model, PAIRS, batch_tokens="auto")
    np.testing.assert_allclose(got.chosen, EXPECTED.chosen, rtol=1e-12)
    longest = 2 * max(pair.longest for pair in PAIRS)
    assert [record.getMessage() for record in caplog.records] == [
        f"little memory is free: --batch-tokens auto comes to 1, and the longest pair has {longest} tokens"
    ]
    caplog.clear()
    compute_pair_logps(build_family("llama"), PAIRS, batch_tokens=1)
    assert caplog.text == "", "a number was asked for"


def test_a_plan_that_counts_a_shared_prompt_once_gets_smaller_all_the_same(
    refuse: Callable[..., list[list[int]]],
) -> None:
    """Long prompts: half of the batch's paired tokens would hold the whole batch again in shared rows, for ever."""
    pairs = [TokenizedPair(n, tuple(range(3, 43)), (5, 2), (6, 2)) for n in range(8)]
    ran = refuse(4)
    got = compute_pair_logps(MODEL, pairs, batch_tokens="auto", layout="shared")
    assert got.n_shared == 8
    assert sorted(pair_id for batch in ran for pair_id in batch) == list(range(8))

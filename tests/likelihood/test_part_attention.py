"""Attention by parts gives what the mask gives, forward and backward, and the mask is used where something differs.

torch's kernel needs a GPU (`tests/test_gpu.py`); here another one takes its place that attends to one part at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from model_families import build_family
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood import part_attention
from dpotool.likelihood.batch import collate_shared
from dpotool.likelihood.completions import compute_completion_logps
from dpotool.likelihood.part_attention import list_parts, measure_error

PAIRS = [
    TokenizedPair(0, (1, 5, 6, 9, 11), (7, 8, 2), (9, 2)),
    TokenizedPair(1, (1,), (4, 2), (3,)),
    TokenizedPair(2, (3, 4), (5, 6, 7, 2), (8, 2)),
]
CPU = torch.device("cpu")


def attend_to_each(queries: Tensor, keys: Tensor, values: Tensor, query_ends: Tensor, key_ends: Tensor) -> Tensor:
    """The slow truth: the last token of a part sees all keys of the part, the one before it one key less."""
    found = []
    of_queries, of_keys = query_ends.tolist(), key_ends.tolist()
    for place in range(len(of_queries) - 1):
        q = queries[of_queries[place] : of_queries[place + 1]].transpose(0, 1)
        k, v = (of[of_keys[place] : of_keys[place + 1]].transpose(0, 1) for of in (keys, values))
        is_seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        found.append(F.scaled_dot_product_attention(q, k, v, attn_mask=is_seen, enable_gqa=True).transpose(0, 1))
    return torch.cat(found)


class Kernel:
    """Counts its calls; a query head has key heads of its own unless `takes_groups`, as in later releases of torch."""

    def __init__(self) -> None:
        self.calls = 0
        self.takes_groups = False

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, *about: Any) -> Tensor:
        self.calls += 1
        assert self.takes_groups or queries.shape[1] == keys.shape[1] == values.shape[1]
        return attend_to_each(queries, keys, values, *about[:2])


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """A kernel for the CPU and every type; transformers' attention is put back afterwards."""
    plain = AttentionInterface()["sdpa"]
    one = Kernel()
    monkeypatch.setattr(part_attention, "is_trusted", lambda _device, _dtype: True)
    monkeypatch.setattr(part_attention, "_find_kernel", lambda: (one, one.takes_groups))
    part_attention._install.cache_clear()
    yield one
    AttentionInterface.register("sdpa", plain)
    part_attention._install.cache_clear()


def test_parts_by_hand() -> None:
    """The long pair fills a row of ten tokens; the second row has a pair of four, in places 10 to 13, and padding."""
    parts = list_parts(collate_shared(PAIRS[:2]).block_ids)
    assert parts.queries.tolist() == list(range(14))
    assert parts.query_ends.tolist() == [0, 5, 8, 10, 11, 13, 14]
    assert parts.keys.tolist() == [*range(5), *range(8), *range(5), 8, 9, 10, 10, 11, 12, 10, 13]
    assert parts.key_ends.tolist() == [0, 5, 13, 20, 21, 24, 26]
    assert (parts.longest_queries, parts.longest_keys) == (5, 8)
    assert parts.query_uses.tolist() == [*([place] for place in range(14)), *([14] for _ in range(6))]
    uses = {0: [0, 5, 13], 5: [10, 26, 26], 9: [19, 26, 26], 10: [20, 21, 24], 19: [26, 26, 26]}
    assert {place: parts.key_uses[place].tolist() for place in uses} == uses


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "mixtral", "gpt-neox"])
def test_log_probabilities_and_gradients_are_those_of_the_mask(
    family: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_family(family)
    batch = collate_shared(PAIRS)

    def differentiate() -> list[Tensor]:
        logps = compute_completion_logps(model, batch)
        logps.square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        model.zero_grad(set_to_none=True)
        return [logps.detach(), *gradients]

    got = differentiate()
    assert kernel.calls == model.config.get_text_config().num_hidden_layers
    monkeypatch.setattr(part_attention, "is_trusted", lambda _device, _dtype: False)
    calls = kernel.calls
    expected = differentiate()
    assert kernel.calls == calls
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_layers_that_are_recomputed_attend_by_parts_again(kernel: Kernel) -> None:
    model = build_family("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    compute_completion_logps(model, collate_shared(PAIRS)).sum().backward()
    assert kernel.calls >= 2 * model.config.num_hidden_layers


def test_the_check_tells_a_right_kernel_from_a_wrong_one(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure_error(CPU, torch.float32) < 1e-5
    kernel.takes_groups = True
    assert measure_error(CPU, torch.float32) < 1e-5
    assert measure_error(CPU, torch.bfloat16) < part_attention.TOLERANCE / 2

    def sees_all(queries: Tensor, keys: Tensor, values: Tensor, *_about: object) -> Tensor:
        return F.scaled_dot_product_attention(*(of.transpose(0, 1) for of in (queries, keys, values))).transpose(0, 1)

    monkeypatch.setattr(part_attention, "_find_kernel", lambda: (sees_all, False))
    assert measure_error(CPU, torch.float32) > 5 * part_attention.TOLERANCE


def test_what_the_kernel_does_not_know_goes_to_the_mask(kernel: Kernel) -> None:
    batch = collate_shared(PAIRS)
    mask = part_attention.mark_mask(batch.build_mask(torch.float32), batch.block_ids)
    states = [torch.randn(*batch.block_ids.shape[:1], 2, batch.block_ids.shape[1], 8) for _ in range(3)]
    seen: list[Tensor | None] = []

    def plain(_module: object, query: Tensor, _key: Tensor, _value: Tensor, mask: Tensor | None, **_: object) -> object:
        seen.append(mask)
        return query, None

    def attend(mask: Tensor | None = mask, **options: object) -> int:
        before = kernel.calls
        part_attention.attend(plain, torch.nn.Module(), *states, mask, **options)  # type: ignore[arg-type]
        return kernel.calls - before

    assert attend() == attend(scaling=8**-0.5, dropout=0.0, sliding_window=None) == 1 and not seen
    for options in ({"scaling": 1.0}, {"dropout": 0.1}, {"softcap": 30.0}, {"s_aux": states[0]}):
        assert attend(**options) == 0
    assert attend(mask.clone()) == attend(None) == 0
    assert len(seen) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_nothing_is_marked(dtype: torch.dtype) -> None:
    batch = collate_shared(PAIRS)
    assert not hasattr(part_attention.mark_mask(batch.build_mask(dtype), batch.block_ids), part_attention.MARK)

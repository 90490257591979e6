"""Models that cannot share a prompt are recognised by trying, and are scored in paired rows all the same."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from conftest import make_pairs
from model_families import FAMILIES, build_family
from torch import Tensor
from transformers import AttentionInterface, MambaConfig, MambaForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dpotool.likelihood import prompt_sharing
from dpotool.likelihood.completions import compute_completion_states
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.likelihood.prompt_sharing import find_row_limit

PAIRS = make_pairs(6)
CANNOT = {"gemma2", "gemma3", "mistral", "bloom"}
"""Windows of 4 or 5 tokens, and alibi."""


def build_recurrent() -> PreTrainedModel:
    """A model that carries a state from token to token: rejected would go on from chosen's last one."""
    model = build_family("llama")

    def carry(_module: Any, _inputs: Any, hidden: Tensor) -> Tensor:
        return hidden + 0.1 * torch.nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1]

    model.model.layers[0].register_forward_hook(carry)
    return model


def build_mamba() -> PreTrainedModel:
    """Knows neither masks nor positions."""
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=8)).eval()


def build_deaf() -> PreTrainedModel:
    """Attention that takes no mask and is causal whatever it is told."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    AttentionInterface.register("deaf", attend)
    model = build_family("llama")
    model.config._attn_implementation = "deaf"
    return model


def score(model: PreTrainedModel, layout: str) -> list[float]:
    scored = compute_pair_logps(model, PAIRS, layout=layout)
    return [*scored.chosen.tolist(), *scored.rejected.tolist()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_which_families_can(family: str, dtype: torch.dtype) -> None:
    limit = find_row_limit(build_family(family, dtype=dtype))
    assert limit == (0 if family in CANNOT else 128)


def build_bloom() -> PreTrainedModel:
    return build_family("bloom")


WRONG = {"recurrent": build_recurrent, "deaf": build_deaf}
"""Models that would take a shared row and compute something else."""
REFUSING = {"mamba": build_mamba, "bloom": build_bloom}


@pytest.mark.parametrize("build", [*WRONG.values(), *REFUSING.values()], ids=[*WRONG, *REFUSING])
def test_those_that_cannot_fall_back(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the check they give the numbers of paired rows; made to believe it passed, others or none."""
    expected = score(build(), "paired")
    assert score(build(), "shared") == expected
    monkeypatch.setattr(prompt_sharing, "_check_sharing", lambda _model: True)
    if build in REFUSING.values():
        with pytest.raises((RuntimeError, ValueError)):
            score(build(), "shared")
    else:
        assert score(build(), "shared") != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("build", WRONG.values(), ids=WRONG)
def test_they_are_found_out_in_every_type(build: Any, dtype: torch.dtype) -> None:
    assert find_row_limit(build().to(dtype)) == 0


def test_tf32_is_not_taken_for_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rounding is above the tolerance of a float32 model, so the layouts are compared without it."""
    seen: list[str] = []

    def compute(*arguments: Any) -> Any:
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        return compute_completion_states(*arguments)

    monkeypatch.setattr(prompt_sharing, "compute_completion_states", compute)
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert find_row_limit(build_family("llama", dtype=torch.float32)) == 128
    finally:
        torch.set_float32_matmul_precision(kept)
    assert seen == ["ieee"] * 3


def test_rows_stay_within_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 50: longer than the probe, shorter than the longer pairs' rows, whose window a mask would undo."""
    pairs = make_pairs(8, longest=40)
    longest = max(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)

    def score_windowed(layout: str) -> tuple[list[float], int]:
        model = build_family("mistral")
        model.config.sliding_window = 50
        scored = compute_pair_logps(model, pairs, layout=layout)
        return scored.rejected.tolist(), scored.n_shared

    expected, _ = score_windowed("paired")
    got, n_shared = score_windowed("shared")
    assert got == pytest.approx(expected, rel=1e-12)
    assert 0 < n_shared < len(pairs) and longest > 50
    monkeypatch.setattr(prompt_sharing, "_read_spans", lambda _model: [])
    assert score_windowed("shared")[0] != pytest.approx(expected, rel=1e-6)


def test_settings_that_are_no_window_limit_nothing() -> None:
    model = build_family("qwen2")
    assert model.config.max_window_layers == 28
    assert find_row_limit(model) == 128


def test_said_once_and_left_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    model = build_family("bloom").train()
    with caplog.at_level(logging.WARNING):
        assert [find_row_limit(model) for _ in range(3)] == [0, 0, 0]
    assert [record.message for record in caplog.records] == [
        "BloomForCausalLM: chosen and rejected cannot share a prompt here; each gets a row of its own"
    ]
    assert model.training


@pytest.mark.parametrize("name", ["index_topk", "keep_window_size", "sliding_window"])
def test_no_shared_row_is_longer_than_what_attention_picks_or_spans(name: str) -> None:
    """The probe's short pairs cannot see what begins beyond k tokens; the configuration says where that is."""
    model = build_family("llama")
    setattr(model.config, name, 40)
    assert find_row_limit(model) == 40

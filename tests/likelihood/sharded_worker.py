"""What each process of `test_sharded.py` does: shards a model's weights and compares with the whole model.

Before that, it scores pairs as if it had another amount of free memory than the other process.

torchrun --nproc-per-node 2 tests/likelihood/sharded_worker.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import copy

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from conftest import make_pairs
from model_families import build_family
from torch.distributed.tensor import DTensor

from dpotool.gradients.batch_products import compute_batch_products
from dpotool.gradients.engine import audit_trained, compute_fast_products
from dpotool.gradients.ghost.audit import Claims
from dpotool.gradients.ghost.selection import select_parameters
from dpotool.gradients.products import compute_gradient_products
from dpotool.likelihood import budget, completions
from dpotool.likelihood.layout import RowLayout
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.likelihood.processes import is_sharded, shard_weights

PAIRS = make_pairs(7)


def main() -> None:
    PartialState(cpu=True)
    write_unequal(Path(sys.argv[1]))
    completions.CHUNK_ELEMENTS = 5 * 97  # the output layer in portions, computed again on the way back
    for family in ("llama", "llama-tied-biased", "gpt2"):
        whole = build_family(family)
        model = copy.deepcopy(whole)
        claims = audit_trained(model)
        shard_weights(model, torch.device("cpu"))
        assert is_sharded(model) and not is_sharded(whole)
        check_products(whole, model, claims)
        for layout in ("shared", "paired"):
            check_scores(whole, model, layout)
            check_gradients(whole, model, layout)
    dist.barrier()
    print("all equal")
    dist.destroy_process_group()


def write_unequal(folder: Path) -> None:
    """Writes what this process finds if the first has room for all pairs at once and the second for sixty tokens."""
    rank, pairs, model = dist.get_rank(), make_pairs(12), build_family("llama")
    free = {0: 10**12, 1: 2 * (budget.estimate_chunk_bytes(model) + 60 * budget.estimate_bytes_per_token(model))}
    measure = budget.measure_free_memory
    budget.measure_free_memory = lambda device: free[rank]
    logps = compute_pair_logps(model, pairs, batch_tokens="auto")
    assert budget.resolve_batch_tokens("auto", model) == 60
    free[1] += 8 * sum(weight.numel() * weight.element_size() for weight in model.parameters())
    tokens = budget.resolve_batch_tokens("auto", model, with_gradients=True)
    products, _ = compute_fast_products(model, pairs, batch_tokens=tokens)
    np.savez(folder / f"{rank}.npz", scored=logps.chosen, products=products.chosen_logps)
    budget.measure_free_memory = measure


def check_products(whole: torch.nn.Module, model: torch.nn.Module, claims: Claims) -> None:
    """Products of each pair are those of autograd on the whole model; those with the batch are the whole model's.

    The batches are one too few for the second process; three adapt to the half of the pairs that they are taken from.
    """
    slow = compute_gradient_products(whole, PAIRS)
    fast, report = compute_fast_products(model, PAIRS, batch_tokens=1, claims=claims)
    assert not report.fallback
    for name in ("grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm", "chosen_logps"):
        np.testing.assert_allclose(getattr(fast, name), getattr(slow, name), rtol=1e-6, atol=1e-9, err_msg=name)
    logratios = np.linspace(-1, 1, len(PAIRS)), np.linspace(1, -1, len(PAIRS))
    expected, got = (
        compute_batch_products(
            one,
            PAIRS,
            select_parameters(one),
            logratios,
            gamma=1.0,
            adamw_shifts=[0.5, 1.0],
            batch_tokens=60,
            claims=claims,
        )
        for one in (whole, model)
    )
    for name in ("with_mean_chosen", "with_mean_rejected", "with_accuracy"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-6, atol=1e-9, err_msg=name)
    for shift in (0.5, 1.0):  # the sign of a gradient near zero may differ
        np.testing.assert_allclose(got.adamw[shift], expected.adamw[shift], rtol=1e-3, err_msg="AdamW")
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def check_scores(whole: torch.nn.Module, model: torch.nn.Module, layout: str) -> None:
    """An odd number of batches: one process has one less, and runs one more."""
    expected = compute_pair_logps(whole, PAIRS, batch_tokens=1, layout=layout)
    got = compute_pair_logps(model, PAIRS, batch_tokens=1, layout=layout)
    np.testing.assert_allclose(got.chosen, expected.chosen, rtol=1e-6)
    np.testing.assert_allclose(got.rejected, expected.rejected, rtol=1e-6)


def check_gradients(whole: torch.nn.Module, model: torch.nn.Module, layout: str) -> None:
    """Each process has its own pairs; gradients are averaged."""
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = RowLayout.of(whole, layout)
    for part in range(size):
        completions.compute_completion_logps(whole, rows.collate_step(PAIRS[part::size])).sum().backward()
    model(completion_batch=rows.collate_step(PAIRS[rank::size])).sum().backward()
    named = dict(model.named_parameters())
    for name, parameter in whole.named_parameters():
        sharded = named[name].grad
        assert isinstance(sharded, DTensor) and parameter.grad is not None
        torch.testing.assert_close(sharded.full_tensor(), parameter.grad / size, rtol=1e-5, atol=1e-7, msg=name)
    whole.zero_grad()
    model.zero_grad()


if __name__ == "__main__":
    main()

"""What each process of `test_sharded.py` does: shards a model's weights and compares with the whole model.

torchrun --nproc-per-node 2 tests/likelihood/sharded_worker.py
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
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from dpotool.likelihood import completions
from dpotool.likelihood.layout import RowLayout
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.likelihood.root_forward import is_sharded, route_forward

PAIRS = make_pairs(7)


def main() -> None:
    PartialState(cpu=True)
    completions.CHUNK_ELEMENTS = 5 * 97  # the output layer in portions, computed again on the way back
    for family in ("llama", "qwen3", "llama-tied-biased"):
        whole = build_family(family)
        model = copy.deepcopy(whole)
        route_forward(model)
        for layer in model.get_decoder().layers:
            fully_shard(layer)
        fully_shard(model)
        assert is_sharded(model) and not is_sharded(whole)
        for layout in ("shared", "paired"):
            check_scores(whole, model, layout)
            check_gradients(whole, model, layout)
    dist.barrier()
    print("all equal")
    dist.destroy_process_group()


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

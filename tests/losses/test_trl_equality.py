"""dpotool's losses equal TRL's: TRL's own `DPOTrainer._compute_loss` runs on the same log-probabilities.

TRL's method is called unbound, with a stand-in for the trainer (its settings, an accelerator of one process) and a
stand-in for the model, which returns per-token log-probabilities drawn at random. Nothing of TRL's formulas is retyped.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from trl import DPOTrainer

from dpotool.losses.registry import PairLogps, get_loss

BATCH, SEQ, PROMPT = 5, 12, 3


class Pairs:
    """Random per-token log-probabilities, (2 * BATCH, SEQ), chosen rows first as TRL wants them, of many lengths."""

    def __init__(self, rows: slice = slice(None)) -> None:
        generator = torch.Generator().manual_seed(7)
        shape = (2, BATCH, SEQ)
        lengths = torch.randint(1, SEQ - PROMPT, (2, BATCH, 1), generator=generator)
        positions = torch.arange(SEQ)
        mask = ((positions >= PROMPT) & (positions < PROMPT + lengths)).long()
        self.mask = mask[:, rows].flatten(0, 1)
        self.policy, self.reference = (
            (-5 * torch.rand(shape, dtype=torch.float64, generator=generator) * mask)[:, rows].flatten(0, 1)
            for _ in range(2)
        )
        self.policy.requires_grad_()

    def to_pair_logps(self) -> PairLogps:
        chosen, rejected = self.policy.sum(dim=1).chunk(2)
        reference_chosen, reference_rejected = self.reference.sum(dim=1).chunk(2)
        chosen_tokens, rejected_tokens = self.mask.sum(dim=1).chunk(2)
        return PairLogps(chosen, rejected, reference_chosen, reference_rejected, chosen_tokens, rejected_tokens)


def compute_trl_loss(pairs: Pairs, loss_type: str, *, beta: float, label_smoothing: float) -> Tensor:
    def one_process(tensor: Tensor) -> Tensor:
        return tensor

    def model(**_kwargs: object) -> SimpleNamespace:
        next_token = pairs.policy[:, 1:]  # TRL's position t predicts token t + 1
        unused = torch.zeros_like(next_token)
        return SimpleNamespace(
            log_probs=next_token, entropy=unused, mean_logits=unused, is_top1=torch.zeros_like(next_token).bool()
        )

    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=one_process, gather=one_process),
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    reference_chosen, reference_rejected = pairs.reference.sum(dim=1).chunk(2)
    inputs = {
        "input_ids": torch.ones_like(pairs.mask),
        "attention_mask": torch.ones_like(pairs.mask),
        "completion_mask": pairs.mask,
        "ref_chosen_logps": reference_chosen,
        "ref_rejected_logps": reference_rejected,
    }
    return DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)


def compute_our_loss(pairs: Pairs, name: str, **options: float) -> Tensor:
    spec = get_loss(name)
    pair_logps = pairs.to_pair_logps()
    losses = spec.compute(pair_logps, spec.resolve_options(**options))
    if spec.reduction == "chosen_tokens":
        return losses.sum() / pair_logps.chosen_tokens.sum()
    return losses.mean()


def assert_equal_with_gradients(ours: Tensor, trl: Tensor, pairs: Pairs) -> None:
    torch.testing.assert_close(ours, trl, rtol=1e-12, atol=1e-12)
    (our_gradient,) = torch.autograd.grad(ours, pairs.policy)
    (trl_gradient,) = torch.autograd.grad(trl, pairs.policy)
    assert trl_gradient.abs().max() > 0
    completion = pairs.mask.bool()  # outside of it TRL sums masked zeros, and so do we
    torch.testing.assert_close(our_gradient[completion], trl_gradient[completion], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize(
    ("ours", "trls", "label_smoothing"),
    [("dpo", "sigmoid", 0.0), ("ipo", "ipo", 0.0), ("hinge", "hinge", 0.0), ("robust", "robust", 0.1)],
)
def test_loss_and_gradient_equal_trl(ours: str, trls: str, label_smoothing: float, beta: float):
    pairs = Pairs()
    options = {"beta": beta} | ({"label_smoothing": label_smoothing} if label_smoothing else {})
    expected = compute_trl_loss(pairs, trls, beta=beta, label_smoothing=label_smoothing)
    assert_equal_with_gradients(compute_our_loss(pairs, ours, **options), expected, pairs)


@pytest.mark.parametrize("index", range(BATCH))
@pytest.mark.parametrize(
    ("ours", "trls"), [("dpo", "sigmoid"), ("ipo", "ipo"), ("hinge", "hinge"), ("robust", "robust")]
)
def test_each_pair_equals_trl_in_a_batch_of_its_own(ours: str, trls: str, index: int):
    """TRL returns a mean only; a batch of one pair shows that no two errors cancel in it."""
    pairs = Pairs(slice(index, index + 1))
    options = {"beta": 0.3} | ({"label_smoothing": 0.2} if ours == "robust" else {})
    expected = compute_trl_loss(pairs, trls, beta=0.3, label_smoothing=0.2)
    torch.testing.assert_close(compute_our_loss(pairs, ours, **options), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("index", range(BATCH))
def test_cdpo_equals_trl_aot_in_a_batch_of_one(index: int):
    """TRL 1.16's sigmoid loss has no label smoothing, but its `aot` is cDPO on sorted margins; one pair is sorted."""
    pairs = Pairs(slice(index, index + 1))
    expected = compute_trl_loss(pairs, "aot", beta=0.3, label_smoothing=0.2)
    assert_equal_with_gradients(compute_our_loss(pairs, "dpo", beta=0.3, label_smoothing=0.2), expected, pairs)


def test_sft_equals_trl_over_tokens_of_the_batch():
    pairs = Pairs()
    expected = compute_trl_loss(pairs, "sft", beta=0.1, label_smoothing=0.0)
    assert_equal_with_gradients(compute_our_loss(pairs, "sft"), expected, pairs)


def test_shift_of_one_equals_trl_sigmoid():
    pairs = Pairs()
    expected = compute_trl_loss(pairs, "sigmoid", beta=0.1, label_smoothing=0.0)
    assert_equal_with_gradients(compute_our_loss(pairs, "shift", beta=0.1), expected, pairs)

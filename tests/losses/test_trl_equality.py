"""dpotool's losses equal TRL's: TRL's own `DPOTrainer._compute_loss` runs on the same log-probabilities, and so do the
loss methods of its CPO and ORPO trainers.

TRL's methods are called unbound, with a stand-in for the trainer (its settings, an accelerator of one process) and a
stand-in for the model, which returns per-token log-probabilities drawn at random. Nothing of TRL's formulas is retyped.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from dpotool.losses.registry import get_loss
from dpotool.losses.spec import PairLogps

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
        shorter = torch.minimum(chosen_tokens, rejected_tokens).repeat(2)
        is_prefix = (self.mask.cumsum(dim=1) <= shorter[:, None]) & self.mask.bool()
        prefixes = [(logps * is_prefix).sum(dim=1).chunk(2) for logps in (self.policy, self.reference)]
        return PairLogps(
            chosen,
            rejected,
            reference_chosen,
            reference_rejected,
            chosen_tokens,
            rejected_tokens,
            policy_chosen_prefix_logps=prefixes[0][0],
            policy_rejected_prefix_logps=prefixes[0][1],
            reference_chosen_prefix_logps=prefixes[1][0],
            reference_rejected_prefix_logps=prefixes[1][1],
        )


def compute_trl_loss(
    pairs: Pairs,
    loss_type: str,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
    ld_alpha: float | None = None,
) -> Tensor:
    def one_process(tensor: Tensor) -> Tensor:
        return tensor

    def model(**_kwargs: object) -> SimpleNamespace:
        next_token = pairs.policy[:, 1:]  # TRL's position t predicts token t + 1
        unused = torch.zeros_like(next_token)
        return SimpleNamespace(
            log_probs=next_token, entropy=unused, mean_logits=unused, is_top1=torch.zeros_like(next_token).bool()
        )

    def reference(**_kwargs: object) -> SimpleNamespace:
        return SimpleNamespace(log_probs=pairs.reference[:, 1:])

    class Policy(torch.nn.Module):
        training = False
        is_gradient_checkpointing = False

    trainer = SimpleNamespace(
        ref_model=reference,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=one_process, gather=one_process),
        model=Policy().eval(),
        aux_loss_enabled=False,
        ld_alpha=ld_alpha,
        precompute_ref_logps=ld_alpha is None,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type, "sft"] if sft_weight else [loss_type],
        loss_weights=[1.0, sft_weight] if sft_weight else [1.0],
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
    (trl_gradient,) = torch.autograd.grad(
        trl, pairs.policy, retain_graph=True
    )  # more than one of ours may be compared with it
    assert trl_gradient.abs().max() > 0
    completion = pairs.mask.bool()  # outside of it TRL sums masked zeros, and so do we
    torch.testing.assert_close(our_gradient[completion], trl_gradient[completion], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize(
    ("ours", "trls", "label_smoothing"),
    [
        ("dpo", "sigmoid", 0.0),
        ("ipo", "ipo", 0.0),
        ("hinge", "hinge", 0.0),
        ("robust", "robust", 0.1),
        ("apo-zero", "apo_zero", 0.0),
        ("apo-down", "apo_down", 0.0),
        ("nca", "nca_pair", 0.0),
        ("sppo", "sppo_hard", 0.0),
    ],
)
def test_loss_and_gradient_equal_trl(ours: str, trls: str, label_smoothing: float, beta: float):
    pairs = Pairs()
    options = {"beta": beta} | ({"label_smoothing": label_smoothing} if label_smoothing else {})
    expected = compute_trl_loss(pairs, trls, beta=beta, label_smoothing=label_smoothing)
    assert_equal_with_gradients(compute_our_loss(pairs, ours, **options), expected, pairs)


@pytest.mark.parametrize("index", range(BATCH))
@pytest.mark.parametrize(
    ("ours", "trls"),
    [
        ("dpo", "sigmoid"),
        ("ipo", "ipo"),
        ("hinge", "hinge"),
        ("robust", "robust"),
        ("apo-zero", "apo_zero"),
        ("apo-down", "apo_down"),
        ("nca", "nca_pair"),
        ("sppo", "sppo_hard"),
    ],
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


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_ld_dpo_equals_trl_ld_alpha(alpha: float):
    pairs = Pairs()
    expected = compute_trl_loss(pairs, "sigmoid", beta=0.1, ld_alpha=alpha)
    assert_equal_with_gradients(compute_our_loss(pairs, "ld-dpo", beta=0.1, alpha=alpha), expected, pairs)


@pytest.mark.parametrize("index", range(BATCH))
def test_rpo_equals_trl_sigmoid_and_sft_in_a_batch_of_one(index: int):
    """TRL's second term is a mean over the tokens of all chosen completions, iterative RPO's over each one's own."""
    pairs = Pairs(slice(index, index + 1))
    expected = compute_trl_loss(pairs, "sigmoid", beta=0.1, sft_weight=0.7)
    assert_equal_with_gradients(compute_our_loss(pairs, "rpo", beta=0.1, alpha=0.7), expected, pairs)
    assert_equal_with_gradients(compute_our_loss(pairs, "dpo", beta=0.1, sft_weight=0.7), expected, pairs)


@pytest.mark.parametrize("name", ["apo-zero", "hinge", "ipo"])
def test_any_loss_with_an_sft_term_equals_trl_in_a_batch_of_one(name: str):
    pairs = Pairs(slice(0, 1))
    expected = compute_trl_loss(pairs, name.replace("-", "_"), beta=0.1, sft_weight=2.0)
    assert_equal_with_gradients(compute_our_loss(pairs, name, beta=0.1, sft_weight=2.0), expected, pairs)


def compute_trl_cpo_losses(pairs: Pairs, loss_type: str, **settings: float) -> Tensor:
    trainer = SimpleNamespace(
        alpha=0.0, loss_type=loss_type, label_smoothing=0.0, accelerator=SimpleNamespace(device="cpu"), **settings
    )
    logps = pairs.policy.sum(dim=1)
    if loss_type == "simpo":  # `concatenated_forward` gives it log-probabilities per token
        logps = logps / pairs.mask.sum(dim=1)
    losses, _, _ = CPOTrainer.cpo_loss(trainer, *logps.chunk(2))
    return losses


def test_simpo_equals_trl_cpo_trainer():
    pairs = Pairs()
    expected = compute_trl_cpo_losses(pairs, "simpo", beta=2.0, simpo_gamma=0.7).mean()
    assert_equal_with_gradients(compute_our_loss(pairs, "simpo", beta=2.0, gamma_simpo=0.7), expected, pairs)


def test_cpo_equals_trl_cpo_trainer():
    """The preference term is `cpo_loss`; TRL adds cpo_alpha times the mean over chosen tokens, as `sft_weight` does."""
    pairs = Pairs()
    expected = compute_trl_cpo_losses(pairs, "sigmoid", beta=0.2).mean()
    assert_equal_with_gradients(compute_our_loss(pairs, "cpo", beta=0.2, alpha=0.0), expected, pairs)


def test_cpo_adds_the_papers_sum_of_chosen_log_probabilities():
    pairs = Pairs()
    likelihood = -pairs.policy.sum(dim=1)[:BATCH].mean()
    expected = compute_trl_cpo_losses(pairs, "sigmoid", beta=0.2).mean() + 0.5 * likelihood
    assert_equal_with_gradients(compute_our_loss(pairs, "cpo", beta=0.2, alpha=0.5), expected, pairs)


def test_orpo_equals_trl_orpo_trainer():
    """TRL works in float32 here, and its first term is over prompt and completion: ours is put in its place."""
    pairs = Pairs()
    per_token = pairs.policy.sum(dim=1) / pairs.mask.sum(dim=1)
    trainer = SimpleNamespace(beta=0.25, accelerator=SimpleNamespace(device="cpu"))
    odds, *_ = ORPOTrainer.odds_ratio_loss(trainer, *per_token.chunk(2))
    expected = -per_token[:BATCH].mean() - odds.double().mean()
    ours = compute_our_loss(pairs, "orpo", lambda_orpo=0.25)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(loss, pairs.policy)[0][pairs.mask.bool()] for loss in (ours, expected)]
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)

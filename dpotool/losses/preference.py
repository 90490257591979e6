"""Preference losses as pure functions: log-probabilities of a batch of pairs in, one loss per pair out.

All arguments that end in `_logps` are log pi(completion | prompt) in nats, summed over completion tokens including EOS,
one value per pair. Every function returns one number per pair and leaves the reduction to the trainer: the mean over
pairs, except for `sft` (see there). A function's argument names are its declaration of what it needs: the registry
passes what they ask for.

Notation of the comments: a = log pi_theta/pi_ref of the chosen completion, b = that of the rejected one, s = sigmoid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from dpotool.errors import DpotoolError


def compute_sft_losses(policy_chosen_logps: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Computes the negative log-likelihood of each chosen completion: nats, summed over its tokens.

    Cross-entropy is a mean over *tokens*, which no per-pair number can be: sum these over the pairs of an optimiser
    step and divide by that step's chosen tokens (`LossSpec.reduction` is "chosen_tokens"). So every token counts alike,
    and gradient accumulation 1x8 equals 8x1.
    """
    return -policy_chosen_logps


def compute_dpo_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " batch"]:
    """Computes DPO's loss (eq. 7 of arXiv:2305.18290), or with label smoothing e > 0 its conservative form, cDPO.

    cDPO (eq. 3 of ericmitchell.ai/cdpo.pdf) takes a label to be wrong with probability e.
    """
    reward_margins = beta * (
        (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    )
    losses = -F.logsigmoid(reward_margins)  # -log s(beta a - beta b)
    if label_smoothing == 0:
        return losses
    return (1 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-reward_margins)


def compute_robust_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float,
    label_smoothing: float,
) -> Float[Tensor, " batch"]:
    """Computes robust DPO's loss (arXiv:2403.00409): unbiased for DPO's when labels flip with probability e < 1/2.

    Unlike cDPO it subtracts the flipped term, so that single losses may be negative.
    """
    reward_margins = beta * (
        (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    )
    kept = -(1 - label_smoothing) * F.logsigmoid(reward_margins)
    flipped = -label_smoothing * F.logsigmoid(-reward_margins)
    return (kept - flipped) / (1 - 2 * label_smoothing)


def compute_shift_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float,
    shift: float | Float[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Computes DPO-Shift's loss (eq. 3 of arXiv:2502.07599); a shift of 1 is DPO.

    Args:
        shift: f, the factor on the rejected reward; one number, or one per pair.
    """
    chosen_rewards = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_rewards = beta * (policy_rejected_logps - reference_rejected_logps)
    return -F.logsigmoid(chosen_rewards - shift * rejected_rewards)  # -log s(beta a - f beta b)


SCORE_OFFSETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "log": lambda chosen, rejected: torch.log(chosen - rejected),
    "raw": lambda chosen, rejected: chosen - rejected,
    "ratio": lambda chosen, rejected: torch.log(chosen) - torch.log(rejected),
}
"""ODPO's offsets before alpha: log of the score difference (the paper's choice), the difference, log of the ratio."""


def compute_odpo_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    score_chosen: Float[Tensor, " batch"],
    score_rejected: Float[Tensor, " batch"],
    *,
    beta: float,
    score_offset: str,
    alpha: float,
) -> Float[Tensor, " batch"]:
    """Computes DPO's loss with an offset (ODPO, arXiv:2402.10571): the margin must exceed alpha times the offset.

    Args:
        score_offset: a key of SCORE_OFFSETS.

    Raises:
        DpotoolError: an offset is not finite, because a chosen score does not exceed the rejected one (or, for "ratio",
            because a score is not positive). `scores.validate_scores` finds such pairs by row before training starts.
    """
    if not bool((score_chosen > score_rejected).all()):
        raise DpotoolError("score_chosen does not exceed score_rejected in every pair", where="loss 'odpo'")
    offsets = alpha * SCORE_OFFSETS[score_offset](score_chosen, score_rejected)  # Delta
    if not bool(offsets.isfinite().all()):
        raise DpotoolError(f"the {score_offset!r} offset of the scores is not finite", where="loss 'odpo'")
    reward_margins = beta * (
        (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    )
    return -F.logsigmoid(reward_margins - offsets)  # -log s(beta a - beta b - Delta)


def compute_ipo_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    chosen_tokens: Num[Tensor, " batch"],
    rejected_tokens: Num[Tensor, " batch"],
    *,
    beta: float,
) -> Float[Tensor, " batch"]:
    """Computes IPO's loss (eq. 17 of arXiv:2310.12036; the paper's tau is beta), on log-ratios per token.

    Departure from the paper's text: log-ratios are divided by the completion's tokens. TRL does the same and reports
    that IPO's authors confirmed it.
    """
    chosen_logratios_per_token = (policy_chosen_logps - reference_chosen_logps) / chosen_tokens
    rejected_logratios_per_token = (policy_rejected_logps - reference_rejected_logps) / rejected_tokens
    return (chosen_logratios_per_token - rejected_logratios_per_token - 1 / (2 * beta)) ** 2


def compute_hinge_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float,
) -> Float[Tensor, " batch"]:
    """Computes the hinge loss of SLiC-HF (arXiv:2305.10425) on DPO's reward margin: zero once it reaches 1."""
    reward_margins = beta * (
        (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    )
    return torch.relu(1 - reward_margins)  # max(0, 1 - beta (a - b))

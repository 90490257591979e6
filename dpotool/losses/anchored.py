"""Losses with a term for each answer, not only for their difference, so that they can hold up the chosen one.

Arguments and results are those of `preference`: one number per pair, log-probabilities in nats, summed over completion
tokens. Notation of the comments: a = log pi_theta/pi_ref of the chosen completion, b = that of the rejected one,
s = sigmoid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def compute_cal_dpo_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float,
) -> Float[Tensor, " batch"]:
    """Computes calibrated DPO's loss (Cal-DPO, arXiv:2412.14516): -log s of the margin of log-ratios without beta, and
    squares that draw the chosen log-ratio to 1/(2 beta) and the rejected one to -1/(2 beta).
    """
    chosen_logratios = policy_chosen_logps - reference_chosen_logps
    rejected_logratios = policy_rejected_logps - reference_rejected_logps
    calibration = (chosen_logratios - 1 / (2 * beta)) ** 2 + (rejected_logratios + 1 / (2 * beta)) ** 2
    return -F.logsigmoid(chosen_logratios - rejected_logratios) + calibration


def compute_apo_zero_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float,
) -> Float[Tensor, " batch"]:
    """Computes APO-zero's loss (eq. 7 of arXiv:2408.06266): the chosen answer rises and the rejected one falls."""
    chosen_rewards = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_rewards = beta * (policy_rejected_logps - reference_rejected_logps)
    return 1 - torch.sigmoid(chosen_rewards) + torch.sigmoid(rejected_rewards)  # 1 - s(beta a) + s(beta b)


def compute_apo_down_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float,
) -> Float[Tensor, " batch"]:
    """Computes APO-down's loss (eq. 8 of arXiv:2408.06266): both answers fall, the rejected one further."""
    chosen_rewards = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_rewards = beta * (policy_rejected_logps - reference_rejected_logps)
    return torch.sigmoid(chosen_rewards) + 1 - torch.sigmoid(chosen_rewards - rejected_rewards)


def compute_nca_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float,
) -> Float[Tensor, " batch"]:
    """Computes noise-contrastive alignment's loss for pairs (NCA, arXiv:2402.05369): each answer against pi_ref."""
    chosen_rewards = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_rewards = beta * (policy_rejected_logps - reference_rejected_logps)
    return -F.logsigmoid(chosen_rewards) - 0.5 * (F.logsigmoid(-chosen_rewards) + F.logsigmoid(-rejected_rewards))


def compute_sppo_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float,
) -> Float[Tensor, " batch"]:
    """Computes SPPO's loss with hard labels (eq. 4.7 of arXiv:2405.00675, its eta being 1/beta and P 1 or 0).

    Departure: the paper takes P from a preference model and pairs that the policy itself wrote; here the label is sure
    and the pairs are the data's.
    """
    chosen_logratios = policy_chosen_logps - reference_chosen_logps
    rejected_logratios = policy_rejected_logps - reference_rejected_logps
    return (chosen_logratios - 1 / (2 * beta)) ** 2 + (rejected_logratios + 1 / (2 * beta)) ** 2

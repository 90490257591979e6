"""Losses without a reference model: they compare log-likelihoods under the policy alone.

Arguments and results are those of `preference`: one number per pair, log-probabilities in nats, summed over completion
tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

_SURE = -1e-12
"""Nats per token above which a completion counts as this likely: at 0 its odds would be infinite."""


def compute_simpo_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    chosen_tokens: Num[Tensor, " batch"],
    rejected_tokens: Num[Tensor, " batch"],
    *,
    beta: float,
    gamma_simpo: float,
) -> Float[Tensor, " batch"]:
    """Computes SimPO's loss (eq. 6 of arXiv:2405.14734): log-likelihoods per token must differ by gamma / beta."""
    chosen_rewards = beta * policy_chosen_logps / chosen_tokens
    rejected_rewards = beta * policy_rejected_logps / rejected_tokens
    return -F.logsigmoid(chosen_rewards - rejected_rewards - gamma_simpo)


def compute_cpo_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float,
    alpha: float,
) -> Float[Tensor, " batch"]:
    """Computes CPO's loss (eqs. 3 to 5 of arXiv:2401.08417): DPO's with a uniform reference, and -log pi(chosen).

    Beside TRL: there the second term is a mean over the chosen tokens of a micro-batch, here the paper's sum over the
    completion. TRL's, for one pair, is `alpha = 0` with `sft_weight` for its `cpo_alpha`.
    """
    margins = beta * (policy_chosen_logps - policy_rejected_logps)
    return -F.logsigmoid(margins) - alpha * policy_chosen_logps


def compute_orpo_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    chosen_tokens: Num[Tensor, " batch"],
    rejected_tokens: Num[Tensor, " batch"],
    *,
    lambda_orpo: float,
) -> Float[Tensor, " batch"]:
    """Computes ORPO's loss (eqs. 6 and 7 of arXiv:2403.07691): maximum likelihood, and the odds of chosen to rejected.

    The probability p of a completion is its likelihood per token, exp(log pi / tokens); odds are p / (1 - p).

    Beside TRL: there the first term is a mean over the tokens of prompt and completion, here over the completion's.
    """
    chosen_logps_per_token = policy_chosen_logps / chosen_tokens
    log_odds_ratio = _compute_log_odds(chosen_logps_per_token) - _compute_log_odds(
        policy_rejected_logps / rejected_tokens
    )
    return -chosen_logps_per_token - lambda_orpo * F.logsigmoid(log_odds_ratio)


def _compute_log_odds(logps_per_token: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Computes log p/(1 - p) from log p; of the two ways to write log(1 - p), the one that is exact there."""
    logps = logps_per_token.clamp(max=_SURE)
    log_rest = torch.where(logps > -math.log(2), torch.log(-torch.expm1(logps)), torch.log1p(-torch.exp(logps)))
    return logps - log_rest

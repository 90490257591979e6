"""DPO with an added term that holds up the chosen answer, or a change that discounts length or weak labels.

Arguments and results are those of `preference`: one number per pair, log-probabilities in nats, summed over completion
tokens. Notation of the comments: a = log pi_theta/pi_ref of the chosen completion, b = that of the rejected one,
s = sigmoid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from dpotool.errors import DpotoolError


def compute_dpop_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float,
    lambda_dpop: float,
) -> Float[Tensor, " batch"]:
    """Computes DPO-Positive's loss (DPOP, eq. 3 of arXiv:2402.13228): a chosen log-ratio below 0 costs margin."""
    chosen_logratios = policy_chosen_logps - reference_chosen_logps
    rejected_logratios = policy_rejected_logps - reference_rejected_logps
    penalties = torch.relu(-chosen_logratios)  # max(0, -a)
    return -F.logsigmoid(beta * (chosen_logratios - rejected_logratios - lambda_dpop * penalties))


def compute_rpo_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    chosen_tokens: Num[Tensor, " batch"],
    *,
    beta: float,
    alpha: float,
) -> Float[Tensor, " batch"]:
    """Computes iterative RPO's loss (eq. 1 of arXiv:2404.19733): DPO's, and alpha times -log pi(chosen) per token.

    Departure: the paper divides by the tokens of its chain of thought and answer, which here are the completion.
    """
    reward_margins = beta * (
        (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    )
    return -F.logsigmoid(reward_margins) - alpha * policy_chosen_logps / chosen_tokens


def compute_r_dpo_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    chosen_tokens: Num[Tensor, " batch"],
    rejected_tokens: Num[Tensor, " batch"],
    *,
    beta: float,
    alpha: float,
) -> Float[Tensor, " batch"]:
    """Computes length-regularised DPO's loss (R-DPO, arXiv:2403.19159): every token costs alpha of reward.

    The sign follows from what is maximised, E[r(x, y) - alpha |y|] - beta KL(pi, pi_ref). Its best policy has
    pi ~ pi_ref exp((r - alpha |y|) / beta), hence r = beta log pi/pi_ref + alpha |y| + const. In Bradley and Terry's
    model the chosen answer wins with s(r_w - r_l) = s(beta (a - b) + alpha (|y_w| - |y_l|)): a longer chosen answer
    has a part of its margin already, and less is gained by pushing it further.
    """
    reward_margins = beta * (
        (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    )
    return -F.logsigmoid(reward_margins + alpha * (chosen_tokens - rejected_tokens))


def compute_ld_dpo_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    policy_chosen_prefix_logps: Float[Tensor, " batch"],
    policy_rejected_prefix_logps: Float[Tensor, " batch"],
    reference_chosen_prefix_logps: Float[Tensor, " batch"],
    reference_rejected_prefix_logps: Float[Tensor, " batch"],
    *,
    beta: float,
    alpha: float,
) -> Float[Tensor, " batch"]:
    """Computes length-desensitised DPO's loss (LD-DPO, arXiv:2409.06411): DPO's, on log-probabilities whose tokens
    beyond the shorter completion's length count alpha times.

    Args:
        policy_chosen_prefix_logps: log pi of the first min(chosen_tokens, rejected_tokens) tokens of the completion,
            nats; for the shorter completion that is all of it. The others likewise.
    """

    def desensitise(total: Tensor, prefix: Tensor) -> Tensor:
        return prefix + alpha * (total - prefix)

    chosen_logratios = desensitise(policy_chosen_logps, policy_chosen_prefix_logps) - desensitise(
        reference_chosen_logps, reference_chosen_prefix_logps
    )
    rejected_logratios = desensitise(policy_rejected_logps, policy_rejected_prefix_logps) - desensitise(
        reference_rejected_logps, reference_rejected_prefix_logps
    )
    return -F.logsigmoid(beta * (chosen_logratios - rejected_logratios))


def compute_mappo_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    score_chosen: Float[Tensor, " batch"],
    score_rejected: Float[Tensor, " batch"],
    *,
    beta: float,
    score_range: float,
) -> Float[Tensor, " batch"]:
    """Computes MaPPO's loss (arXiv:2507.21183): DPO-Shift's, with each pair's gap of rewards in [0, 1] for its factor.

    Args:
        score_range: what the gap of the scores is divided by; 1 where the scores lie in [0, 1], as in the paper.

    Raises:
        DpotoolError: a gap lies outside [0, 1]. `scores.validate_score_gaps` finds such pairs by row before training.
    """
    gaps = (score_chosen - score_rejected) / score_range  # Delta_r
    if not bool(((gaps >= 0) & (gaps <= 1)).all()):
        raise DpotoolError("a gap of the scores lies outside 0 to score_range", where="loss 'mappo'")
    chosen_rewards = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_rewards = beta * (policy_rejected_logps - reference_rejected_logps)
    return -F.logsigmoid(chosen_rewards - gaps * rejected_rewards)  # -log s(beta a - Delta_r beta b)


def compute_bdpo_losses(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    reference_chosen_logps: Float[Tensor, " batch"],
    reference_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float,
    lambda_bdpo: float,
) -> Float[Tensor, " batch"]:
    """Computes Bounded-DPO's loss (BDPO, arXiv:2506.12725): the rejected answer's pi becomes a mixture with pi_ref.

    With pi_mix = l pi + (1 - l) pi_ref, log pi_mix/pi_ref = log(l e^b + 1 - l), which never falls below log(1 - l).
    """
    chosen_logratios = policy_chosen_logps - reference_chosen_logps
    rejected_logratios = policy_rejected_logps - reference_rejected_logps
    if lambda_bdpo < 1:
        rest = torch.full_like(rejected_logratios, math.log1p(-lambda_bdpo))
        rejected_logratios = torch.logaddexp(math.log(lambda_bdpo) + rejected_logratios, rest)
    return -F.logsigmoid(beta * (chosen_logratios - rejected_logratios))

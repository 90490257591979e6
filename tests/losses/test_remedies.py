"""DPO with something against displacement, length or weak labels: by hand, at its limits, and where it is DPO."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import FALLEN, PAIR, Row, checked, lengths, logps, nats, rows, scores, value

from dpotool.errors import DpotoolError


def test_dpop_by_hand():
    """beta .1, lambda_dpop 5. A chosen log-ratio of 2 costs nothing, so -log s(.7) = .4031860 as in DPO;
    one of -3 costs 5 * 3 = 15: .1 (7 - 15) = -.8, log(1 + e^.8) = log 3.2255409 = 1.1711007.
    """
    losses = value("dpop", PAIR, FALLEN, beta=0.1, lambda_dpop=5.0)
    assert losses == pytest.approx([0.4031860, 1.1711007], abs=1e-7)


def test_dpop_pulls_a_fallen_chosen_answer_up_harder_than_dpo():
    """d/da of -log s(beta(a - b + lambda a)) is -beta (1 + lambda) s(-z) where a < 0: z = -.8, s(.8) = .6899745."""
    arguments = logps(FALLEN)
    chosen = arguments["policy_chosen_logps"].requires_grad_()
    checked["dpop"](**arguments, beta=0.1, lambda_dpop=5.0).sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-0.1 * 6 * 0.6899745], abs=1e-7)


def test_rpo_by_hand():
    """DPO's .4031860, and alpha .5 times 10 nats over 4 tokens: .5 * 2.5 = 1.25."""
    losses = value("rpo", PAIR, chosen_tokens=torch.tensor([4]), beta=0.1, alpha=0.5)
    assert losses == pytest.approx([1.6531860], abs=1e-7)


@pytest.mark.parametrize(("chosen", "rejected", "expected"), [(4, 10, 0.6443967), (10, 4, 0.2410084)])
def test_r_dpo_by_hand(chosen: int, rejected: int, expected: float):
    """Margin .7, alpha .1. A chosen answer 6 tokens shorter: -log s(.7 - .6) = log(1 + e^-.1) = .6443967, more to
    gain than DPO's .4031860; one 6 tokens longer: -log s(1.3) = .2410084 (log 1.2725318), less.
    """
    losses = value("r-dpo", PAIR, **lengths(chosen, rejected), beta=0.1, alpha=0.1)
    assert losses == pytest.approx([expected], abs=1e-6)


def prefixes(*values: float) -> dict[str, torch.Tensor]:
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    return {
        f"{name}_prefix_logps": torch.tensor([value], dtype=torch.float64)
        for name, value in zip(names, values, strict=True)
    }


def test_ld_dpo_by_hand():
    """The rejected answer is longer; its first tokens have -8 of -20 nats, under the reference -9 of -15.

    alpha .5: policy -8 - .5 * 12 = -14, reference -9 - .5 * 6 = -12, b = -2; a = 2 stays; margin 4:
    -log s(.4) = log(1 + e^-.4) = log 1.6703200 = .5130153.
    """
    losses = value("ld-dpo", PAIR, **prefixes(-10, -8, -12, -9), beta=0.1, alpha=0.5)
    assert losses == pytest.approx([0.5130153], abs=1e-7)


def test_ld_dpo_with_alpha_0_sees_the_first_tokens_only():
    """b = -8 - -9 = 1, a = 2: -log s(.1) = .6443967."""
    losses = value("ld-dpo", PAIR, **prefixes(-10, -8, -12, -9), beta=0.1, alpha=0.0)
    assert losses == pytest.approx([0.6443967], abs=1e-7)


def test_mappo_by_hand():
    """Scores 7 and 2 on a scale of 10: a factor of .5 on the rejected reward, DPO-Shift's .4932490 at f = .5."""
    losses = value("mappo", PAIR, **scores(7.0, 2.0), beta=0.1, score_range=10.0)
    assert losses == pytest.approx([0.4932490], abs=1e-7)


@pytest.mark.parametrize(("chosen", "rejected"), [(2.0, 3.0), (9.0, 1.0), (math.nan, 1.0)])
def test_mappo_refuses_gaps_outside_its_range(chosen: float, rejected: float):
    with pytest.raises(DpotoolError, match="a gap of the scores lies outside 0 to score_range"):
        value("mappo", PAIR, **scores(chosen, rejected), beta=0.1, score_range=5.0)


def test_bdpo_by_hand():
    """lambda .5, b = -5: log(.5 e^-5 + .5) = log .5033690 = -.6864318; .1 (2 + .6864318) = .2686432;
    log(1 + e^-.2686432) = log 1.7644159 = .5678200.
    """
    assert value("bdpo", PAIR, beta=0.1, lambda_bdpo=0.5) == pytest.approx([0.5678200], abs=1e-6)


def test_bdpo_gains_nothing_from_pushing_the_rejected_answer_to_the_end_of_the_world():
    """The rejected term never falls below log(1 - lambda), so the loss stays above -log s(beta (a - log(1 - lambda)))
    and its gradient there is none.
    """
    arguments = logps((-10.0, -1e6, -12.0, -15.0))
    rejected = arguments["policy_rejected_logps"].requires_grad_()
    losses = checked["bdpo"](**arguments, beta=0.1, lambda_bdpo=0.5)
    losses.sum().backward()
    assert rejected.grad is not None and rejected.grad.tolist() == [0.0]
    floor = -torch.nn.functional.logsigmoid(torch.tensor(0.1 * (2 - math.log(0.5)), dtype=torch.float64))
    assert losses.item() == pytest.approx(floor.item())


@given(rows, st.integers(1, 50), st.integers(1, 50), nats)
def test_where_each_is_dpo(row: Row, chosen: int, rejected: int, prefix: float):
    dpo = pytest.approx(value("dpo", row, beta=0.1), rel=1e-9, abs=1e-9)
    assert value("dpop", row, beta=0.1, lambda_dpop=0.0) == dpo
    assert value("rpo", row, chosen_tokens=torch.tensor([chosen]), beta=0.1, alpha=0.0) == dpo
    assert value("r-dpo", row, **lengths(chosen, rejected), beta=0.1, alpha=0.0) == dpo
    assert value("r-dpo", row, **lengths(chosen, chosen), beta=0.1, alpha=3.0) == dpo, "nothing to tell apart"
    assert value("ld-dpo", row, **prefixes(prefix, prefix, prefix, prefix), beta=0.1, alpha=1.0) == dpo
    assert value("ld-dpo", row, **prefixes(*row), beta=0.1, alpha=0.3) == dpo, "equally long completions"
    assert value("mappo", row, **scores(7.0, 2.0), beta=0.1, score_range=5.0) == dpo
    assert value("bdpo", row, beta=0.1, lambda_bdpo=1.0) == dpo


@given(rows, st.floats(0.05, 1.0))
def test_mappo_is_shift_with_the_gap_for_its_factor(row: Row, gap: float):
    shift = value("shift", row, beta=0.1, shift=gap)
    assert value("mappo", row, **scores(gap, 0.0), beta=0.1, score_range=1.0) == pytest.approx(shift)


@pytest.mark.parametrize("name", ["dpop", "bdpo"])
def test_huge_log_ratios_stay_finite(name: str):
    options = {"dpop": {"lambda_dpop": 50.0}, "bdpo": {"lambda_bdpo": 0.5}}[name]
    for row in ((-1e6, -1.0, -1.0, -1e6), (-1.0, -1e6, -1e6, -1.0)):
        assert math.isfinite(value(name, row, beta=0.1, **options)[0])

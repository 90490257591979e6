"""What the registry says of each loss, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dpotool.errors import DpotoolError
from dpotool.losses.registry import LOSSES, LossSpec, PairLogps, get_loss


@pytest.fixture
def pairs() -> PairLogps:
    numbers = ([-10.0], [-20.0], [-12.0], [-15.0], [4.0], [10.0], [5.0], [2.0])
    return PairLogps(*(torch.tensor(number, dtype=torch.float64) for number in numbers))


def test_the_losses_and_what_each_needs():
    assert {name: set(spec.needs) for name, spec in LOSSES.items()} == {
        "sft": set(),
        "dpo": {"reference"},
        "shift": {"reference"},
        "odpo": {"reference", "scores"},
        "ipo": {"reference", "lengths"},
        "hinge": {"reference"},
        "robust": {"reference"},
    }


def test_only_shift_takes_lambda_and_only_sft_divides_by_tokens_and_ignores_the_rejected():
    assert [name for name, spec in LOSSES.items() if spec.takes_lambda] == ["shift"]
    assert [name for name, spec in LOSSES.items() if spec.reduction == "chosen_tokens"] == ["sft"]
    assert [name for name, spec in LOSSES.items() if not spec.takes_rejected] == ["sft"]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_computes_with_its_defaults(name: str, pairs: PairLogps):
    spec = get_loss(name)
    losses = spec.compute(pairs, spec.resolve_options())
    assert losses.shape == (1,)
    assert losses.isfinite().all()


def test_defaults():
    assert {name: dict(spec.resolve_options()) for name, spec in LOSSES.items()} == {
        "sft": {},
        "dpo": {"beta": 0.1, "label_smoothing": 0.0},
        "shift": {"beta": 0.1},
        "odpo": {"beta": 0.1, "score_offset": "log", "alpha": 1.0},
        "ipo": {"beta": 0.1},
        "hinge": {"beta": 0.1},
        "robust": {"beta": 0.1, "label_smoothing": 0.1},
    }


def test_options_given_as_none_get_their_default():
    assert get_loss("dpo").resolve_options(beta=0.5, label_smoothing=None, alpha=None)["label_smoothing"] == 0.0


def test_shift_reaches_the_loss(pairs: PairLogps):
    """beta .1, a = 2, b = -5, f = .5: log(1 + e^-(.2 + .25)) = .4932490."""
    spec = get_loss("shift")
    assert spec.compute(pairs, spec.resolve_options(), shift=0.5).item() == pytest.approx(0.4932490, abs=1e-7)


def test_unknown_loss_lists_the_known_ones_and_the_nearest():
    with pytest.raises(DpotoolError) as error:
        get_loss("shfit")
    assert str(error.value) == (
        "--loss: unknown loss 'shfit'. Did you mean 'shift'? Known: dpo, hinge, ipo, odpo, robust, sft, shift"
    )


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("odpo", ["score_chosen", "score_rejected"], "loss 'odpo' needs score_chosen, and there are none"),
        ("dpo", ["reference_chosen_logps"], "Give a reference model with --reference"),
        ("ipo", ["rejected_tokens"], "loss 'ipo' needs rejected_tokens"),
        ("hinge", ["policy_rejected_logps"], "loss 'hinge' needs policy_rejected_logps"),
    ],
)
def test_missing_needs_are_named(name: str, fields: list[str], message: str, pairs: PairLogps):
    without = replace(pairs, **dict.fromkeys(fields))
    with pytest.raises(DpotoolError, match=message):
        get_loss(name).compute(without, get_loss(name).resolve_options())


@pytest.mark.parametrize("shift", [0.9, torch.ones(1)])
def test_a_shift_for_a_loss_without_one_is_refused(shift: float | torch.Tensor, pairs: PairLogps):
    with pytest.raises(DpotoolError) as error:
        get_loss("ipo").compute(pairs, get_loss("ipo").resolve_options(), shift)
    assert str(error.value) == "--lambda: loss 'ipo' has no lambda. Losses that have one: shift"


def test_refuse_lambda_names_the_flag_that_was_given():
    get_loss("shift").refuse_lambda("--lambda-schedule")
    with pytest.raises(DpotoolError, match=r"^--lambda-schedule: loss 'dpo' has no lambda"):
        get_loss("dpo").refuse_lambda("--lambda-schedule")


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("dpo", "beta", 0.0, "--beta: not a usable beta; expected a number, 0 < beta, got 0.0"),
        (
            "dpo",
            "label_smoothing",
            0.6,
            "--label-smoothing: not a usable label_smoothing; expected a number, 0 <= label_smoothing <= 0.5, got 0.6",
        ),
        (
            "robust",
            "label_smoothing",
            0.5,
            "--label-smoothing: not a usable label_smoothing; expected a number, 0 <= label_smoothing < 0.5, got 0.5",
        ),
        ("ipo", "label_smoothing", 0.1, "--label-smoothing: loss 'ipo' has no such option. It takes --beta"),
        ("sft", "beta", 0.1, "--beta: loss 'sft' has no such option. It takes no options"),
        (
            "odpo",
            "score_offset",
            "ration",
            "--score-offset: unknown score_offset 'ration'. Did you mean 'ratio'? Known: log, ratio, raw",
        ),
    ],
)
def test_options_out_of_range_name_their_flag(name: str, option: str, value: float | str, message: str):
    with pytest.raises(DpotoolError) as error:
        get_loss(name).resolve_options(**{option: value})
    assert str(error.value) == message


def test_a_new_loss_is_a_function_and_a_registration(pairs: PairLogps):
    def compute_length_gap(chosen_tokens: torch.Tensor, rejected_tokens: torch.Tensor, *, shift: float) -> torch.Tensor:
        return chosen_tokens - shift * rejected_tokens

    spec = LossSpec("length-gap", compute_length_gap, "tokens", "this test")
    assert spec.needs == {"lengths"}
    assert spec.takes_lambda
    assert spec.compute(pairs, spec.resolve_options(), shift=0.5).tolist() == [4.0 - 0.5 * 10.0]

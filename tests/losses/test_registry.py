"""What the registry says of each loss, and what it refuses."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from dpotool.errors import DpotoolError
from dpotool.losses.registry import LOSSES, get_loss, register_loss
from dpotool.losses.spec import LossSpec, PairLogps


@pytest.fixture
def pairs() -> PairLogps:
    numbers = ([-10.0], [-20.0], [-12.0], [-15.0], [4.0], [10.0], [5.0], [2.0], [-10.0], [-8.0], [-12.0], [-9.0])
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
        "dpop": {"reference"},
        "rpo": {"reference", "lengths"},
        "r-dpo": {"reference", "lengths"},
        "ld-dpo": {"reference", "tokens"},
        "mappo": {"reference", "scores"},
        "bdpo": {"reference"},
        "cal-dpo": {"reference"},
        "apo-zero": {"reference"},
        "apo-down": {"reference"},
        "nca": {"reference"},
        "sppo": {"reference"},
        "simpo": {"lengths"},
        "cpo": set(),
        "orpo": {"lengths"},
    }


def test_only_shift_takes_lambda_and_only_sft_divides_by_tokens_and_ignores_the_rejected():
    assert [name for name, spec in LOSSES.items() if spec.takes_lambda] == ["shift"]
    assert [name for name, spec in LOSSES.items() if spec.reduction == "chosen_tokens"] == ["sft"]
    assert [name for name, spec in LOSSES.items() if not spec.takes_rejected] == ["sft"]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_computes_with_its_defaults(name: str, pairs: PairLogps):
    """And its function takes what its entry declares, or `function` would refuse it."""
    spec = get_loss(name)
    losses = spec.compute(pairs, spec.resolve_options())
    assert losses.shape == (1,)
    assert losses.isfinite().all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_has_a_gradient_that_is_right_in_float64(name: str, pairs: PairLogps):
    spec = get_loss(name)
    one, other = pairs, [-31.0, -12.5, -30.0, -14.0, 7.0, 3.0, 4.0, 1.0, -13.0, -12.5, -14.0, -14.0]
    both = {
        field.name: torch.cat([getattr(one, field.name), torch.tensor([value], dtype=torch.float64)])
        for field, value in zip(fields(PairLogps), other, strict=True)
    }
    names = [name for name in spec.inputs if name.endswith("_logps")]

    def losses(*values: torch.Tensor) -> torch.Tensor:
        changed = replace(PairLogps(**both), **dict(zip(names, values, strict=True)))
        return spec.compute(changed, spec.resolve_options(), **({"shift": 0.9} if spec.takes_lambda else {}))

    inputs = [both[name].clone().requires_grad_() for name in names]
    assert losses(*inputs).dtype == torch.float64
    assert torch.autograd.gradcheck(losses, inputs)


def test_defaults():
    defaults = {name: dict(spec.resolve_options()) for name, spec in LOSSES.items()}
    assert all(defaults[name].pop("sft_weight") == 0.0 for name in LOSSES if name != "sft")
    assert defaults == {
        "sft": {},
        "dpo": {"beta": 0.1, "label_smoothing": 0.0},
        "shift": {"beta": 0.1},
        "odpo": {"beta": 0.1, "score_offset": "log", "alpha": 1.0},
        "ipo": {"beta": 0.1},
        "hinge": {"beta": 0.1},
        "robust": {"beta": 0.1, "label_smoothing": 0.1},
        "dpop": {"beta": 0.1, "lambda_dpop": 50.0},
        "rpo": {"beta": 0.1, "alpha": 1.0},
        "r-dpo": {"beta": 0.1, "alpha": 0.01},
        "ld-dpo": {"beta": 0.1, "alpha": 0.5},
        "mappo": {"beta": 0.1, "score_range": 10.0},
        "bdpo": {"beta": 0.1, "lambda_bdpo": 0.5},
        "cal-dpo": {"beta": 0.1},
        "apo-zero": {"beta": 0.1},
        "apo-down": {"beta": 0.1},
        "nca": {"beta": 0.1},
        "sppo": {"beta": 0.1},
        "simpo": {"beta": 2.0, "gamma_simpo": 1.0},
        "cpo": {"beta": 0.1, "alpha": 1.0},
        "orpo": {"lambda_orpo": 0.1},
    }


def test_an_sft_term_adds_the_chosen_answers_nats_per_token(pairs: PairLogps):
    """10 nats over 4 tokens, .5 times: 1.25 more, whatever the loss; so DPO with it is RPO."""
    for name in set(LOSSES) - {"sft"}:
        spec = get_loss(name)
        plain, more = (spec.compute(pairs, spec.resolve_options(sft_weight=weight)) for weight in (0.0, 0.5))
        assert (more - plain).tolist() == pytest.approx([1.25])
    rpo = get_loss("rpo").compute(pairs, get_loss("rpo").resolve_options(alpha=0.5))
    assert get_loss("dpo").compute(pairs, get_loss("dpo").resolve_options(sft_weight=0.5)).tolist() == rpo.tolist()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_numbers_that_would_be_stretched_to_fit_are_refused(name: str, pairs: PairLogps):
    """(2, 1) beside (2,) would broadcast to a loss of 2 x 2, and (1,) beside (2,) to one of two pairs."""
    spec = get_loss(name)
    double = PairLogps(**{field.name: getattr(pairs, field.name).repeat(2) for field in fields(PairLogps)})
    options = spec.resolve_options()
    column = replace(double, policy_chosen_logps=double.policy_chosen_logps[:, None])
    with pytest.raises(DpotoolError, match=rf"loss '{name}': policy_chosen_logps must hold one number per pair; exp"):
        spec.compute(column, options)
    if len(spec.inputs) > 1:
        short = replace(double, policy_chosen_logps=pairs.policy_chosen_logps)
        with pytest.raises(DpotoolError, match="another number of pairs"):
            spec.compute(short, options)


def test_a_shift_for_each_pair_must_be_one_for_each_pair(pairs: PairLogps):
    with pytest.raises(DpotoolError, match=r"loss 'shift': shift is of another number of pairs; expected \(1,\)"):
        get_loss("shift").compute(pairs, get_loss("shift").resolve_options(), torch.ones(2))


@pytest.mark.parametrize(
    ("name", "known"), [("sigmoid", "dpo"), ("apo_zero", "apo-zero"), ("nca_pair", "nca"), ("DPO", "dpo")]
)
def test_other_tools_names_are_understood(name: str, known: str):
    assert get_loss(name).name == known


def test_options_given_as_none_get_their_default():
    assert get_loss("dpo").resolve_options(beta=0.5, label_smoothing=None, alpha=None)["label_smoothing"] == 0.0


def test_shift_reaches_the_loss(pairs: PairLogps):
    """beta .1, a = 2, b = -5, f = .5: log(1 + e^-(.2 + .25)) = .4932490."""
    spec = get_loss("shift")
    assert spec.compute(pairs, spec.resolve_options(), shift=0.5).item() == pytest.approx(0.4932490, abs=1e-7)


def test_unknown_loss_lists_the_known_ones_and_the_nearest():
    with pytest.raises(DpotoolError) as error:
        get_loss("shfit")
    assert str(error.value).startswith(
        "--loss: unknown loss 'shfit'. Did you mean 'shift'? Known: apo-down, apo-zero, "
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
    assert str(error.value) == (
        "--lambda: loss 'ipo' has no lambda. "
        "Lambda is the shift factor of --loss shift; leave it out, or choose that loss"
    )


def test_refuse_lambda_names_the_flag_that_was_given():
    get_loss("shift").refuse_lambda("--lambda-schedule")
    with pytest.raises(DpotoolError, match=r"^--lambda-schedule: loss 'dpo' has no lambda"):
        get_loss("dpo").refuse_lambda("--lambda-schedule")
    with pytest.raises(DpotoolError, match=r"loss 'dpop' has no lambda, but --lambda-dpop\."):
        get_loss("dpop").refuse_lambda()


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("dpo", "beta", 0.0, "--beta: not a usable beta; expected a number, 1e-06 <= beta <= 1000, got 0.0"),
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
        (
            "ipo",
            "label_smoothing",
            0.1,
            "--label-smoothing: loss 'ipo' has no such option. It takes --beta, --sft-weight",
        ),
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


def compute_length_gap(chosen_tokens: torch.Tensor, rejected_tokens: torch.Tensor, *, shift: float) -> torch.Tensor:
    return chosen_tokens - shift * rejected_tokens


def describe_length_gap(**changes: object) -> LossSpec:
    known = {"needs": frozenset({"lengths"}), "takes_rejected": False, "takes_lambda": True}
    return LossSpec("length-gap", compute_length_gap, "about", "tokens", "y", "this test", **(known | changes))


def test_a_new_loss_is_a_function_and_an_entry(pairs: PairLogps):
    spec = describe_length_gap()
    assert spec.compute(pairs, spec.resolve_options(), shift=0.5).tolist() == [4.0 - 0.5 * 10.0]


def test_an_entry_that_does_not_describe_its_function_is_refused():
    with pytest.raises(TypeError, match=r"loss 'length-gap' declares .* and its function takes"):
        _ = describe_length_gap(takes_lambda=False).function


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="there is a loss named sigmoid already"):
        register_loss(describe_length_gap(aliases=("sigmoid",)))

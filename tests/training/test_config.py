"""Settings say what they accept: numbers in a range, sub-options with their switch, options with their loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest

from dpotool.errors import DpotoolError
from dpotool.settings import answers, reading, scoring
from dpotool.settings.fields import Settings
from dpotool.sweep.config import SweepConfig
from dpotool.training.config import TrainConfig, check_config, fill_in
from dpotool.training.objective import build_objective, record_settings

NUMBERS = ("learning_rate", "epochs", "weight_decay", "max_grad_norm", "beta", "sft_weight", "warmup_ratio")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1.0, 1e30, 1e300])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_no_run_can_use_are_refused_in_one_line(name: str, value: float) -> None:
    with pytest.raises(DpotoolError) as error:
        TrainConfig(**{name: value})
    flag = "--" + name.replace("_", "-")
    assert str(error.value).startswith(f"{flag}: not a usable {name}; expected a number, ")
    assert str(error.value).endswith(f", got {value}")


CHECKED_WITH_OTHERS = {"lambda_", "lambda_min", "lambda_max", "check_at"}
"""Of a training or sweep, whose loss or grid says what they may be."""


def list_numbers(*modules: Any) -> Iterator[tuple[type[Settings], str, bool]]:
    """Settings, name of a number among them, and whether it may be a fraction."""
    found = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    for settings in {each for each in found if issubclass(each, Settings)} | {TrainConfig, SweepConfig}:
        hints = get_type_hints(settings)
        for name in {about.name for about in fields(settings)}:
            kinds = {*get_args(hints[name]), hints[name]}
            is_checked_later = name in CHECKED_WITH_OTHERS and issubclass(settings, TrainConfig | SweepConfig)
            if kinds & {int, float} and not is_checked_later:
                yield settings, name, float in kinds


def test_every_number_that_a_command_can_be_told_is_refused_where_it_makes_no_sense() -> None:
    numbers = list(list_numbers(answers, reading, scoring))
    assert {"test_fraction", "timeout", "top_p", "gamma", "older_than", "keep"} <= {name for _, name, _ in numbers}
    for settings, name, is_fraction in numbers:
        for value in (float("nan"), float("inf"), -1.0, 1e300) if is_fraction else (-1, 10**30):
            with pytest.raises(DpotoolError, match=f"^--{name.strip('_').replace('_', '-')}: "):
                settings(**{name: value})


@pytest.mark.parametrize("name", ["batch_size", "gradient_accumulation", "max_steps", "eval_steps", "limit", "lora_r"])
@pytest.mark.parametrize("value", [0, -3, 10**30])
def test_counts_begin_at_one_and_end_somewhere(name: str, value: int) -> None:
    with pytest.raises(DpotoolError, match=rf"not a usable {name}; expected a number, 1 <= {name} <= "):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora_r": 8}, "--lora-r: has no effect without --lora. Add --lora, or leave it out"),
        ({"lora_r": 16}, "--lora-r: has no effect without --lora."),
        ({"lora_targets": "q_proj"}, "--lora-targets: has no effect without --lora."),
        ({"save_total_limit": 2}, "--save-total-limit: has no effect without --save-steps."),
        ({"save_at": "5,130%"}, "--save-at: not a list of steps; expected e.g. 5,10,20 or 25%,50%, got '5,130%'"),
    ],
)
def test_a_setting_without_its_switch_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DpotoolError) as error:
        check_config(TrainConfig(**given))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lambda_": 0.9}, "--lambda: loss 'dpo' has no lambda. Lambda is the shift factor of --loss shift"),
        ({"lambda_min": 0.9}, "--lambda-min: loss 'dpo' has no lambda"),
        ({"allow_lambda_above_one": True}, "--allow-lambda-above-one: loss 'dpo' has no lambda"),
        ({"theory": "t.parquet"}, "--theory: loss 'dpo' has no lambda"),
        ({"loss": "dpop", "lambda_": 5.0}, "--lambda: loss 'dpop' has no lambda, but --lambda-dpop."),
        ({"loss": "shift", "lambda_min": 0.9}, "--lambda-min: schedule 'constant' does not use it."),
        ({"loss": "shift", "theory": "t"}, "--theory: only per-pair lambda uses it. Add --lambda-schedule adaptive"),
        (
            {"loss": "simpo", "loss_options": {"alpha": 1.0}},
            "--alpha: loss 'simpo' has no such option. It takes --beta, --gamma-simpo, --sft-weight",
        ),
        ({"loss": "sft", "sft_weight": 1.0}, "--sft-weight: loss 'sft' has no such option. It takes no options"),
        ({"loss": "simpo", "monitor_theory": True}, "--monitor-theory: loss 'simpo' does not weigh two whole"),
        ({"loss": "ld-dpo", "monitor_theory": True}, "--monitor-theory: loss 'ld-dpo' does not weigh two whole"),
    ],
)
def test_what_a_loss_does_not_have_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DpotoolError) as error:
        build_objective(TrainConfig(**given))
    assert str(error.value).startswith(message)


def test_a_run_yaml_holds_the_options_of_its_loss_and_is_read_again() -> None:
    config = fill_in(TrainConfig(loss="dpop", loss_options={"lambda_dpop": 5.0}, lora=True, lora_r=4))
    recorded = record_settings(config, build_objective(config))
    assert (recorded["beta"], recorded["sft_weight"], recorded["lambda_dpop"]) == (0.1, 0.0, 5.0)
    assert "loss_options" not in recorded and "gamma_simpo" not in recorded
    again = TrainConfig.read(recorded)
    assert again.loss_options == {"lambda_dpop": 5.0} and again.lora_r == 4
    check_config(again)
    assert record_settings(fill_in(again), build_objective(again)) == recorded


def test_a_run_yaml_of_an_older_version_is_read() -> None:
    """It held every option of every loss, and those of an adapter that there was not."""
    older = {"loss": "odpo", "alpha": 0.5, "score_offset": "raw", "label_smoothing": None, "lora": False, "lora_r": 16}
    config = TrainConfig.read(older)
    check_config(config)
    assert config.loss_options == {"alpha": 0.5, "score_offset": "raw"}
    assert config.lora_r is None


def test_another_tools_name_for_a_loss_is_recorded_as_ours() -> None:
    assert fill_in(TrainConfig(loss="nca_pair")).loss == "nca"

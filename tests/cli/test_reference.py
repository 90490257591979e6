"""The reference page says what the commands say, and says it the same way on every terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from dpotool.cli.app import app
from dpotool.cli.config_file import read_config
from dpotool.cli.kinds import complete_kinds
from dpotool.cli.reference import write_reference
from dpotool.losses import registry
from dpotool.losses.options import NumberOption
from dpotool.losses.page import write_table
from dpotool.losses.registry import LOSSES, register_loss
from dpotool.losses.spec import LossSpec
from dpotool.settings.fields import flag_of
from dpotool.sweep.config import SweepConfig
from dpotool.sweep.plan import plan_cells
from dpotool.training.config import LOSS_KINDS, TrainConfig
from dpotool.training.objective import build_objective

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == write_reference(), "run `make docs`"


@pytest.mark.parametrize("columns", ["40", "300"])
def test_the_page_does_not_depend_on_the_terminal(columns: str) -> None:
    environment = os.environ | {"COLUMNS": columns, "TERM": "xterm-256color", "FORCE_COLOR": "1"}
    words = [sys.executable, "-m", "dpotool.cli.reference"]
    result = subprocess.run(words, capture_output=True, env=environment, check=True)
    assert result.stdout.decode() == write_reference()


def test_every_command_and_every_setting_is_there() -> None:
    page = write_reference()
    for command in app.registered_commands:
        assert f"## dpotool {command.name}\n" in page
    for flag in ("--lambda`", "--data`", "--lora-targets`", "--config`", "--json`", "--tokens`", "--gamma`"):
        assert flag in page
    assert "| `KIND` | text | required |" in page
    assert "| `[RUNS...]` | text, repeated | – |" in page
    assert "| `--seed` | integer | `42` |" in page
    assert "| `--lora` | flag | off |" in page
    assert "Example: `dpotool train --loss shift --lambda 0.9`" in page


def test_a_small_command_line_by_hand() -> None:
    """Panels in the order they come up, a bar and an angle bracket that would break a table, and no stray option."""
    cli = typer.Typer(name="pour")

    @cli.command("tea", epilog="Example: pour tea --cups 2")
    def tea(
        cups: int = typer.Option(1, "--cups", help="How many: 1|2."),
        to: str = typer.Option(None, "--to", help="Who gets <it>.", rich_help_panel="Guests"),
    ) -> None:
        """Pour tea."""

    @cli.command("out")
    def out() -> None:
        """Pour out."""

    page = write_reference(cli)
    expected = """\
## pour tea

Pour tea.

    pour tea [OPTIONS]

Example: `pour tea --cups 2`

### Options

| option | type | default | |
|---|---|---|---|
| `--cups` | integer | `1` | How many: 1\\|2. |

### Guests

| option | type | default | |
|---|---|---|---|
| `--to` | text | – | Who gets &lt;it&gt;. |

## pour out

Pour out.

    pour out [OPTIONS]
"""
    assert page.endswith(expected)


@pytest.mark.parametrize("columns", ["80", "200"])
def test_help_screens_show_brackets_and_every_default(columns: str) -> None:
    result = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": columns, "TERM": "dumb"})
    screen = " ".join(result.output.replace("│", " ").split())
    assert "dpotool[peft]" in screen and "dpotool[bnb]" in screen
    assert "Weight decay. [default: 0.0]" in screen
    assert "Learning-rate schedule, by its name in transformers. [default: cosine]" in screen
    assert "--no-lora" not in screen, "a column of its own would squeeze the texts"


def test_every_loss_is_listed_with_its_options_and_their_defaults() -> None:
    page = write_reference()
    for name, spec in LOSSES.items():
        assert f"| `{name}` | {spec.about} |" in page
        for option in spec.options:
            if option.name != "beta":
                row = next(line for line in page.splitlines() if line.startswith(f"| `{flag_of(option.name)}` "))
                assert f"{name}: {option.help} (default {option.default_text})" in row


@pytest.mark.parametrize("words", [["--loss", "simpo", "--help"], ["--help", "--loss=simpo"]])
def test_help_of_a_loss_shows_its_options_and_no_others(words: list[str]) -> None:
    result = CliRunner().invoke(app, ["train", *words], env={"COLUMNS": "120", "TERM": "dumb"})
    screen = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 0
    assert "--gamma-simpo" in screen and "the paper takes 2 to 2.5. [default: 2]" in screen
    assert LOSSES["simpo"].formula in screen and "arXiv:2405.14734" in screen
    for other in ("--lambda-min", "--alpha ", "--lambda-dpop", "--label-smoothing", "Losses"):
        assert other not in screen
    assert screen.count("--beta ") == screen.count("--sft-weight ") == 1


def test_help_of_shift_has_lambda_and_of_sft_neither_beta_nor_lambda() -> None:
    def show(loss: str) -> str:
        return CliRunner().invoke(app, ["train", "--loss", loss, "--help"], env={"COLUMNS": "120"}).output

    assert "--lambda " in show("shift") and "--lambda-schedule" in show("shift")
    assert not any(flag in show("sft") for flag in ("--lambda-min", "--beta ", "--sft-weight "))


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["train", "--lr", "1e-3"], "--learning-rate"),
        (["train", "--use-peft"], "--lora"),
        (["train", "--num-train-epochs", "2"], "--epochs"),
        (["sweep", "--output-dir", "x"], "--output"),
        (["train", "--label-smoothin", "1"], "--label-smoothing"),
    ],
)
def test_other_tools_names_are_answered_with_ours(words: list[str], meant: str) -> None:
    result = CliRunner().invoke(app, words, env={"COLUMNS": "120"})
    assert result.exit_code == 2
    assert f"(Possible options: {meant})" in result.output


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["train", "--load-in-4bit"], "name a model that is quantised already, or train with --lora"),
        (["score", "--model", "m"], "MODELS is given without an option's name"),
    ],
)
def test_what_has_no_option_is_answered_with_what_to_do(words: list[str], instead: str) -> None:
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert instead in result.output and "Possible options" not in result.output


def test_losses_are_completed() -> None:
    complete = complete_kinds(LOSS_KINDS)
    assert complete("sim") == [("simpo", LOSSES["simpo"].about)]
    assert [name for name, _ in complete("dpo,apo")] == ["dpo,apo-zero", "dpo,apo-down"]


def compute_far_losses(policy_chosen_logps: Any, policy_rejected_logps: Any, *, reach: float) -> Any:
    return reach - (policy_chosen_logps - policy_rejected_logps)


def test_a_loss_from_outside_is_in_help_sweep_docs_and_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One function and one entry, as another package would have them."""
    spec = LossSpec(
        "far",
        compute_far_losses,
        "Pushes answers apart without end.",
        "reach - (log pi(chosen) - log pi(rejected))",
        "r - (x - y)",
        "this test",
        needs=frozenset(),
        options=(NumberOption("reach", 7.0, "how far", 0.0, 10.0),),
    )
    monkeypatch.setattr(registry, "LOSSES", dict(LOSSES))
    register_loss(spec)
    listing = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "120"}).output
    assert "Pushes answers apart without end." in listing and "--reach" in listing
    assert "How far. [default: 7]" in CliRunner().invoke(app, ["train", "--loss", "far", "--help"]).output
    page = write_reference()
    assert "| `far` | Pushes answers apart without end. |" in page and "| `--reach` | number |" in page
    assert "| `far` | $r - (x - y)$ | `--reach` (7)" in write_table(registry.LOSSES.values())
    [five, nine] = plan_cells(SweepConfig(lambdas="", grid="far.reach=5,9"), tmp_path)
    assert (five.name, nine.config.loss_options) == ("far-reach-5", {"reach": 9.0})
    assert "far" in [cell.name for cell in plan_cells(SweepConfig(losses="all"), tmp_path)]
    path = tmp_path / "settings.yaml"
    path.write_text("loss: far\nreach: 3\n")
    assert read_config(path, TrainConfig) == {"loss": "far", "reach": 3}
    assert build_objective(TrainConfig.read({"loss": "far", "reach": 3.0})).options["reach"] == 3.0

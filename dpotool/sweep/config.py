"""The settings of `dpotool sweep`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.losses.page import describe_losses, explain_loss
from dpotool.settings.fields import COUNT, Kinds, ScreenSettings, setting
from dpotool.training.config import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class SweepConfig(ScreenSettings, TrainingSettings):
    """Settings of a sweep: those of every run in it, and the grid."""

    output: str | None = setting(
        None, "Folder of the sweep. The default is a name made from the settings.", near=("output_dir",)
    )
    lambdas: str = setting("0.5,0.75,0.9,0.95,1.0", "Fixed lambdas, separated by commas. 1.0 is DPO.", panel="Grid")
    schedules: str = setting(
        "",
        "Lambda schedules to train as well, separated by commas: linear_increase, linear_decrease, adaptive.",
        panel="Grid",
    )
    adaptive_rule: str | None = setting(
        None,
        "Rules of the adaptive schedule, separated by commas: sign, band. Each is one run. The default is sign.",
        panel="Grid",
    )
    theory: str | None = setting(
        None,
        "Theory table of the training pairs, from `dpotool theory-gap --split train`. The adaptive schedule needs it.",
        panel="Grid",
    )
    losses: str = setting(
        "",
        "Other losses to train as well, with their default options: names from the list below, separated by "
        "commas, or all.",
        panel="Grid",
        kinds=Kinds(describe_losses, title="Losses", explain=explain_loss),
    )
    grid: str = setting(
        "",
        "Options of losses to vary; each value is one run. Write LOSS.OPTION=VALUE,VALUE, separated by spaces, for "
        "example 'dpop.lambda_dpop=5,50 simpo.beta=2,2.5'.",
        panel="Grid",
    )
    blend: bool = setting(
        False,
        "Train only the largest and the smallest of --lambdas. The others become blends of the two models, which cost "
        "one scoring each (docs/blend.md).",
        panel="Grid",
    )
    check_at: float | None = setting(
        None,
        "Train this lambda too, and say how far the blend at it is from the trained run.",
        panel="Grid",
        switch="blend",
    )
    seeds: int = setting(
        1,
        "Train everything this many times, with --seed, --seed + 1 and so on, to get intervals over training as well.",
        panel="Grid",
        range=COUNT,
    )
    dry_run: bool = setting(False, "Only show what would be trained and what it would cost.", panel="Grid")
    controls: bool = setting(
        True,
        "Also score DPO scaled back and DPO stopped early, which every remedy has to beat. This saves checkpoints of "
        "DPO at a quarter, half and three quarters of its steps. --no-controls skips this.",
        panel="Grid",
    )
    jobs: int = setting(
        1,
        "Number of runs trained at the same time, each in its own process. The GPUs are shared out among them.",
        panel="Grid",
        range=COUNT,
    )


GRID = ("lambdas", "schedules", "adaptive_rule", "losses", "grid", "seeds")
"""What may grow between two calls of one sweep: finished cells stay."""
ONCE = ("theory",)
"""What may be added to a sweep that has none, and then stays."""
NOT_SETTINGS = (
    "output",
    "dry_run",
    "jobs",
    "batch_tokens",
    "layout",
    "trust_remote_code",
    "controls",
    "save_at",
    "blend",
    "check_at",
)
"""What says where and how, or is for each call to allow, and changes no number."""

"""What `dpotool sweep` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.settings import Kinds, setting
from dpotool.training.config import TrainingSettings, describe_losses, explain_loss


@dataclass(frozen=True, kw_only=True)
class SweepConfig(TrainingSettings):
    """Settings of a sweep: those of every run in it, and the grid."""

    output: str | None = setting(
        None, "Sweep folder; without it one whose name follows from the settings.", near=("output_dir",)
    )
    lambdas: str = setting("0.5,0.75,0.9,0.95,1.0", "Fixed shift factors, comma-separated; 1.0 is DPO.", panel="Grid")
    schedules: str = setting(
        "", "Schedules to train too, comma-separated: linear_increase, linear_decrease, adaptive.", panel="Grid"
    )
    adaptive_rule: str | None = setting(
        None,
        "Rules of the adaptive schedule, comma-separated: sign, band; a cell for each, without it sign.",
        panel="Grid",
    )
    theory: str | None = setting(
        None, "Theory table of the training pairs (`dpotool theory-gap --split train`), for adaptive.", panel="Grid"
    )
    losses: str = setting(
        "",
        "Other losses to train too, at their defaults: some of the list below, comma-separated, or all.",
        panel="Grid",
        kinds=Kinds(describe_losses, title="Losses", explain=explain_loss),
    )
    grid: str = setting(
        "",
        "Values of losses' options to train with, each a run: LOSS.OPTION=VALUE,VALUE and so on, separated by spaces, "
        "e.g. 'dpop.lambda_dpop=5,50 simpo.beta=2,2.5'.",
        panel="Grid",
    )
    seeds: int = setting(
        1, "Train every cell this many times, with --seed, --seed + 1, ...: intervals over training too.", panel="Grid"
    )
    dry_run: bool = setting(False, "Only show what would be trained and what it costs.", panel="Grid")
    jobs: int = setting(
        1, "Cells trained at a time, each in a process of its own; GPUs are dealt out in turn.", panel="Grid"
    )


GRID = ("lambdas", "schedules", "adaptive_rule", "losses", "grid", "seeds")
"""What may grow between two calls of one sweep: finished cells stay."""
ONCE = ("theory",)
"""What may be added to a sweep that has none, and then stays."""
NOT_SETTINGS = ("output", "dry_run", "jobs", "batch_tokens", "layout", "trust_remote_code")
"""What says where and how, or is for each call to allow, and changes no number."""

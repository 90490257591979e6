"""`dpotool train`."""

from __future__ import annotations

import typer

from dpotool.cli.console import Console, show_dry_run
from dpotool.cli.verbs import add_verb
from dpotool.training.config import TrainConfig


def register(app: typer.Typer) -> None:
    """Adds the command."""
    add_verb(app, "train", TrainConfig, epilog="Example: dpotool train --loss shift --lambda 0.9")(run)


def run(config: TrainConfig, console: Console) -> None:
    """Train a model on preference pairs with DPO, DPO-Shift or another loss. The run folder is a checkpoint."""
    from dpotool.training.run import train

    if config.dry_run:
        from dpotool.estimates.training import plan_training

        (estimate,) = show_dry_run(lambda: [plan_training(config, progress=console)], console)
        console.finish(estimate)
        return
    result = train(config, progress=console)
    rows = result.folder.read_metrics()
    last = {name: value for row in rows for name, value in row.items()}
    if result.was_interrupted:
        console.say(
            f"Interrupted; the work is saved. Continue with: dpotool train --resume --output {result.folder.path}"
        )
    else:
        console.answer(*say_change(last))
        console.table(*summarize_training(result.folder.name, last))
        console.say(f"run folder: {result.folder.path}")
        console.say(f"Next: dpotool score {result.folder.path}")
    status = "interrupted" if result.was_interrupted else "finished"
    console.finish({"run": str(result.folder.path), "status": status, "metrics": last})
    if result.was_interrupted:
        raise typer.Exit(130)


def say_change(last: dict[str, float]) -> list[str]:
    """Says by how much the chosen answers' likelihood changed, of the last evaluation or else of the last steps."""
    prefix = "eval_" if "eval_displacement/chosen" in last else ""
    change = last.get(f"{prefix}displacement/chosen")
    if change is None:
        return []
    pairs = "evaluation pairs" if prefix else "pairs of the last steps"
    size = f"{abs(change):.2g}"
    if float(size) == 0:
        return [f"On the {pairs}, the chosen answers are as likely as under the reference."]
    direction = "more" if change > 0 else "less"
    return [f"On the {pairs}, the chosen answers are {size} nats {direction} likely than under the reference."]


def summarize_training(name: str, last: dict[str, float]) -> tuple[str, list[str], list[list[str]]]:
    """Returns title, columns and rows of the table shown after training."""
    shown = {
        "loss": "loss",
        "logps/chosen": "log pi(chosen), nats",
        "logps/rejected": "log pi(rejected), nats",
        "displacement/chosen": "change of log pi(chosen), nats",
        "rewards/margins": "reward margin",
        "rewards/accuracies": "reward accuracy",
    }
    rows = [
        [label, *(f"{last[key]:z.4g}" if key in last else "-" for key in (name_, f"eval_{name_}"))]
        for name_, label in shown.items()
        if name_ in last or f"eval_{name_}" in last
    ]
    return f"{name}, step {int(last['step'])}", ["mean over pairs", "last steps", "evaluation"], rows

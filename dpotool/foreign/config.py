"""What `dpotool import` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class ImportConfig(Settings):
    """Settings of one import."""

    kind: str | None = setting(
        None,
        "Kind of file: trl, tensorboard, wandb, trackio, llama-factory, reward-bench or tensors. The "
        "default follows its name.",
    )
    output: str | None = setting(None, "Folder to write to. The default is runs/<name of the file or of its folder>.")
    run: str | None = setting(None, "Run to read from a trackio database that holds several.")
    beta: float | None = setting(
        None, "Beta of that training: TRL's rewards become displacement, reward-bench's log-ratios rewards."
    )
    loss: str | None = setting(None, "Loss that was trained with, for labels: dpo, shift, ipo, ...")
    lambda_: float | None = setting(None, "Its lambda, for labels and axes; with --loss shift.", flag="--lambda")
    data: str | None = setting(None, "Name of the pairs. The default is the name of the file.")
    split: str = setting("test", "Name of their split.")

"""The settings of the commands that read runs or pairs: compare, plot, report, import, filter, validate, cache."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.settings.fields import BETA, COUNT, COUNT_OR_NONE, LAMBDA, SEED, Range, ScreenSettings, Settings, setting
from dpotool.settings.shared import ComputeSettings, DataSettings


@dataclass(frozen=True, kw_only=True)
class ScoresSettings(Settings):
    """Which of a run's score tables is read."""

    data: str | None = setting(
        None,
        "Use the scores on this data, if a run has several. The default is the data it was evaluated on, "
        "else the newest.",
    )
    split: str | None = setting(None, "Use the scores on this split.")
    limit: int | None = setting(None, "Use the scores on the first N rows, if a run has them.", range=COUNT)


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ScreenSettings, ScoresSettings):
    """Settings of a comparison."""

    baseline: str | None = setting(
        None,
        "Run to compare the others with, by label, folder name or path. The default is the last one of several "
        "checkpoints of one run, else the first DPO run, else the first run.",
    )
    delta: float = setting(
        3.0,
        "Recommend a run only if a loss of this many points of reward accuracy is ruled out.",
        range=Range(0, 100, includes_low=False, includes_high=False),
    )
    margin_share: float = setting(
        0.5, "Recommend a run only if its mean margin is at least this share of the baseline's.", range=Range(0, 1)
    )
    format: str = setting("table", "Format of the output: table, csv, markdown or latex.")
    seed: int = setting(0, "Seed of the bootstrap and the permutation tests.", range=SEED)


@dataclass(frozen=True, kw_only=True)
class PlotConfig(ScoresSettings):
    """Settings of pictures."""

    y: str | None = setting(
        None, "What `tradeoff` draws against the likelihood: accuracy, margin or win-rate. The default is accuracy."
    )
    pair: int | None = setting(
        None,
        "Which pair `tokens` shows, by its pair_id. The default is the one whose chosen answer fell most.",
        range=COUNT_OR_NONE,
    )
    format: str = setting("png", "Format of the pictures: png, pdf or svg, or several, separated by commas.")
    output: str | None = setting(None, "Folder for the pictures. The default is plots/ in the run or sweep folder.")


@dataclass(frozen=True, kw_only=True)
class ReportConfig(ScoresSettings):
    """Settings of a report."""

    output: str | None = setting(
        None,
        "File to write. The default is report.html (or .md) in the first folder. A Markdown page has its "
        "pictures beside it.",
        flag="--output,-o",
    )
    format: str | None = setting(
        None, "Format of the page: html or markdown. The default follows the output's ending, else html."
    )
    baseline: str | None = setting(
        None,
        "Run to compare the others with, by label, folder name or path. The default is the last one of several "
        "checkpoints of one run, else the first DPO run, else the first run.",
    )
    pairs: int = setting(
        5, "How many of the most and of the least displaced pairs to show with their texts.", range=COUNT_OR_NONE
    )
    seed: int = setting(0, "Seed of the bootstrap and the permutation tests.", range=SEED)


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
        None,
        "Beta of that training. It turns TRL's rewards into displacement, and reward-bench's log-ratios into rewards.",
        range=BETA,
    )
    loss: str | None = setting(None, "Loss of that training, for labels: dpo, shift, ipo, ...")
    lambda_: float | None = setting(
        None, "Lambda of that training, for labels and axes. Needs --loss shift.", flag="--lambda", range=LAMBDA
    )
    data: str | None = setting(None, "Name of the pairs. The default is the name of the file.")
    split: str = setting("test", "Name of the split of the pairs.")


@dataclass(frozen=True, kw_only=True)
class CurationSettings(DataSettings):
    """What both commands share."""

    model: str | None = setting(None, "Model whose tokenizer, chat template and maximum length are used.")
    seed: int = setting(42, "Seed for everything random.", range=SEED)
    trust_remote_code: bool = setting(False, "Run code that comes with a checkpoint.")


@dataclass(frozen=True, kw_only=True)
class ValidateConfig(CurationSettings):
    """Settings of a check-up."""

    eval_data: str | None = setting(
        None, "Pairs that should share no prompt with these. The default is the other splits of the same data."
    )
    full: bool = setting(False, "Also print two examples of each finding, why it matters and what to do.")
    strict: bool = setting(False, "Exit with code 1 if a finding is an error.")
    output: str | None = setting(None, "Write the findings as a page, FILE.md or FILE.html.")
    format: str | None = setting(
        None, "Format of the page, markdown or html. Without --output the page is printed instead of the table."
    )
    write: str | None = setting(
        None,
        "Write the rows without the findings of --leave-out to this file, in the format of the source or as .jsonl.",
    )
    leave_out: str | None = setting(
        None,
        "Findings whose rows --write leaves out, by name, separated by commas. The default is all errors.",
        switch="write",
    )


@dataclass(frozen=True, kw_only=True)
class FilterConfig(CurationSettings):
    """Settings of a filter."""

    by: str = setting("edit_similarity", "Measure that says which pairs are risky; docs/validate.md lists them.")
    keep: float | None = setting(
        None, "Keep this share of the pairs, the least risky: 0.5 is half.", range=Range(0, 1, includes_low=False)
    )
    drop_top: int | None = setting(None, "Drop this many of the riskiest pairs.", range=COUNT)
    drop: str | None = setting(
        None, "Which values are risky: highest, lowest or furthest (from 0). The default depends on the measure."
    )
    table: str | None = setting(
        None,
        "Table with the measure, as written by diagnose or theory-gap. The default is the newest one of "
        "these pairs in --model.",
    )
    output: str | None = setting(None, "Folder to write to. The default is filtered/<data>-<measure>.")


@dataclass(frozen=True, kw_only=True)
class CacheListConfig(ScreenSettings):
    """Settings of a listing: only how much it prints."""


@dataclass(frozen=True, kw_only=True)
class CacheVerifyConfig(ComputeSettings, DataSettings):
    """Settings of one check."""

    data: str | None = setting(  # type: ignore[assignment]  # resolved as `score` does
        None, "With --recompute: the pairs that were scored. The default is the pairs that the run was evaluated on."
    )
    model: str | None = setting(
        None, "Check only the values of this model. Give a name, path or fingerprint as `cache ls` shows it."
    )
    recompute: int = setting(
        0,
        "Compute N pairs of --model again and print the largest difference. "
        "Texts are not stored, so they come from --data.",
        range=COUNT_OR_NONE,
    )


@dataclass(frozen=True, kw_only=True)
class CacheClearConfig(Settings):
    """What to delete; nothing said: everything."""

    model: str | None = setting(
        None, "Delete only the values of this model. Give a name, path or fingerprint as `cache ls` shows it."
    )
    older_than: float | None = setting(
        None, "Delete only values that were not used for this many days.", range=Range(0, 1e5)
    )
    yes: bool = setting(False, "Delete without asking.")

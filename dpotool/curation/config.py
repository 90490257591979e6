"""What `dpotool validate` and `dpotool filter` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.settings import COUNT, DataSettings, Range, setting

SEED = Range(0, 2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class CurationSettings(DataSettings):
    """What both commands share."""

    model: str | None = setting(None, "Model whose tokenizer, chat template and positions are meant.")
    seed: int = setting(42, "Seed of everything random.", range=SEED)
    trust_remote_code: bool = setting(False, "Run code that comes with a checkpoint.")


@dataclass(frozen=True, kw_only=True)
class ValidateConfig(CurationSettings):
    """Settings of a check-up."""

    eval_data: str | None = setting(
        None, "Pairs that should share no prompt with these. The default is the other splits of the same data."
    )
    full: bool = setting(False, "Also print two examples of each finding, why it matters and what to do.")
    strict: bool = setting(False, "Exit with code 1 where a finding is an error.")
    output: str | None = setting(None, "Write the findings as a page, FILE.md or FILE.html.")
    format: str | None = setting(
        None, "Form of the page, markdown or html; without --output it is printed in place of the table."
    )
    write: str | None = setting(
        None, "Write the rows without findings that --leave-out names to this file, in their own format or .jsonl."
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
    drop_top: int | None = setting(None, "Drop so many of the riskiest pairs.", range=COUNT)
    drop: str | None = setting(
        None, "Which values are risky: highest, lowest or furthest (from 0). The default depends on the measure."
    )
    table: str | None = setting(
        None,
        "Table with the measure, as written by diagnose or theory-gap. The default is the newest one of "
        "these pairs in --model.",
    )
    output: str | None = setting(None, "Folder to write to. The default is filtered/<data>-<measure>.")

"""The data doctor: reads pairs and what they must not overlap with, runs every check, writes rows without faults."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpotool.data.checks.check import Material
from dpotool.data.checks.registry import CHECKS, Checkup, choose_checks, run_checks
from dpotool.data.checks.token_view import TokenView
from dpotool.data.files import COMPRESSED
from dpotool.data.origins import open_origin
from dpotool.data.pair_sets import load_rows
from dpotool.data.pairs import PreferenceData
from dpotool.data.rewriting import open_rewriter
from dpotool.data.sources import load_preferences
from dpotool.errors import DpotoolError, expand_home, find_place
from dpotool.progress import SILENT, Progress
from dpotool.runs.atomic import write_bytes
from dpotool.settings.reading import ValidateConfig

DEFAULT_SPLIT = "train"


@dataclass(frozen=True, slots=True)
class CleanFile:
    """What `--write` wrote."""

    path: Path
    n_written: int
    left_out: dict[str, int]
    """Finding -> rows left out for it; a row with several counts with the first."""


@dataclass(frozen=True, slots=True)
class Validation:
    """A check-up of some data."""

    material: Material
    checkup: Checkup
    clean: CleanFile | None = None

    @property
    def data(self) -> PreferenceData:
        return self.material.data

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it for --json."""
        source = self.data.source
        return {
            "data": source.data,
            "name": source.name,
            "split": source.split,
            "format": source.format,
            "fingerprint": source.fingerprint,
            "n_rows": self.data.n_rows,
            "n_pairs": len(self.data.pairs),
            "compared_with": list(self.material.others),
            "findings": [self._describe(finding) for finding in self.checkup.findings],
            "measured": [self._describe(finding) for finding in self.checkup.unconcerned],
            "found_nothing": [check.name for check in self.checkup.clean],
            "not_run": {check.name: check.needs for check in self.checkup.not_run},
            "written": self.clean
            and {"path": str(self.clean.path), "n_rows": self.clean.n_written, "left_out": self.clean.left_out},
        }

    def _describe(self, finding: Any) -> dict[str, Any]:
        check, found = finding.check, finding.found
        return {
            "name": check.name,
            "group": check.group,
            "severity": check.severity,
            "title": check.title,
            "count": finding.count,
            "share": finding.share,
            "says": found.says or None,
            "figures": dict(found.figures),
            "examples": [{"row": row, "text": text} for row, text in finding.examples(self.material)],
            "why": check.why,
            "remedy": check.remedy,
            "rows": sorted(found.rows),
        }


def validate(config: ValidateConfig, *, progress: Progress = SILENT) -> Validation:
    """Checks the pairs that the settings name, and writes the pairs without faults if the user asks for it.

    Raises:
        DpotoolError: data or model cannot be used, not one row is a pair, or a finding to leave out is none.
    """
    left_out = choose_checks(config.leave_out) if config.leave_out is not None else None
    data = load_rows(replace(config, skip_invalid=True), seed=config.seed, default_split=DEFAULT_SPLIT)
    material = Material(data, _load_others(config, data), _open_tokens(config, data, progress), config.seed, progress)
    validation = Validation(material, run_checks(material))
    if config.write is None:
        return validation
    names = [check.name for check in left_out] if left_out is not None else _list_errors(validation.checkup)
    return replace(validation, clean=_write_clean(config, validation, names))


def _load_others(config: ValidateConfig, data: PreferenceData) -> dict[str, PreferenceData]:
    """The pairs that should share no prompt with these."""
    if config.eval_data is not None:
        other = load_preferences(config.eval_data, skip_invalid=True, default_split="test")
        return {f"{other.source.name} [{other.source.split}]": other}
    if config.test_fraction is not None:
        return {}  # cut by prompt: nothing is shared
    return {
        split: load_preferences(config.data, split=split, skip_invalid=True)
        for split in open_origin(config.data).splits
        if split != data.source.split
    }


def _open_tokens(config: ValidateConfig, data: PreferenceData, progress: Progress) -> TokenView | None:
    if config.model is None:
        return None
    from dpotool.models.determinism import choose_max_length
    from dpotool.models.loading import load_positions, load_tokenizer

    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "progress": progress}
    tokenizer = load_tokenizer(config.model, **options)
    positions = load_positions(config.model, tokenizer, **options)
    return TokenView(
        data,
        tokenizer,
        max_length=choose_max_length(config.max_length, positions),
        positions=positions,
        is_trimming=config.truncation == "trim-prompt",
        progress=progress,
    )


def _list_errors(checkup: Checkup) -> list[str]:
    return [finding.check.name for finding in checkup.findings if finding.check.severity == "error"]


def _write_clean(config: ValidateConfig, validation: Validation, names: list[str]) -> CleanFile:
    path = Path(str(config.write))
    suffix = "".join(path.suffixes[-2:]) if path.suffix.lower() in COMPRESSED else path.suffix
    if find_place(expand_home(config.data)) == find_place(expand_home(path)):
        raise DpotoolError("is the data itself", where="--write", remedy="Name another file")
    reasons: dict[int, str] = dict.fromkeys(validation.data.invalid, "malformed")
    reasons |= {row: "empty" for row, reason in validation.data.invalid.items() if reason.endswith(" is empty")}
    for finding in validation.checkup.findings:
        if finding.check.name in names:
            reasons = dict.fromkeys(finding.found.rows, finding.check.name) | reasons
    rows = [pair.pair_id for pair in validation.data.pairs if pair.pair_id not in reasons]
    if not rows:
        raise DpotoolError("no row would be left", where="--write", remedy="Leave out fewer kinds with --leave-out")
    write_bytes(path, open_rewriter(config, DEFAULT_SPLIT, validation.data, config.seed).encode(rows, suffix))
    counts = Counter(reasons.values())
    return CleanFile(path, len(rows), {name: counts[name] for name in CHECKS if name in counts})

"""All checks of preference data by name, and running them; `validate`, its pages and `train`'s counts read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from dpotool.data.checks import form, labels, shortcuts, splits, tokens
from dpotool.data.checks.check import GROUPS, SEVERITIES, Check, Found, Material
from dpotool.data.pairs import PairCounts
from dpotool.errors import DpotoolError, suggest_nearest

CHECKS: dict[str, Check] = {
    check.name: check for check in chain(labels.CHECKS, splits.CHECKS, tokens.CHECKS, shortcuts.CHECKS, form.CHECKS)
}


N_EXAMPLES = 2
"""Rows of a finding that are shown."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A check that found something."""

    check: Check
    found: Found
    n_rows: int
    """Rows that were checked."""

    @property
    def count(self) -> int:
        return len(self.found.rows)

    @property
    def share(self) -> float:
        return self.count / self.n_rows

    def examples(self, material: Material) -> list[tuple[int, str]]:
        """Returns the first rows, each with what is to be seen there."""
        return [(row, seen or material.by_id[row].show()) for row, seen in list(self.found.rows.items())[:N_EXAMPLES]]


@dataclass(frozen=True, slots=True)
class Checkup:
    """What all checks together say of some pairs."""

    findings: list[Finding]
    """Most severe first, within a severity the most frequent first."""
    clean: list[Check]
    """Checks that found nothing."""
    not_run: list[Check]
    """Checks that lacked what they need."""
    unconcerned: list[Finding]
    """Checks that measure the whole set and found nothing of concern."""

    def count(self, severity: str) -> int:
        """Returns how many kinds of findings there are of a severity."""
        return sum(finding.check.severity == severity for finding in self.findings)


def run_checks(material: Material) -> Checkup:
    """Runs every check that has what it needs."""
    findings: list[Finding] = []
    unconcerned: list[Finding] = []
    clean: list[Check] = []
    not_run: list[Check] = []
    for check in CHECKS.values():
        if not material.has(check.needs):
            not_run.append(check)
            continue
        found = check.find(material)
        if found is None or not (found.rows or found.says):
            clean.append(check)
            continue
        finding = Finding(check, found, material.data.n_rows)
        (findings if found.is_cause_for_concern else unconcerned).append(finding)
    findings.sort(key=lambda finding: (SEVERITIES.index(finding.check.severity), -finding.count))
    return Checkup(findings, clean, not_run, unconcerned)


def choose_checks(names: str) -> list[Check]:
    """Reads the names of kinds of rows to leave out, separated by commas.

    Raises:
        DpotoolError: there is no such check, or it concerns no single rows.
    """
    chosen = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in CHECKS:
            raise DpotoolError(f"no finding {name!r}", where="--leave-out", remedy=suggest_nearest(name, CHECKS))
        if CHECKS[name].is_of_set:
            raise DpotoolError(
                f"{name} describes all pairs together, so it has no rows to leave out", where="--leave-out"
            )
        chosen.append(CHECKS[name])
    return chosen


def describe_counts(counts: PairCounts) -> list[str]:
    """Returns what `train` and `score` say of their pairs at their start: '3 identical', where there are any."""
    counted = [check for check in CHECKS.values() if check.counted_as]
    return [f"{n} {check.counted_word}" for check in counted if (n := getattr(counts, check.counted_as))]


def write_checks(checks: Sequence[Check] | None = None) -> str:
    """Returns the table of the checks for docs/validate.md."""
    lines = ["| finding | severity | meaning | why it matters | what to do |", "|---|---|---|---|---|"]
    for group, title in GROUPS.items():
        lines.append(f"| **{title}** | | | | |")
        for check in checks or CHECKS.values():
            if check.group == group:
                needs = f" (needs {check.needs})" if check.needs else ""
                lines.append(
                    f"| `{check.name}` | {check.severity} | {check.title}{needs} | {check.why} | {check.remedy} |"
                )
    return "\n".join(lines)

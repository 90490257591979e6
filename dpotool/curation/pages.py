"""A check-up as a page, Markdown or HTML: the answer, a table of the findings, then each with its examples."""

from __future__ import annotations

from pathlib import Path

from dpotool.curation.validation import Validation
from dpotool.data.checks.check import GROUPS
from dpotool.data.checks.registry import Finding
from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.report.blocks import Block, Bullets, Page, Paragraph, Section, Table
from dpotool.report.page import FORMATS, sign_page
from dpotool.report.render import render_html, render_markdown
from dpotool.runs.places import tell_path
from dpotool.wording import count


def choose_format(output: str | None, format_: str | None) -> str:
    """Returns 'markdown' or 'html', as the user says or by the ending of the file.

    Raises:
        DpotoolError: neither says which.
    """
    if format_ is None:
        format_ = {".md": "markdown", ".markdown": "markdown", ".html": "html"}.get(Path(output or "").suffix.lower())
        if format_ is None:
            raise DpotoolError(
                "cannot tell the format of the page", where="--output", expected="FILE.md or FILE.html", got=str(output)
            )
    if format_ not in FORMATS:
        raise DpotoolError(f"unknown format {format_!r}", where="--format", remedy=suggest_nearest(format_, FORMATS))
    return format_


def write_validation(validation: Validation, format_: str) -> str:
    """Returns the page."""
    page = build_page(validation)
    return render_html(page) if format_ == "html" else render_markdown(page, "")


def build_page(validation: Validation) -> Page:
    """Collects what the page says, in no format yet."""
    source, checkup = validation.data.source, validation.checkup
    lead: list[Block] = [Paragraph(say_outcome(validation), tone="lead")]
    if checkup.findings:
        lead.append(Table("Findings, the most severe first", *tabulate_findings(validation)))
    lead += [Paragraph(sentence, tone="note") for sentence in say_rest(validation)]
    sections = [Section("findings", "What was found", lead)]
    for group, title in GROUPS.items():
        blocks = [
            block
            for finding in checkup.findings
            if finding.check.group == group
            for block in _tell(validation, finding)
        ]
        if blocks:
            sections.append(Section(group, title, blocks))
    return Page(
        title=f"Check-up of {source.name}",
        subtitle=(
            f"{tell_path(source.data)}, split {source.split}: {count(validation.data.n_rows, 'row')}, {source.format}"
        ),
        sections=sections,
        footer=sign_page(),
    )


def say_outcome(validation: Validation) -> str:
    """Returns the answer in one or two sentences."""
    source, checkup = validation.data.source, validation.checkup
    counts = [(checkup.count(severity), severity) for severity in ("error", "warning", "note")]
    found = " and ".join(", ".join(count(n, name) for n, name in counts if n).rsplit(", ", 1)) or "nothing"
    n_rows = count(validation.data.n_rows, "row was", "rows were")
    text = f"{n_rows} checked in {source.name} [{source.split}], and {found} came up."
    if counts[0][0]:
        return f"Mend these pairs before you train: such errors teach nothing or make the numbers wrong. {text}"
    if counts[1][0]:
        return f"You can train on these pairs, but look at the {'warnings' if counts[1][0] > 1 else 'warning'}. {text}"
    return f"You can train on these pairs. {text}"


def tabulate_findings(validation: Validation) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows of the table of findings."""
    rows = [
        [
            finding.check.severity,
            finding.check.name,
            str(finding.count),
            f"{100 * finding.share:.1f}",
            finding.check.title,
        ]
        for finding in validation.checkup.findings
    ]
    return ["severity", "finding", "rows", "%", "meaning"], rows


def say_rest(validation: Validation) -> list[str]:
    """Returns what was measured and is fine, what was not found, and what could not be looked for."""
    checkup = validation.checkup
    says = [f"Measured, and no cause for concern: {finding.found.says}." for finding in checkup.unconcerned]
    if checkup.clean:
        says.append(f"Looked for and not found: {', '.join(check.name for check in checkup.clean)}.")
    missing: dict[str, list[str]] = {}
    for check in checkup.not_run:
        missing.setdefault(check.needs, []).append(check.name)
    says += [f"Not looked for without {need}: {', '.join(names)}." for need, names in missing.items()]
    return says


def _tell(validation: Validation, finding: Finding) -> list[Block]:
    check = finding.check
    heading = (
        f"{check.severity}: {check.title} ({check.name}): {count(finding.count, 'row')}, {100 * finding.share:.1f} %."
    )
    blocks: list[Block] = [Paragraph(heading, tone="warning" if check.severity == "error" else "lead")]
    if finding.found.says:
        blocks.append(Paragraph(f"In figures: {finding.found.says}."))
    blocks.append(Bullets([f"row {row}: {text}" for row, text in finding.examples(validation.material)]))
    blocks.append(Paragraph(f"{check.why} {check.remedy}"))
    return blocks

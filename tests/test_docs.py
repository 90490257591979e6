"""The pages say what the code does: columns, losses, metric names, and links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dpotool.curation.filtering import MEASURES
from dpotool.data.checks.registry import write_checks
from dpotool.losses.page import renew
from dpotool.losses.registry import LOSSES
from dpotool.losses.schedules import SCHEDULES, get_schedule_defaults
from dpotool.runs.manifest import KINDS, STATUSES
from dpotool.runs.schemas import SCHEMAS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "examples").rglob("*.md")])
_TYPES = {"int64": "integer", "double": "float64", "string": "text"}


def write_columns(table: str) -> str:
    """Returns the columns of a table as they stand in docs/run-folder.md."""
    lines = ["| column | type | unit | what it is |", "|---|---|---|---|"]
    for field in SCHEMAS[table]:
        about = {key.decode(): value.decode() for key, value in field.metadata.items()}
        definition = about["definition"]
        for sign, escaped in (("|", "\\|"), ("<", "&lt;"), (">", "&gt;"), ("*", "×")):
            definition = definition.replace(sign, escaped)
        lines.append(f"| `{field.name}` | {_TYPES[str(field.type)]} | {about['unit']} | {definition} |")
    return "\n".join(lines)


@pytest.mark.parametrize("table", sorted(SCHEMAS))
def test_columns_are_those_of_the_schema(table: str) -> None:
    expected = write_columns(table)
    assert expected in (DOCS / "run-folder.md").read_text(encoding="utf-8"), expected


def test_run_yaml_is_described_as_it_is() -> None:
    page = (DOCS / "run-folder.md").read_text(encoding="utf-8")
    for word in (*KINDS, *STATUSES):
        assert f"`{word}`" in page


def test_losses_are_those_of_the_registry() -> None:
    page = (DOCS / "losses.md").read_text(encoding="utf-8")
    assert renew(page) == page, "run `make docs`"
    for name, loss in LOSSES.items():
        assert f"| `{name}` | ${loss.latex}$ |" in page


def test_every_schedule_has_its_defaults() -> None:
    page = (DOCS / "losses.md").read_text(encoding="utf-8")
    for kind in SCHEDULES:
        [row] = re.findall(rf"^\| `{kind}` \|.*$", page, re.MULTILINE)
        for name, default in get_schedule_defaults(kind).items():
            assert f"`--{name.strip('_').replace('_', '-')}` ({default:g})" in row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("#"):
            path, _, anchor = target.partition("#")
            assert (page.parent / path).exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.+)$", (page.parent / path).read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {_anchor(heading) for heading in headings}, target


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_pages_name_no_machine() -> None:
    assert len(PAGES) > 8
    for page in PAGES:
        assert not re.search(r"/(work|home|root|Users)/", page.read_text(encoding="utf-8")), page


def test_checks_and_measures_are_those_of_the_registries() -> None:
    page = (DOCS / "validate.md").read_text(encoding="utf-8")
    assert write_checks() in page, write_checks()
    for name, (called, side) in MEASURES.items():
        assert f"| `{name}` | {called} | {side} |" in page

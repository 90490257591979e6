"""docs/paper-check.md checks the paper's numbers by the identity that every report of dpotool checks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dpotool.compare.scored_run import ScoredRun
from dpotool.compare.summaries import check_margin_identity
from dpotool.runs.about import ScoreAbout
from dpotool.runs.schemas import SCORE_SCHEMA

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize(("method", "expected"), [("DPO-Shift 0.95", 0.533), ("DPO", 0.523)])
def test_the_printed_margins_are_not_those_of_the_printed_means(method: str, expected: float) -> None:
    """0.01 ((-425.47 + 299.09) - (-457.25 + 278.60)) = 0.01 (-126.38 + 178.65) = 0.5227 for DPO."""
    table = pd.read_csv(DOCS / "data" / "paper_table2.csv").set_index("method")
    change = (
        table.loc[method, ["chosen_logps", "rejected_logps"]] - table.loc["SFT", ["chosen_logps", "rejected_logps"]]
    )
    margin = table.loc[method, "beta"] * (change["chosen_logps"] - change["rejected_logps"])
    assert margin == pytest.approx(expected, abs=5e-4)
    assert abs(margin - table.loc[method, "printed_mean_margin"]) > 0.04
    assert margin == pytest.approx(table.loc[method, "margin_from_means"], abs=5e-4)
    row: dict = {"pair_id": 0, "status": "ok", "reward_margins": table.loc[method, "printed_mean_margin"]}
    for side in ("chosen", "rejected"):
        row |= {
            f"{side}_logps": table.loc[method, f"{side}_logps"],
            f"ref_{side}_logps": table.loc["SFT", f"{side}_logps"],
        }
    frame = pd.DataFrame([row]).reindex(columns=SCORE_SCHEMA.names)
    found = check_margin_identity(ScoredRun(frame, about=ScoreAbout(beta=table.loc[method, "beta"])))
    assert not found["holds"] and found["from_means"] == pytest.approx(expected, abs=5e-4), "dpotool's own check"
    assert f"| {expected} | 0.58 |" in (DOCS / "paper-check.md").read_text(encoding="utf-8")


def test_every_row_is_computed_from_the_means_beside_it() -> None:
    """KTO: 0.01 ((-360.93 + 299.09) - (-420.29 + 278.60)) = 0.01 (-61.84 + 141.69) = 0.7985, printed as 0.49."""
    table = pd.read_csv(DOCS / "data" / "paper_table2.csv").set_index("method")
    change = table[["chosen_logps", "rejected_logps"]] - table.loc["SFT", ["chosen_logps", "rejected_logps"]]
    margins = (0.01 * (change["chosen_logps"] - change["rejected_logps"])).astype(float)
    page = (DOCS / "paper-check.md").read_text(encoding="utf-8")
    for method, printed in table["printed_mean_margin"].dropna().items():
        entered = table.loc[method, "margin_from_means"]
        assert margins[method] == pytest.approx(entered, abs=6e-4)
        chosen, rejected = table.loc[method, ["chosen_logps", "rejected_logps"]]
        outcome = "holds" if abs(margins[method] - printed) < 0.0065 else "fails"
        assert f"| {method} | {chosen} | {rejected} | {entered:.3f} | {printed:.2f} | {outcome}" in page


def test_the_margins_end_above_dpos_from_095_on() -> None:
    """And the list is apart from the table: (0.582 - 0.5227) / 0.01 = 5.93 nats."""
    margins = pd.read_csv(DOCS / "data" / "paper_margins.csv").set_index("lambda")["printed_mean_margin"]
    assert margins.loc[:0.98].is_monotonic_increasing and len(margins) == 13
    assert margins.loc[[0.95, 0.98, 0.99]].min() > margins[1.0] > margins[0.9]
    assert (margins[1.0] - 0.5227) / 0.01 == pytest.approx(5.93, abs=0.01)

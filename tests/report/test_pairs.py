"""Scores of another tool beside what training did to the same pairs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from scored_runs import write_scored_run
from synthetic_frames import make_score_frame

from dpotool.compare.findings import find_out
from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError
from dpotool.foreign.run import import_file
from dpotool.report.page import write_report
from dpotool.report.pairs import find_pair_scores, read_pair_scores, relate_to_change
from dpotool.runs.folder import RunFolder
from dpotool.settings.reading import ImportConfig, ReportConfig


def read_only_run(path: Path) -> ScoredRun:
    [run] = find_out([str(path)]).comparison.scored
    return run


def import_scores(path: Path, pair_ids: list[int], scores: list[float], data: str = "demo") -> RunFolder:
    file = path.with_suffix(".pt")
    torch.save({"sample_indices": torch.tensor(pair_ids), "ches_scores": torch.tensor(scores)}, file)
    import_file(str(file), ImportConfig(output=str(path), data=data))
    return RunFolder(path)


def test_the_correlation_is_that_of_ranks_over_shared_pairs(tmp_path: Path) -> None:
    """Four pairs lose 4, 3, 2 and 1 nats; scores fall with the loss, but for one pair that is not scored at all."""
    frame = make_score_frame(4)
    frame["chosen_logps"] = frame["ref_chosen_logps"] - [4.0, 3.0, 2.0, 1.0]
    write_scored_run(tmp_path / "dpo", frame=frame, loss="dpo")
    run = read_only_run(tmp_path / "dpo")
    falling = pd.Series([100.0, 30.0, 20.0, -1.0, 5.0], index=[*frame["pair_id"], 99])
    n, found = relate_to_change(run, falling)
    assert n == 4 and found is not None and found["value"] == pytest.approx(-1.0)
    # ranks 4 1 3 2 of scores against 1 2 3 4 of changes: 1 - 6 (9 + 1 + 0 + 4) / (4 * 15) = -0.4
    n, found = relate_to_change(run, pd.Series([9.0, 1.0, 8.0, 2.0], index=frame["pair_id"]))
    assert found is not None and found["value"] == pytest.approx(-0.4)
    assert relate_to_change(run, falling.iloc[:2]) == (2, None)


def test_a_report_lays_imported_scores_beside_the_runs(tmp_path: Path) -> None:
    frame = make_score_frame(60)
    write_scored_run(tmp_path / "dpo", frame=frame, loss="dpo")
    ids = frame["pair_id"].iloc[::-2].tolist()
    scores = torch.arange(len(ids)).remainder(7).tolist()
    import_scores(tmp_path / "ches", ids, scores)

    page = write_report([str(tmp_path / "dpo"), str(tmp_path / "ches")],
                        ReportConfig(output=str(tmp_path / "r.html"), pairs=0)).page  # fmt: skip

    [table] = [block for section in page.sections if section.id == "pairs" for block in section.blocks
               if block.kind == "table"]  # fmt: skip
    change = (frame["chosen_logps"] - frame["ref_chosen_logps"]).set_axis(frame["pair_id"]).loc[ids]
    [[name, n, cell]] = table.rows
    assert (name, n) == ("ches: ches_scores", "30") and table.columns == ["score", "pairs", "DPO"]
    assert cell.startswith(f"{spearmanr(scores, change).statistic:+.2f} [")


def test_scores_of_pairs_of_another_name_are_not_taken_for_these(tmp_path: Path) -> None:
    write_scored_run(tmp_path / "dpo", loss="dpo")
    other = import_scores(tmp_path / "ches", [0, 1, 2], [1.0, 2.0, 3.0], data="else")
    found, problems = find_pair_scores([other], read_only_run(tmp_path / "dpo"))
    assert found == []
    assert problems == [
        "ches: else-test.csv names other pairs. If it belongs to these pairs, import it again with --data demo "
        "--split test."
    ]


def test_scores_of_pairs_alone_are_no_model(tmp_path: Path) -> None:
    ches = import_scores(tmp_path / "ches", [0, 1, 2], [1.0, 2.0, 3.0])
    with pytest.raises(DpotoolError, match="It holds imported scores of pairs: name it beside scored runs"):
        find_out([str(ches.path)])


def test_a_broken_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DpotoolError, match=r"a\.csv: cannot be read .*\. Import the file again"):
        read_pair_scores(tmp_path / "a.csv")

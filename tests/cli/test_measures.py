"""A measure that is registered from outside is found wherever measures are: in table, summary, screen and docs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpotool.cli.reference import write_reference
from dpotool.errors import DpotoolError
from dpotool.measures.logps import LOGPS
from dpotool.measures.measure import Measure, ModelView
from dpotool.measures.registry import MEASURES, build_schema, choose_measures, register_measure
from dpotool.runs.schemas import SCORE_SCHEMA, column
from dpotool.runs.summaries import summary_path
from dpotool.runs.tables import read_table, write_table


def find_worst_tokens(view: ModelView) -> dict[str, list[float]]:
    return {"chosen_worst_logp": [float(chosen.min()) for chosen, _ in view.logps.tokens]}


@pytest.fixture
def worst() -> Iterator[Measure]:
    """The log-probability of the chosen answer's least likely token, and how far it moved."""
    number = pytest.importorskip("pyarrow").float64()
    measure = Measure(
        name="worst",
        summary="How unlikely the least likely token is.",
        needs="tokens",
        price="nothing",
        columns=(column("chosen_worst_logp", number, "nats", "least log-probability of a chosen token"),),
        compute=find_worst_tokens,
        derived=(column("chosen_worst_change", number, "nats", "chosen_worst_logp minus that of the reference"),),
        derive=lambda frame, beta: {"chosen_worst_change": frame["chosen_worst_logp"] - frame["ref_chosen_worst_logp"]},
    )
    try:
        yield register_measure(measure)
    finally:
        del MEASURES["worst"]


def test_score_has_its_columns_its_summary_and_its_rows(  # type: ignore[no-untyped-def]
    dpotool, worst: Measure, model: Path, pairs: Path, tmp_path: Path
) -> None:
    words = ("score", model, "--reference", model, "--data", pairs, "--device", "cpu", "--output", tmp_path / "run")
    plain = json.loads(dpotool(*words, "--tokens", "--json").out)["results"][0]
    tokens, before = read_table(plain["tokens_path"]), read_table(plain["path"])
    (found,) = json.loads(dpotool(*words, "--measures", "worst", "--json").out)["results"]
    table = read_table(found["path"])
    expected = tokens[tokens["side"] == "chosen"].groupby("pair_id")["logp"].min()
    np.testing.assert_allclose(table.set_index("pair_id")["chosen_worst_logp"], expected, rtol=1e-6)
    assert (table["chosen_worst_change"] == 0).all(), "the reference is the model itself"
    pd.testing.assert_frame_equal(table[before.columns], before)
    assert found["chosen_worst_logp"]["mean"] == pytest.approx(expected.mean())
    assert json.loads(summary_path(Path(found["path"])).read_text())["ref_chosen_worst_logp"]["mean"] < 0
    shown = dpotool(*words, "--measures", "worst").out
    assert "chosen_worst_logp, mean" in shown and "log pi(chosen), mean" in shown


@pytest.mark.parametrize("format_", ["parquet", "csv", "jsonl"])
def test_its_columns_are_read_with_what_they_say(worst: Measure, tmp_path: Path, format_: str) -> None:
    frame = pd.DataFrame({"pair_id": [0, 1], "status": "ok", "chosen_worst_logp": [-3.5, math.nan]})
    path = write_table(frame, tmp_path / f"scores.{format_}", build_schema([LOGPS, worst]))
    table = read_table(path)
    assert table["chosen_worst_logp"].tolist() == pytest.approx([-3.5, math.nan], nan_ok=True)
    assert table.columns.tolist() == [*SCORE_SCHEMA.names, *worst.schema.names]


def test_the_reference_page_lists_it(worst: Measure) -> None:
    page = write_reference()
    assert "- `worst`: How unlikely the least likely token is. Price: nothing." in page
    assert "| `worst` | `chosen_worst_logp` | nats | least log-probability of a chosen token |" in page
    assert "| `worst` | `ref_chosen_worst_logp` | nats | chosen_worst_logp under the reference |" in page


def test_what_is_not_there_or_there_already_is_refused(worst: Measure) -> None:
    assert choose_measures("") == [LOGPS]
    assert choose_measures("worst, logps") == [LOGPS, worst]
    with pytest.raises(DpotoolError, match=r"unknown measure 'wort'.*logps, ches, similarity, worst.*'worst'"):
        choose_measures("wort")
    with pytest.raises(ValueError, match="there is a measure named worst already"):
        register_measure(worst)
    with pytest.raises(ValueError, match="columns named chosen_displacement, chosen_logps"):
        register_measure(Measure(**{**vars(LOGPS), "name": "again"}))


def test_every_score_table_has_the_columns_of_log_probabilities() -> None:
    assert build_schema([LOGPS]).equals(SCORE_SCHEMA, check_metadata=True)
    for field in LOGPS.schema:
        assert field.equals(SCORE_SCHEMA.field(field.name), check_metadata=True)

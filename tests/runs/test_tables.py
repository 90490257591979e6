from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_frames import make_score_frame, make_theory_frame

from dpotool.errors import DpotoolError
from dpotool.runs.schemas import SCHEMAS, TABLE_KEY
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import SCORE_SCHEMA, THEORY_SCHEMA, TOKEN_SCHEMA, read_raw_metadata, read_table, write_table
from dpotool.theory.advice import DOT_COLUMNS

FORMATS = ["parquet", "csv", "jsonl"]
ABOUT = {"model": "demo", "beta": 0.1, "fingerprints": {"model": "0af3"}, "gamma": None}


@pytest.mark.parametrize("ending", FORMATS)
def test_a_score_table_is_read_back_to_the_last_bit(tmp_path, ending):
    frame = make_score_frame(40, n_excluded=3)

    path = write_table(frame, tmp_path / f"t.{ending}", SCORE_SCHEMA, ABOUT)
    back = read_table(path)

    for name in frame.columns.drop("status"):
        np.testing.assert_array_equal(back[name].to_numpy(float), frame[name].to_numpy(float))
    assert back["status"].tolist() == frame["status"].tolist()
    assert back["chosen_logps"].dtype == np.float64
    assert back["chosen_tokens"].dtype == pd.Int64Dtype()
    assert back["chosen_logps"].isna().sum() == 3
    assert read_raw_metadata(path) == ABOUT


@pytest.mark.parametrize("ending", FORMATS)
def test_a_theory_table_keeps_its_infinite_bands(tmp_path, ending):
    frame = make_theory_frame(40)
    assert np.isinf(frame["band_high"]).any()

    back = read_table(write_table(frame, tmp_path / f"t.{ending}", THEORY_SCHEMA))

    pd.testing.assert_frame_equal(back[list(frame)], frame, check_dtype=False, rtol=0, atol=0)
    assert back[list(DOT_COLUMNS)].isna().all(axis=None), "optional columns that were not filled"


def test_a_table_from_before_an_optional_column_is_read_as_if_it_were_null(tmp_path):
    path = tmp_path / "old.csv"
    make_theory_frame(3).to_csv(path, index=False)
    assert read_table(path, THEORY_SCHEMA)[list(DOT_COLUMNS)].isna().all(axis=None)


@pytest.mark.parametrize("ending", FORMATS)
def test_token_texts_survive_quotes_line_ends_and_what_looks_like_null(tmp_path, ending):
    texts = ['"', ",", "\n", "\r\n", "\r", "NA", "null", "\u2028", "é", " ", "1.5"]
    frame = pd.DataFrame(
        {"pair_id": 0, "side": "chosen", "position": range(len(texts)), "token_id": 7, "token": texts, "logp": -0.1}
    )

    back = read_table(write_table(frame, tmp_path / f"t.{ending}", TOKEN_SCHEMA))

    assert back["token"].tolist() == texts
    assert back["ref_logp"].isna().all()


def test_units_and_definitions_travel_with_the_table(tmp_path):
    parquet = write_table(make_score_frame(2), tmp_path / "t.parquet", SCORE_SCHEMA)
    csv = write_table(make_score_frame(2), tmp_path / "t.csv", SCORE_SCHEMA)

    assert pq.read_schema(parquet).field("chosen_logps").metadata[b"unit"] == b"nats"
    beside = json.loads((tmp_path / "t.csv.schema.json").read_text())
    assert beside["table"] == "score"
    assert {"name": "chosen_logps", "unit": "nats"}.items() <= beside["columns"][6].items()
    csv.with_name("t.csv.schema.json").unlink()
    assert read_raw_metadata(csv) == {}
    assert len(read_table(csv)) == 2


def test_infinity_in_json_lines_is_a_string_as_json_has_none(tmp_path):
    frame = make_theory_frame(1).assign(band_high=np.inf)
    path = write_table(frame, tmp_path / "t.jsonl", THEORY_SCHEMA)

    assert json.loads(path.read_text(), parse_constant=pytest.fail)["band_high"] == "inf"


def test_a_column_the_frame_lacks_is_null(tmp_path):
    frame = make_score_frame(3).drop(columns=["ref_chosen_logps", "score_chosen"])

    back = read_table(write_table(frame, tmp_path / "t.parquet", SCORE_SCHEMA))

    assert back[["ref_chosen_logps", "score_chosen"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.assign(extra=1), "columns the schema does not have: extra"),
        (lambda f: f.drop(columns="status"), "column 'status' is null in 3 rows"),
        (lambda f: f.assign(chosen_tokens=1.5), "column 'chosen_tokens' does not hold int64"),
        (lambda f: f.assign(chosen_logps="x"), "column 'chosen_logps' does not hold double"),
    ],
)
def test_a_frame_that_does_not_fit_is_not_written(tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        write_table(change(make_score_frame(3)), tmp_path / "t.parquet", SCORE_SCHEMA)
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_names_the_known_ones(tmp_path):
    with pytest.raises(
        DpotoolError, match=r"unknown table format 'parket'. Did you mean 'parquet'.*csv, jsonl, parquet"
    ):
        write_table(make_score_frame(1), tmp_path / "t", SCORE_SCHEMA, format="parket")


@pytest.mark.parametrize("ending", FORMATS)
def test_a_half_written_table_is_one_line_that_names_it(tmp_path, ending):
    path = write_table(make_theory_frame(50), tmp_path / f"t.{ending}", THEORY_SCHEMA)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2].rstrip(b"0123456789.\n"))

    with pytest.raises(DpotoolError) as caught:
        read_table(path)

    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("Write it again with the command that made it")
    assert "\n" not in str(caught.value)


def test_a_missing_table_says_what_makes_one(tmp_path):
    with pytest.raises(DpotoolError, match="no such table"):
        read_table(tmp_path / "t.parquet")


def test_a_table_without_the_columns_says_which_are_missing(tmp_path):
    path = tmp_path / "t.csv"
    make_score_frame(2).drop(columns=["status", "chosen_logps"]).to_csv(path, index=False)

    with pytest.raises(DpotoolError, match="not a score table, it lacks status, chosen_logps; got columns pair_id"):
        read_table(path)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_table_from_before_prompts_were_named_still_reads(tmp_path, ending):
    path = write_table(make_score_frame(3), tmp_path / f"t.{ending}", SCORE_SCHEMA)
    if ending == "parquet":
        pq.write_table(pq.read_table(path).drop_columns("prompt_id"), path)
    elif ending == "csv":
        path.write_text(path.read_text().replace('"status","prompt_id",', '"status",').replace('"ok","",', '"ok",'))
    else:
        path.write_text(path.read_text().replace('"prompt_id": null, ', ""))

    back = read_table(path, SCORE_SCHEMA)

    assert back["prompt_id"].isna().all()
    assert back["chosen_logps"].notna().all()


def test_a_theory_table_is_no_score_table(tmp_path):
    path = write_table(make_theory_frame(2), tmp_path / "t.parquet", THEORY_SCHEMA)

    with pytest.raises(DpotoolError, match="not a score table, it lacks status"):
        read_table(path, SCORE_SCHEMA)


def test_text_in_a_number_column_is_refused(tmp_path):
    path = write_table(make_score_frame(2), tmp_path / "t.csv", SCORE_SCHEMA)
    path.write_text(path.read_text().replace('"ok","",', '"ok","","many",').replace(",8.0", ""))

    with pytest.raises(DpotoolError, match="cannot be read as a table"):
        read_table(path)


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("pair_id", [3, 3], "pair 3 has more than one row"),
        ("pair_id", [-5, 1], "column 'pair_id' holds -5"),
        ("chosen_tokens", [4, -1], "column 'chosen_tokens' holds -1"),
        (
            "chosen_tokens",
            [4, 2**62],
            "column 'chosen_tokens' holds 4.61169e+18, and nothing there is below 0 or above",
        ),
        ("chosen_logps", [-3.0, 2.5], "column 'chosen_logps' holds 2.5"),
        ("reward_margins", [1e300, 0.0], "column 'reward_margins' holds 1e+300"),
        ("pair_id", np.array([1, 2], dtype="datetime64[us]"), "column 'pair_id' holds times"),
        ("pair_id", [1.5, float("nan")], "column 'pair_id'"),
        ("chosen_logps", [[1.0], [2.0]], "column 'chosen_logps' does not hold double"),
        ("status", [b"\xff", b"ok"], "column 'status'"),
    ],
)
def test_what_no_command_writes_is_refused_when_it_is_read(tmp_path, column, values, says):
    """Columns as another program may leave them."""
    path = write_table(make_score_frame(2), tmp_path / "t.parquet", SCORE_SCHEMA)
    table = pq.read_table(path)
    place = table.schema.names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values)), path)
    with pytest.raises(DpotoolError, match=re.escape(f"{path}: {says}")):
        read_table(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"side": "x"}, "column 'side' holds 'x', not one of chosen, rejected"),
        ({"span": "end"}, "column 'span' holds 'end', not one of shared_prefix, shared, divergent, eos"),
        ({"p_token": 2.0}, "column 'p_token' holds 2, and nothing there is below -1 or above 1"),
        ({"position": 0}, "token 1 chosen 0 has more than one row"),
    ],
)
def test_a_token_table_of_anything_else_is_refused(tmp_path, change, says):
    row = {"pair_id": 1, "side": "chosen", "position": 1, "token_id": 5, "span": "eos", "p_token": 1.0 + 1e-9}
    schema = SCHEMAS["diagnosis_token"]
    write_table(pd.DataFrame([row | {"position": 0}, row]), tmp_path / "t.parquet", schema)
    assert len(read_table(tmp_path / "t.parquet", schema)) == 2
    write_table(pd.DataFrame([row | {"position": 0}, row | change]), tmp_path / "t.parquet", schema)
    with pytest.raises(DpotoolError, match=re.escape(f"t.parquet: {says}")):
        read_table(tmp_path / "t.parquet", schema)


@pytest.mark.parametrize("change", [{"grad_cosine": 7.0}, {"chosen_grad_sq_norm": -1.0}, {"u": 1e300}])
def test_gradients_that_cannot_be_are_refused_and_infinite_bands_are_not(tmp_path, change):
    frame = make_theory_frame(3).assign(band_high=np.inf)
    assert len(read_table(write_table(frame, tmp_path / "t.csv", THEORY_SCHEMA))) == 3
    with pytest.raises(DpotoolError, match=f"column '{next(iter(change))}' holds"):
        read_table(write_table(frame.assign(**change), tmp_path / "t.csv", THEORY_SCHEMA))


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)


@pytest.mark.parametrize("format_", ["csv", "jsonl"])
def test_a_text_table_that_was_cut_at_a_row_is_told(tmp_path, format_):
    path = write_table(make_score_frame(3), tmp_path / f"t.{format_}", SCORE_SCHEMA)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DpotoolError, match=r"it has 2 rows, and 3 were written"):
        read_table(path)


@pytest.mark.parametrize("format_", ["csv", "jsonl"])
def test_a_text_table_of_an_earlier_release_that_was_cut_is_told(tmp_path, format_):
    """Without a recorded number of rows: by the pairs that its summary counts, and by the end of its last line."""
    path = tmp_path / f"t.{format_}"
    write_summary(path, {"n": 2, "n_excluded": {"too long": 1}})  # first, so that it cannot say of which table
    write_table(make_score_frame(3), path, SCORE_SCHEMA)
    about = path.with_name(f"{path.name}.schema.json")
    about.write_text(json.dumps({**json.loads(about.read_text()), "n_rows": None}))
    whole = path.read_text()
    assert len(read_table(path)) == 3
    path.write_text(whole[:-2])
    with pytest.raises(DpotoolError, match="it breaks off in its last line" if format_ == "csv" else "t.jsonl"):
        read_table(path)
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(DpotoolError, match=r"it has 2 rows, and its summary counts 3"):
        read_table(path)


def test_a_column_that_is_there_twice_is_told(tmp_path):
    path = write_table(make_score_frame(2), tmp_path / "t.csv", SCORE_SCHEMA)
    rows = list(csv.reader(path.open(newline="")))
    write_rows(path, [[*row, row[0]] for row in rows])
    with pytest.raises(DpotoolError, match="column 'pair_id' is there twice"):
        read_table(path)


@pytest.mark.parametrize("value", [True, {}, [1.0], 10**400])
def test_what_is_no_number_in_json_lines_is_told(tmp_path, value):
    path = write_table(make_score_frame(2), tmp_path / "t.jsonl", SCORE_SCHEMA)
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"chosen_logps": value}), *rest]))
    with pytest.raises(DpotoolError, match="column 'chosen_logps' holds"):
        read_table(path)


def test_a_text_table_is_of_the_kind_that_it_was_written_as(tmp_path):
    """A diagnosis's tokens have every column of a score's tokens."""
    row = {"pair_id": 1, "side": "chosen", "position": 0, "token_id": 5, "span": "end", "p_token": 0.5}
    path = write_table(pd.DataFrame([row]), tmp_path / "t.csv", SCHEMAS["diagnosis_token"])
    with pytest.raises(DpotoolError, match="column 'span' holds 'end', not one of"):
        read_table(path)
    path.with_name("t.csv.schema.json").unlink()
    with pytest.raises(DpotoolError, match="column 'span' holds 'end', not one of"):
        read_table(path)


def test_a_changed_bit_is_not_another_number(tmp_path):
    path = write_table(make_score_frame(40), tmp_path / "t.parquet", SCORE_SCHEMA)
    whole = path.read_bytes()
    start = pq.read_metadata(path).row_group(0).column(SCORE_SCHEMA.names.index("chosen_logps")).data_page_offset
    path.write_bytes(whole[: start + 200] + bytes([whole[start + 200] ^ 1]) + whole[start + 201 :])
    with pytest.raises(DpotoolError, match="cannot be read as a table"):
        read_table(path)


def test_a_table_of_a_kind_that_is_no_text_is_known_by_its_columns(tmp_path):
    path = write_table(make_score_frame(2), tmp_path / "t.parquet", SCORE_SCHEMA)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, TABLE_KEY: b"\xff"}), path)
    assert len(read_table(path)) == 2


@pytest.mark.parametrize("name", ["http:x", "x\udcff"])
def test_a_folder_of_any_name_is_a_folder(tmp_path, monkeypatch, name):
    """What looks like an address, and bytes that are no UTF-8."""
    monkeypatch.chdir(tmp_path)
    path = write_table(make_score_frame(2), Path(name) / "t.parquet", SCORE_SCHEMA, {"label": "a"})
    assert (len(read_table(path)), read_raw_metadata(path)) == (2, {"label": "a"})


@pytest.mark.parametrize(
    "columns", [7, [7], [{"name": 7, "type": "int64"}], [{"name": "x", "type": "nonsense", "definition": "d"}]]
)
def test_a_description_that_is_none_is_one_line(tmp_path, columns):
    path = write_table(make_score_frame(2), tmp_path / "t.csv", SCORE_SCHEMA)
    sidecar = tmp_path / "t.csv.schema.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"columns": columns}))
    with pytest.raises(DpotoolError, match=r"t\.csv") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    sidecar.write_text("[" * 100_000)
    with pytest.raises(DpotoolError, match="cannot be read as the description of a table"):
        read_raw_metadata(path)

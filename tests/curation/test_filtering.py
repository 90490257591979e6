"""Filters: which pairs go, that the files keep order, format and every field, and that the counts add up."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from dpotool.compare.diagnosis import RISKS
from dpotool.curation import filtering
from dpotool.curation.filtering import MEASURES, SIDES, choose_dropped, filter_pairs
from dpotool.data.pair_sets import load_rows
from dpotool.data.sources import load_preferences
from dpotool.errors import DpotoolError
from dpotool.runs.schemas import DIAGNOSIS_SCHEMA
from dpotool.runs.tables import write_table
from dpotool.settings.reading import FilterConfig

N = 12
ROWS: list[dict[str, Any]] = [
    {
        "prompt": f"Say {n}:",
        "chosen": " " + "red " * n + "end",
        "rejected": f" blue, “{n}”\n",
        "note": {"of": ["no", "concern"], "to": n},
        "score_chosen": 2,
        "score_rejected": 1.5,
    }
    for n in range(1, N + 1)
]


def write_source(folder: Path, suffix: str) -> Path:
    path = folder / f"pairs_train{suffix}"
    lines = "".join(json.dumps(row, ensure_ascii=n % 2 == 0) + "\n\n" for n, row in enumerate(ROWS)).encode()
    if suffix == ".jsonl":
        path.write_bytes(lines)
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines))
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif suffix == ".parquet":
        pd.DataFrame(ROWS).to_parquet(path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    return path


def read_all(path: Path) -> list[dict[str, Any]]:
    """Every row with every field, read by somebody else's reader."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if path.suffix == ".json":
        return json.loads(raw)
    return [json.loads(line) for line in raw.splitlines() if line]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv"])
def test_files_keep_order_format_and_every_field(tmp_path: Path, suffix: str) -> None:
    source = write_source(tmp_path, suffix)
    config = FilterConfig(data=str(source), by="chosen_tokens", keep=0.75, output=str(tmp_path / "out"))
    result = filter_pairs(config)
    everything, kept, dropped = map(read_all, (source, result.kept, result.dropped))
    assert result.kept.name == f"pairs_train-kept{suffix}"
    assert kept == everything[:9] and dropped == everything[9:]  # the longest chosen answers go
    manifest = json.loads(result.path.read_text(encoding="utf-8"))
    assert manifest["n_kept"] + manifest["n_dropped"] == manifest["n_rows"] == N
    assert manifest["kept"]["rows"] == list(range(9)) and manifest["dropped"]["rows"] == [9, 10, 11]
    assert manifest["dropped"]["values"] == sorted(manifest["dropped"]["values"])
    assert max(manifest["kept"]["values"]) < min(manifest["dropped"]["values"])
    again = load_preferences(str(result.kept))  # train and sweep read it so
    before = load_rows(config, seed=42, default_split="train").pairs
    assert [(p.prompt, p.chosen, p.rejected) for p in again.pairs] == [
        (p.prompt, p.chosen, p.rejected) for p in before[:9]
    ]


def test_lines_are_copied_byte_for_byte(tmp_path: Path) -> None:
    source = write_source(tmp_path, ".jsonl")
    result = filter_pairs(FilterConfig(data=str(source), by="chosen_tokens", drop_top=5, output=str(tmp_path / "o")))
    lines = [line for line in source.read_bytes().split(b"\n") if line]
    assert result.kept.read_bytes().split(b"\n")[:-1] == lines[:7]


def test_a_file_that_changes_meanwhile_is_not_written_by_rows_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path, ".jsonl")
    config = FilterConfig(data=str(source), by="chosen_tokens", drop_top=5, output=str(tmp_path / "o"))
    real = filtering.load_rows

    def load_and_then_change(*args: Any, **options: Any) -> Any:
        data = real(*args, **options)
        source.write_bytes(b"".join(source.read_bytes().splitlines(keepends=True)[::-1]))
        return data

    monkeypatch.setattr(filtering, "load_rows", load_and_then_change)
    with pytest.raises(DpotoolError, match="was changed while it was worked on"):
        filter_pairs(config)
    assert not list((tmp_path / "o").glob("*kept*"))


def test_which_pairs_go_by_hand() -> None:
    """Of 3, -5, 1, 3 the highest two are rows 0 and 3, the lowest is row 1, the furthest from 0 is row 1."""
    values = {0: 3.0, 1: -5.0, 2: 1.0, 3: 3.0}
    assert choose_dropped(values, "highest", drop_top=2) == {0, 3}
    assert choose_dropped(values, "highest", keep=0.75) == {0}
    assert choose_dropped(values, "lowest", keep=0.5) == {1, 2}
    assert choose_dropped(values, "furthest", drop_top=1) == {1}


def test_values_come_from_a_table_of_the_same_pairs(tmp_path: Path) -> None:
    source = str(write_source(tmp_path, ".jsonl"))
    fingerprint = load_preferences(source).source.fingerprint
    frame = pd.DataFrame({"pair_id": range(N), "status": "ok", "driver_score": [0.1 * (n - 6) for n in range(N)]})
    frame.loc[3, ["status", "driver_score"]] = ["longer than the maximum length", None]
    folder = tmp_path / "run" / "diagnosis"
    table = folder / "pairs_train-train.parquet"
    write_table(frame, table, DIAGNOSIS_SCHEMA, {"fingerprints": {"data": fingerprint}})
    for named in ({"table": str(table)}, {"model": str(tmp_path / "run")}):
        config = FilterConfig(data=source, by="driver_score", drop_top=4, output=str(tmp_path / "out"), **named)
        manifest = filter_pairs(config).manifest
        assert manifest["dropped"]["rows"] == [0, 1, 2, 4]  # row 3 has no value, and stays
        assert manifest["n_kept_without_value"] == 1 and manifest["values_from"] == str(table)
    write_table(frame, table, DIAGNOSIS_SCHEMA, {"fingerprints": {"data": "other"}, "data": "b", "split": "train"})
    with pytest.raises(DpotoolError, match="is of other pairs"):
        filter_pairs(FilterConfig(data=source, by="driver_score", drop_top=4, table=str(table)))
    with pytest.raises(DpotoolError, match=r"no table has driver_score of these pairs.*theory-gap"):
        filter_pairs(FilterConfig(data=source, by="driver_score", drop_top=4, model=str(tmp_path / "run")))


def test_random_is_drawn_by_the_seed(tmp_path: Path) -> None:
    source = str(write_source(tmp_path, ".jsonl"))
    dropped = [
        filter_pairs(FilterConfig(data=source, by="random", keep=0.5, seed=seed, output=str(tmp_path / "o"))).manifest[
            "dropped"
        ]["rows"]
        for seed in (1, 1, 2)
    ]
    assert dropped[0] == dropped[1] != dropped[2] and len(dropped[0]) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either --keep or --drop-top"),
        ({"keep": 0.5, "drop_top": 3}, "either --keep or --drop-top"),
        ({"by": "edit_similarty", "keep": 0.5}, "no measure 'edit_similarty'"),
        ({"drop_top": N}, "no pair would be kept"),
        ({"keep": 0.5, "drop": "both"}, "unknown side"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DpotoolError, match=message):
        filter_pairs(FilterConfig(data=str(write_source(tmp_path, ".jsonl")), output=str(tmp_path / "o"), **settings))
    assert not (tmp_path / "o").exists()


def test_every_risk_measure_can_filter() -> None:
    assert RISKS.keys() < MEASURES.keys()
    assert {side for _, side in MEASURES.values()} <= set(SIDES)

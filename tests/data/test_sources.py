"""Pairs from every kind of source; row numbers, limits, cuts and malformed rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from dpotool.data.sources import has_test_split, load_preferences
from dpotool.errors import DpotoolError

ROWS = [
    {"prompt": f"Q{n}", "chosen": f" yes {n}", "rejected": f" no {n}", "score_chosen": n + 1, "score_rejected": n}
    for n in range(6)
]


def write_jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def _write_json(folder: Path) -> str:
    (folder / "pairs.json").write_text(json.dumps(ROWS))
    return str(folder / "pairs.json")


def _write_parquet(folder: Path) -> str:
    pd.DataFrame(ROWS).to_parquet(folder / "pairs.parquet")
    return str(folder / "pairs.parquet")


def _write_csv(folder: Path) -> str:
    pd.DataFrame(ROWS).to_csv(folder / "pairs.csv", index=False)
    return str(folder / "pairs.csv")


def _write_arrow(folder: Path) -> str:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "pairs"))
    return str(folder / "pairs")


WRITERS = [
    lambda folder: write_jsonl(folder / "pairs.jsonl", ROWS),
    _write_json,
    _write_parquet,
    _write_csv,
    _write_arrow,
]


@pytest.mark.parametrize("write", WRITERS, ids=["jsonl", "json", "parquet", "csv", "arrow"])
def test_every_kind_of_file_gives_the_same_pairs(tmp_path: Path, write: Callable[[Path], str]) -> None:
    """... and so the same fingerprint, which is of the rows and not of the file."""
    reference = load_preferences(write_jsonl(tmp_path / "reference.jsonl", ROWS))
    loaded = load_preferences(write(tmp_path))
    assert loaded.pairs == reference.pairs
    assert [pair.pair_id for pair in loaded.pairs] == list(range(6))
    assert (loaded.pairs[2].prompt, loaded.pairs[2].score_chosen) == ("Q2", 3.0)
    assert (loaded.source.name, loaded.source.split, loaded.source.format) == ("pairs", "all", "text")
    assert loaded.source.fingerprint == reference.source.fingerprint


def test_the_fingerprint_changes_with_a_letter(tmp_path: Path) -> None:
    changed = [*ROWS[:-1], ROWS[-1] | {"chosen": " yes 6"}]
    fingerprints = {
        load_preferences(write_jsonl(tmp_path / "pairs.jsonl", rows)).source.fingerprint
        for rows in (ROWS, changed, ROWS[:-1])
    }
    assert len(fingerprints) == 3


def test_a_saved_dataset_dict_has_its_splits(tmp_path: Path) -> None:
    halves = {"train_prefs": datasets.Dataset.from_list(ROWS[:4]), "test_prefs": datasets.Dataset.from_list(ROWS[4:])}
    datasets.DatasetDict(halves).save_to_disk(str(tmp_path / "uf"))
    loaded = load_preferences(str(tmp_path / "uf"))
    assert (loaded.source.split, [pair.prompt for pair in loaded.pairs]) == ("test_prefs", ["Q4", "Q5"])
    assert load_preferences(str(tmp_path / "uf"), default_split="train").source.split == "train_prefs"
    assert has_test_split(str(tmp_path / "uf"))


def test_conversations_come_back_from_arrow_as_they_went_in(tmp_path: Path) -> None:
    user, yes = {"content": "Hi", "role": "user"}, {"content": "Yes", "role": "assistant"}
    no = yes | {"content": "No"}
    rows = [{"chosen": [user, yes], "rejected": [user, no], "chosen_rating": 5, "rejected_rating": 4}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "capybara"))
    (pair,) = load_preferences(str(tmp_path / "capybara")).pairs
    assert (pair.prompt, pair.chosen, pair.rejected, pair.score_chosen) == ([user], [yes], [no], 5.0)


def test_the_hub_is_asked_for_the_split_that_stands_for_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(path: str, name: str | None, *, split: str) -> datasets.Dataset:
        asked.append((path, name, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda path, name: ["train_prefs", "test_prefs", "test_sft"]
    )
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load_preferences("HuggingFaceH4/ultrafeedback_binarized", limit=2)
    assert (loaded.source.name, loaded.source.split, len(loaded.pairs)) == ("ultrafeedback_binarized", "test_prefs", 2)
    load_preferences("org/name:config", split="train")
    assert asked == [
        ("HuggingFaceH4/ultrafeedback_binarized", None, "test_prefs"),
        ("org/name", "config", "train_prefs"),
    ]


def test_a_hub_that_cannot_be_reached_is_one_line() -> None:
    with pytest.raises(
        DpotoolError, match=r"org/absent: is no local file, and cannot be loaded from the hub"
    ) as caught:
        load_preferences("org/absent")
    assert "\n" not in str(caught.value)


def test_limit_takes_the_first_rows_and_reads_no_further(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", [*ROWS, "broken"])
    loaded = load_preferences(data, limit=6)
    assert (loaded.n_rows, [pair.pair_id for pair in loaded.pairs]) == (6, list(range(6)))


def test_a_cut_keeps_the_row_numbers_of_the_source(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", ROWS)
    parts = {part: load_preferences(data, split=part, test_fraction=0.34) for part in ("train", "test")}
    ids = {part: [pair.pair_id for pair in loaded.pairs] for part, loaded in parts.items()}
    assert (len(ids["train"]), len(ids["test"])) == (4, 2)
    assert sorted(ids["train"] + ids["test"]) == list(range(6))
    assert ids["train"] == sorted(ids["train"])
    assert all(pair.prompt == f"Q{pair.pair_id}" for loaded in parts.values() for pair in loaded.pairs)
    assert load_preferences(data, test_fraction=0.34).source.split == "test"
    assert load_preferences(data, test_fraction=0.34, default_split="train").source.split == "train"
    assert len(load_preferences(data, split="train", test_fraction=0.34, limit=3).pairs) == 3
    assert has_test_split(data, 0.34)
    assert not has_test_split(data)


def test_a_prompt_that_repeats_is_on_one_side_of_the_cut(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", [row | {"prompt": f"Q{n % 3}"} for n, row in enumerate(ROWS)])
    train, test = (
        {pair.prompt for pair in load_preferences(data, split=part, test_fraction=0.2).pairs}
        for part in ("train", "test")
    )
    assert len(train) == 2
    assert len(test) == 1
    assert not train & test


BROKEN = [ROWS[0], '{"prompt": "x"', "", ROWS[1] | {"rejected": ""}, ROWS[2], ROWS[3] | {"chosen": 7}]


def test_malformed_rows_are_an_error_that_names_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", BROKEN)
    with pytest.raises(DpotoolError) as caught:
        load_preferences(data)
    assert str(caught.value) == (
        f"{data}:2: broken JSON: Expecting ',' delimiter at column 15. "
        "2 more rows are malformed. Mend them, or pass --skip-invalid to leave them out"
    )


def test_skip_invalid_leaves_them_out_and_lists_them(tmp_path: Path) -> None:
    loaded = load_preferences(write_jsonl(tmp_path / "pairs.jsonl", BROKEN), skip_invalid=True)
    assert [pair.pair_id for pair in loaded.pairs] == [0, 3]
    assert loaded.n_rows == 5
    assert loaded.invalid == {
        1: "broken JSON: Expecting ',' delimiter at column 15",
        2: "'rejected' is empty",
        4: "'chosen' is a number, expected a string",
    }


def test_the_only_malformed_row_is_named_as_such(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", [*ROWS, {"prompt": "x", "chosen": "y"}])
    with pytest.raises(DpotoolError, match=r"pairs.jsonl:7: 'rejected' is missing. No other row is malformed. Mend it"):
        load_preferences(data)


@pytest.mark.parametrize("rows", [["broken", "too"], [{"prompt": "a", "chosen": "", "rejected": "b"}] * 2])
def test_without_a_single_good_row_skipping_does_not_help(tmp_path: Path, rows: list[Any]) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DpotoolError, match=r"pairs.jsonl:1: .*No row is well formed$"):
        load_preferences(data, skip_invalid=True)


def test_a_malformed_parquet_row_is_located_by_number(tmp_path: Path) -> None:
    pd.DataFrame([ROWS[0], ROWS[1] | {"chosen": ""}]).to_parquet(tmp_path / "pairs.parquet")
    with pytest.raises(DpotoolError, match=r"pairs.parquet: row 1: 'chosen' is empty"):
        load_preferences(str(tmp_path / "pairs.parquet"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("gone.jsonl", r"no file or folder 'gone.jsonl'; expected a path, a hub id as ORG/NAME, or builtin:demo"),
        ("gone/pairs.jsonl", r"no file or folder 'gone/pairs.jsonl'"),
        ("gone", r"no file or folder 'gone'"),
        ("builtin:dmeo", r"no built-in data 'builtin:dmeo'. Did you mean 'builtin:demo'\?"),
    ],
)
def test_a_source_that_does_not_exist(data: str, message: str) -> None:
    with pytest.raises(DpotoolError, match=message):
        load_preferences(data)


def test_a_folder_that_is_no_saved_dataset_names_the_files_in_it(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", ROWS)
    with pytest.raises(
        DpotoolError,
        match=r"neither one written by datasets\.save_to_disk nor .*\. Name one of its files: pairs\.jsonl",
    ):
        load_preferences(str(tmp_path))


def test_a_half_written_saved_dataset_is_one_line(tmp_path: Path) -> None:
    folder = Path(_write_arrow(tmp_path))
    next(folder.glob("*.arrow")).unlink()
    with pytest.raises(DpotoolError, match=r"pairs: cannot be read as a saved dataset"):
        load_preferences(str(folder))


def test_an_empty_file_and_a_limit_below_one_are_errors(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", [])
    with pytest.raises(DpotoolError, match=r"pairs.jsonl: holds no rows"):
        load_preferences(data)
    with pytest.raises(DpotoolError, match=r"--limit is out of range; expected at least 1, got 0"):
        load_preferences(data, limit=0)


def test_the_demo_has_a_train_and_a_test_split() -> None:
    train, test = load_preferences("builtin:demo", split="train"), load_preferences("builtin:demo")
    assert (train.source.name, train.source.split, test.source.split) == ("demo", "train", "test")
    assert train.pairs
    assert test.pairs


def test_reading_a_file_imports_nothing_heavy(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", ROWS)
    code = (
        "import sys; from dpotool.data.sources import load_preferences; load_preferences(sys.argv[1]);"
        "sys.exit(bool({'torch', 'transformers', 'datasets', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, data], check=False).returncode == 0


def test_malformed_rows_are_told_before_a_cut_that_they_leave_empty(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "Q", "chosen": 5, "rejected": "no"}])
    with pytest.raises(DpotoolError, match=r"pairs.jsonl:1: 'chosen' is a number"):
        load_preferences(data, test_fraction=0.5)

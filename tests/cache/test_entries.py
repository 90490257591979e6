"""What the cache lists, finds wrong, and deletes."""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from dpotool.cache.checking import check_store
from dpotool.cache.clearing import choose_entries, clear_entries
from dpotool.cache.entries import ABOUT, CacheEntry, list_entries, name_store, read_about, record_use, store_root
from dpotool.cache.parts import name_part, write_part
from dpotool.errors import DpotoolError
from dpotool.runs.locks import mark_used

VERSIONS = {"torch": "2.13.0"}
A, B = "a" * 16, "b" * 16


def add_store(fingerprint: str, model: str, n: int, *, days_old: float = 0.0, types: str = "float32-None") -> Path:
    folder = store_root() / name_store(fingerprint, types)
    write_part(folder, {f"{number:032x}": (-1.0 * number, -2.0) for number in range(n)})
    record_use(folder, model, VERSIONS, is_written=True)
    then = (datetime.now(UTC) - timedelta(days=days_old)).timestamp()
    for path in folder.iterdir():
        os.utime(path, (then, then))
    return folder


def add_demo(cache: Path, *, is_complete: bool = True) -> Path:
    folder = cache / "demo-0123456789ab"
    (folder / "checkpoint-9").mkdir(parents=True)
    for name in (
        "run.yaml",
        "model.safetensors",
        "checkpoint-9/optimizer.pt",
        "config.json",
        *(["made.json"] * is_complete),
    ):
        (folder / name).write_text("x" * 10)
    return folder


def test_the_list_holds_models_and_the_built_in_one_newest_first(own_cache: Path) -> None:
    add_store(A, "/models/first", 3, days_old=2)
    folder = add_store(B, "org/second", 2, types="bfloat16-bfloat16")
    record_use(folder, "org/again", VERSIONS, is_written=True)
    add_demo(own_cache, is_complete=False)
    (own_cache / "reference" / "something-else").mkdir()
    (own_cache / "notes.txt").write_text("mine")
    entries = {entry.fingerprint: entry for entry in list_entries()}
    assert set(entries) == {A, B, "0123456789ab"}
    assert (entries[A].n_pairs, entries[A].types, entries[A].models) == (3, "float32", ("/models/first",))
    assert (entries[B].n_pairs, entries[B].types) == (2, "bfloat16-bfloat16")
    assert entries[B].models == ("org/second", "org/again")
    assert entries["0123456789ab"].n_bytes == 40 and not entries["0123456789ab"].is_complete
    assert list_entries()[-1].fingerprint == A


def test_reading_counts_as_use(own_cache: Path) -> None:
    folder = add_store(A, "m", 1, days_old=9)
    record_use(folder, "m", VERSIONS, is_written=False)
    (entry,) = list_entries()
    assert datetime.now(UTC) - entry.last_used < timedelta(minutes=1)


def test_a_sound_store_is_sound_and_each_fault_is_found(own_cache: Path) -> None:
    """Two rows of key 0: -100 and -100.5 differ by 0.5 %, beyond rounding in float32; -200 and -200.001 do not."""
    folder = add_store(A, "m", 4)
    (entry,) = list_entries()
    check = check_store(entry)
    assert (check.is_sound, check.n_pairs, check.n_files, check.n_duplicate) == (True, 4, 1, 0)
    for number, chosen in enumerate((-100.0, -100.5, -200.0, -200.001)):
        write_part(folder, {f"key {number // 2}": (chosen, -1.0)})
    nan = pd.DataFrame({"key": ["n"], "chosen_logps": [float("nan")], "rejected_logps": [-1.0]})
    nan.to_parquet(folder / name_part(folder, [nan[name] for name in nan]), index=False)
    (folder / f"{8:032x}.parquet").write_bytes(b"half")
    check = check_store(entry)
    assert not check.is_sound
    assert (check.n_pairs, check.n_duplicate, check.n_disagreeing, check.n_not_finite) == (6, 2, 1, 1)
    assert check.largest_difference == pytest.approx(0.5)
    assert list(check.unreadable) == [f"{8:032x}.parquet"]


def test_choosing_by_model_and_age(own_cache: Path) -> None:
    add_store(A, "/models/old", 1, days_old=40)
    add_store(B, "org/new", 1)
    entries = list_entries()

    def chosen(**how: object) -> set[str]:
        return {entry.fingerprint for entry in choose_entries(entries, **how)}  # type: ignore[arg-type]

    assert chosen() == {A, B}
    assert chosen(older_than_days=30) == {A}
    assert chosen(model="org/new") == chosen(model="new") == chosen(model=B[:8]) == {B}
    assert chosen(model="old", older_than_days=50) == set()
    with pytest.raises(DpotoolError, match="nothing in the cache is of this model"):
        chosen(model="no")


def test_clearing_deletes_what_is_ours_and_nothing_else(own_cache: Path, tmp_path: Path) -> None:
    folder, other = add_store(A, "m", 3), add_store(B, "k", 3)
    (other / "letter.txt").write_text("keep me")
    demo = add_demo(own_cache)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / f"{1:016x}.parquet").write_bytes(b"keep me")
    (store_root() / name_store("c" * 16, "float32-None")).symlink_to(outside)
    (own_cache / "notes.txt").write_text("keep me")
    entries: list[CacheEntry] = list_entries()
    n_bytes = sum(entry.n_bytes for entry in entries)
    cleared = clear_entries(entries)
    assert (cleared.n_entries, cleared.n_files, cleared.n_bytes) == (3, 9, n_bytes)
    assert not folder.exists() and not demo.exists()
    assert cleared.left == (other,)
    kept = {path.name for path in own_cache.rglob("*") if path.is_file()}
    assert kept == {"letter.txt", "notes.txt"}
    assert (outside / f"{1:016x}.parquet").exists()
    assert [entry.n_pairs for entry in list_entries()] == [0]
    assert not (other / ABOUT).exists()


def test_a_built_in_model_that_another_command_uses_is_not_cleared(own_cache: Path) -> None:
    demo = add_demo(own_cache)
    assert mark_used(demo / "made.json") and clear_entries(list_entries()).used == (), "its own use counts for nothing"
    demo = add_demo(own_cache)
    with (demo / "made.json").open() as file:  # as another process would
        fcntl.flock(file, fcntl.LOCK_SH)
        cleared = clear_entries(list_entries())
    assert (cleared.used, cleared.n_files) == ((demo,), 0)
    assert clear_entries(list_entries()).n_files == 5
    assert not mark_used(demo / "made.json"), "it is gone"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"models": 5}', '{"models": [[1]]}', '{"versions": []}', "null"])
def test_a_record_that_cannot_be_read_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "about.json").write_text(text)
    assert read_about(tmp_path) == {}

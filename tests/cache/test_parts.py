"""Parts of a store: written, read, merged, by several processes at a time, without losing a pair."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from dpotool.cache import parts
from dpotool.cache.parts import UnreadablePartError, list_parts, merge_parts, read_part, read_parts, write_part

WRITER = """
import sys
from pathlib import Path
from dpotool.cache.parts import merge_parts, read_parts, write_part
folder, name = Path(sys.argv[1]), sys.argv[2]
for number in range(12):
    write_part(folder, {f"{name}-{number}": (-1.0 * number, -2.0 * number), f"both-{number}": (-3.0, -4.0)})
    merge_parts(folder, at_least=4)
    known = read_parts(folder).values
    lost = [n for n in range(number + 1) if known.get(f"{name}-{n}") != (-1.0 * n, -2.0 * n)]
    assert not lost, lost
"""


def test_parts_add_up_and_the_last_by_name_wins(tmp_path: Path) -> None:
    write_part(tmp_path, {"a": (-1.0, -2.0), "b": (-3.0, -4.0)})
    write_part(tmp_path, {"b": (-3.5, -4.5), "c": (-5.0, -6.0)})
    assert len(list_parts(tmp_path)) == 2
    found = read_parts(tmp_path)
    last = {key: (c, r) for key, c, r in read_part(list_parts(tmp_path)[-1])}
    assert found.values == {"a": (-1.0, -2.0), "b": last["b"], "c": (-5.0, -6.0)}
    assert found.sources == tuple(list_parts(tmp_path))


def test_values_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    write_part(tmp_path, {"a": (-1.0, float("nan")), "b": (float("-inf"), -1.0), "c": (-1.0, -2.0)})
    assert read_parts(tmp_path).values == {"c": (-1.0, -2.0)}
    write_part(tmp_path / "none", {"a": (-1.0, float("nan"))})
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_is_not_believed_and_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    write_part(tmp_path / "model", {"a": (5.0, -2.0)})
    write_part(tmp_path / "model-products-1", {"a": (1.0, -4.0, 2.0, -1.0, -2.0)})
    for folder, says in (("model", "5 for chosen_logps"), ("model-products-1", "-4 for chosen_grad_sq_norm")):
        found = read_parts(tmp_path / folder)
        assert not found.values and list(found.unreadable.values()) == [f"it holds {says}"]
    [part] = list_parts(tmp_path / "model")
    part.unlink()
    os.mkfifo(part)
    assert "a pipe or a device" in next(iter(read_parts(tmp_path / "model").unreadable.values()))


def test_values_belong_to_their_pair_and_to_their_model(tmp_path: Path) -> None:
    """Moved to another pair by whatever writes Parquet, or copied into another model's folder, they are not believed,
    nor is what was written before names followed from values."""
    write_part(tmp_path / "one", {"a": (-1.0, -2.0), "b": (-3.0, -4.0)})
    [part] = list_parts(tmp_path / "one")
    frame = pd.read_parquet(part)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / part.name).write_bytes(part.read_bytes())
    assert read_parts(tmp_path / "one").values and not read_parts(tmp_path / "other").values
    for changed in (
        frame.assign(key=["b", "a"]),
        frame.assign(chosen_logps=frame["rejected_logps"], rejected_logps=frame["chosen_logps"]),
    ):
        changed.to_parquet(part, index=False)
        assert not read_parts(tmp_path / "one").values
    part.rename(old := part.with_stem("0" * 16))
    found = read_parts(tmp_path / "one")
    assert not found.values and "an earlier release wrote it" in found.unreadable[old]


def test_merging_keeps_every_value_and_touches_nothing_else(tmp_path: Path) -> None:
    for number in range(5):
        write_part(tmp_path, {f"k{number}": (-1.0 * number, -2.0), "same": (-0.5 * number, -1.0)})
    before = read_parts(tmp_path).values
    broken = tmp_path / f"{'0' * 32}.parquet"
    broken.write_bytes(b"PAR1 half a file")
    stranger = tmp_path / "notes.parquet"
    stranger.write_bytes(b"not ours")
    merge_parts(tmp_path, at_least=7)
    assert len(list_parts(tmp_path)) == 6, "too few to be worth it"
    merge_parts(tmp_path, at_least=6)
    assert read_parts(tmp_path).values == before
    assert len(list_parts(tmp_path)) == 2 and broken.exists() and stranger.exists()


def test_a_file_that_vanishes_while_reading_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write_part(tmp_path, {f"k{number}": (-1.0, -2.0)})
    real, calls = parts.read_part, []

    def merged_meanwhile(path: Path) -> list[tuple[str, float, float]]:
        if not calls:
            calls.append(path)
            merge_parts(tmp_path, at_least=2)
        return real(path)

    monkeypatch.setattr(parts, "read_part", merged_meanwhile)
    assert set(read_parts(tmp_path).values) == {"k0", "k1", "k2"}
    assert calls


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"key": ["a"]}, "it holds key: "),
        ({"key": ["a"], "chosen_logps": ["x"], "rejected_logps": [1.0]}, "it holds key: "),
        ({"key": ["a", None], "chosen_logps": [1.0, 2.0], "rejected_logps": [1.0, 2.0]}, "it has a row without a key"),
    ],
)
def test_a_part_with_other_columns_is_unreadable(tmp_path: Path, columns: dict[str, list[object]], says: str) -> None:
    path = tmp_path / f"{'a' * 32}.parquet"
    pd.DataFrame(columns).to_parquet(path, index=False)
    with pytest.raises(UnreadablePartError, match=says):
        read_part(path)
    assert read_parts(tmp_path).values == {}
    assert list(read_parts(tmp_path).unreadable) == [path]


def test_parts_that_pandas_wrote_are_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"key": ["a"], "chosen_logps": [-1.0], "rejected_logps": [-2.0]})
    write_part(tmp_path, {"a": (-1.0, -2.0)})
    frame.to_parquet(list_parts(tmp_path)[0], index=False)
    assert read_parts(tmp_path).values == {"a": (-1.0, -2.0)}


def test_two_processes_write_merge_and_read_at_once(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in ("x", "y")]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    expected = {f"{name}-{n}" for name in ("x", "y", "both") for n in range(12)}
    assert set(read_parts(tmp_path).values) == expected
    assert not list(tmp_path.glob(".tmp-*"))

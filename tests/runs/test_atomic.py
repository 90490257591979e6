from __future__ import annotations

import enum
import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from dpotool.errors import DpotoolError
from dpotool.runs import atomic
from dpotool.runs.atomic import as_cell, to_json_plain, to_plain


@pytest.mark.parametrize(
    ("write", "value", "read"),
    [
        (atomic.write_text, "é\r\n", lambda path: path.read_bytes().decode()),
        (atomic.write_bytes, b"\x00\xff", Path.read_bytes),
        (atomic.write_json, {"a": [1, None, 0.1]}, lambda path: json.loads(path.read_text())),
        (atomic.write_yaml, {"z": 5e-7, "a": "5e-7", "λ": None}, lambda path: yaml.safe_load(path.read_text())),
    ],
)  # fmt: skip
def test_what_is_written_is_read_back(tmp_path, write, value, read):
    path = write(tmp_path / "new" / "folder" / "file", value)

    assert read(path) == value
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_yaml_keeps_the_order_of_keys(tmp_path):
    path = atomic.write_yaml(tmp_path / "run.yaml", {"kind": "train", "config": {"b": 1, "a": 2}})

    assert path.read_text() == "kind: train\nconfig:\n  b: 1\n  a: 2\n"


def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = atomic.write_text(tmp_path / "a.txt", "old")

    def write_half(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), atomic.atomic_path(path) as temporary:
        write_half(temporary)

    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "no space left to write here. Free some space or choose another folder"),
        (errno.EROFS, "cannot be written, the folder is read-only. Choose a folder you may write to"),
        (errno.EACCES, "cannot be written, the folder is read-only. Choose a folder you may write to"),
        (errno.EIO, "cannot be written (Input/output error). Choose another folder"),
    ],
)
def test_a_disk_that_refuses_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, number, says):
    path = atomic.write_text(tmp_path / "a.txt", "old")

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DpotoolError) as caught:
        atomic.write_text(path, "new")

    assert str(caught.value) == f"{path}: {says}; what stood there before is unchanged"
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_where_the_folder_should_be_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("")

    with pytest.raises(DpotoolError, match="a file stands where a folder is needed"):
        atomic.write_text(tmp_path / "runs" / "a.txt", "")
    with pytest.raises(DpotoolError, match="a file stands where a folder is needed"):
        atomic.ensure_writable(tmp_path / "runs")


def test_ensure_writable_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
    folder = atomic.ensure_writable(tmp_path / "a" / "b")

    assert folder.is_dir()
    assert not list(folder.iterdir())


@pytest.mark.skipif(os.getuid() == 0, reason="root may write to read-only folders")
def test_ensure_writable_refuses_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DpotoolError, match="the folder is read-only"):
        atomic.ensure_writable(tmp_path / "runs")


def test_ensure_writable_refuses_a_full_disk(tmp_path, monkeypatch):
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(DpotoolError, match="no space left to write here"):
        atomic.ensure_writable(tmp_path)


def test_a_new_file_has_the_permissions_any_new_file_has(tmp_path):
    (tmp_path / "plain").write_text("")
    path = atomic.write_text(tmp_path / "atomic", "")

    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def claim_and_fail(folder, *files):
    with atomic.claiming(folder):
        for name in files:
            (folder / name).write_text("x")
        raise RuntimeError("the model cannot be loaded")


def test_a_claimed_folder_goes_again_when_nothing_was_written(tmp_path):
    with pytest.raises(RuntimeError, match="the model"):
        claim_and_fail(tmp_path / "runs" / "new")
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError, match="the model"):
        claim_and_fail(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir(), "what was there before stays"

    with pytest.raises(RuntimeError, match="the model"):
        claim_and_fail(tmp_path / "runs" / "begun", "table")
    assert (tmp_path / "runs" / "begun" / "table").read_text() == "x"

    with atomic.claiming(tmp_path / "done"):
        pass
    assert (tmp_path / "done").is_dir()


@pytest.mark.parametrize(("name", "message"), [("x" * 300, "the name is too long"), ("a\0b", "is no path")])
def test_a_name_that_no_file_can_have_is_one_line(tmp_path, name, message):
    with pytest.raises(DpotoolError, match=message):
        atomic.write_text(tmp_path / name / "a", "")
    with pytest.raises(DpotoolError, match=message):
        atomic.ensure_writable(tmp_path / name)
    with pytest.raises(DpotoolError, match=message), atomic.claiming(tmp_path / name):
        pass


def test_a_name_that_is_no_utf8_does_not_cost_the_file(tmp_path):
    assert json.loads(atomic.write_json(tmp_path / "a.json", {"path": "x\udcff"}).read_text()) == {"path": "x\udcff"}
    assert atomic.write_text(tmp_path / "a.md", "x\udcff").read_text() == r"x\udcff"


class Truncation(enum.Enum):
    TRIM = "trim-prompt"


class Name(str):
    __slots__ = ()


@dataclass
class Settings:
    output: Path
    lambdas: tuple[float, ...]
    truncation: Truncation


def test_dataclasses_paths_enums_and_numpy_become_plain():
    value = {"settings": Settings(Path("runs/a"), (0.5, 1.0), Truncation.TRIM), 3: np.float32(0.5), "n": np.arange(2)}

    assert to_plain(value) == {
        "settings": {"output": "runs/a", "lambdas": [0.5, 1.0], "truncation": "trim-prompt"},
        "3": 0.5,
        "n": [0, 1],
    }


def test_a_subclass_of_str_becomes_str_itself():
    assert type(to_plain(Name("x"))) is str


def test_a_bool_stays_a_bool():
    assert to_plain(np.bool_(True)) is True


def test_an_object_that_cannot_be_written_is_refused_not_shown_as_its_repr():
    with pytest.raises(TypeError, match="cannot write a value of type object"):
        to_plain({"a": object()})


def test_json_has_no_nan_or_infinity():
    assert to_json_plain({"a": [float("nan"), np.inf, 1.0]}) == {"a": [None, None, 1.0]}


@pytest.mark.parametrize("text", ["=cmd|calc!A1", "+1+1", "-2+3", "@sum(1)", "\t=1"])
def test_no_text_in_a_csv_is_a_formula(text):
    assert as_cell(text) == f"'{text}"
    assert [as_cell(value) for value in ("a=b", -2.5, None, "")] == ["a=b", -2.5, None, ""]

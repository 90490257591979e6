"""A folder is held by one process at a time, by name, and a kill gives it back."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpotool.errors import DpotoolError
from dpotool.runs.locks import LOCK_NAME, InUseError, claiming, holding

HOLD = """
import sys, time
from dpotool.runs.locks import holding
with holding(sys.argv[1], sys.argv[2]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def start_holder(folder: Path, command: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = start_holder(tmp_path, "train")
    yield process
    process.kill()
    process.communicate()


def test_a_held_folder_is_refused_with_the_holders_name(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(InUseError, match=rf"at work in this folder \(train, process {holder.pid} on "),
        holding(tmp_path, "train"),
    ):
        pass
    with pytest.raises(InUseError), claiming(tmp_path, "score"):
        raise AssertionError("a training is not waited for")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_dies_with_its_process(tmp_path: Path, holder: subprocess.Popen[str], end: signal.Signals) -> None:
    holder.send_signal(end)
    holder.wait()
    assert (tmp_path / LOCK_NAME).exists(), "the file stays and means nothing"
    with holding(tmp_path, "train"):
        pass
    assert not (tmp_path / LOCK_NAME).exists()


def test_who_waits_says_for_whom_and_goes_on_when_the_other_is_done(tmp_path: Path) -> None:
    process = start_holder(tmp_path, "score")
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        process.communicate("done\n")

    with claiming(tmp_path, "theory-gap", note):
        assert process.returncode == 0
    assert (
        len(notes) == 1
        and f"waiting for another command that is at work here (score, process {process.pid}" in notes[0]
    )


def test_one_process_may_hold_a_folder_twice(tmp_path: Path) -> None:
    with holding(tmp_path, "sweep"):
        with holding(tmp_path / ".", "train"):
            pass
        assert (tmp_path / LOCK_NAME).exists()
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_of_several_processes_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with holding(tmp_path / "new", "train"):
        assert not (tmp_path / "new").exists()


def test_what_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep")
    with (
        pytest.raises(DpotoolError, match="a file stands where a folder is needed"),
        holding(tmp_path / "file", "train"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "keep"


def test_a_failure_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError), claiming(tmp_path / "a" / "b", "score"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_no_folder_is_made_where_a_dead_link_leads(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DpotoolError, match="is a link that leads nowhere"), holding(link, "train"):
        pass
    assert not (tmp_path / "nowhere").exists()

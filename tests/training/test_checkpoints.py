"""A checkpoint is whole or none: whatever is missing, cut short, changed or another run's is passed over and told."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dpotool.errors import DpotoolError
from dpotool.training import checkpoints
from dpotool.training.checkpoints import SEAL, find_fault, find_whole, publish, rotate, staging

RUN = "2026-11-21T10:15:00"
SUMS = {"pairs": {"sums": {"logps/chosen": -1.5}, "n_pairs": 2, "shift": None}, "monitor": {}}
PROGRESS = {"loss": 0.5, "total_loss": 1.5, "last_logged": 1, "seconds": 2.5, "n_pairs": {"shared": 2}, "sums": SUMS}


def save(folder: Path, step: int, run: str = RUN) -> Path:
    """Saves what looks like a checkpoint to whoever only checks that it is whole."""
    with staging(folder, step, is_main=True) as place:
        place.mkdir(parents=True)
        torch.save({"step": step}, place / "optimizer.pt")
        (place / "model.safetensors").write_bytes(bytes(range(200)))
        (place / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        (place / "progress.json").write_text(json.dumps(PROGRESS))
        return publish(place, run)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:90])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change_seal(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        seal = path / SEAL
        seal.write_text(json.dumps(json.loads(seal.read_text()) | changes))

    return change


def on(name: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda path: change(path / name)


def seal_in(name: str, text: str) -> Callable[[Path], None]:
    """Writes a file, and a seal as if it had been saved so."""

    def change(path: Path) -> None:
        (path / name).write_text(text)
        known = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        files = json.loads((path / SEAL).read_text())["files"]
        change_seal(files=files | {name: known})(path)

    return change


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights missing": (on("model.safetensors", Path.unlink), "lacks model.safetensors"),
    "weights cut short": (on("model.safetensors", truncate), "a damaged model.safetensors (199 bytes of 200)"),
    "weights changed": (on("model.safetensors", flip), "a model.safetensors that is not the one saved"),
    "weights a folder": (
        on("model.safetensors", lambda path: (path.unlink(), path.mkdir())),
        "a damaged model.safetensors",
    ),
    "optimizer missing": (on("optimizer.pt", Path.unlink), "lacks optimizer.pt"),
    "optimizer empty": (on("optimizer.pt", lambda path: path.write_bytes(b"")), "a damaged optimizer.pt (0 bytes"),
    "optimizer changed": (on("optimizer.pt", flip), "a optimizer.pt that is not the one saved"),
    "state of another step": (
        on("trainer_state.json", lambda path: path.write_text('{"global_step": 9}')),
        "a trainer_state.json that is not the one saved",
    ),
    "state of another type": (
        on("trainer_state.json", lambda path: path.write_text('{"global_step": "x"}')),
        "a damaged trainer_state.json",
    ),
    "no seal": (on(SEAL, Path.unlink), "was not saved completely"),
    "seal cut short": (
        on(SEAL, cut),
        f"a {SEAL} that cannot be read",
    ),
    "seal a list": (on(SEAL, lambda path: path.write_text("[]")), f"a {SEAL} that cannot be read"),
    "seal nested deeply": (on(SEAL, lambda path: path.write_text("[" * 50_000)), f"a {SEAL} that cannot be read"),
    "step a text": (change_seal(step="8"), "of step 8"),
    "step negative": (change_seal(step=-8), "of step -8"),
    "step of another": (change_seal(step=4), "of step 4"),
    "step a truth value": (change_seal(step=True), "of step True"),
    "another run": (change_seal(run="2026-01-01"), "is of another run"),
    "sealed state empty": (seal_in("trainer_state.json", ""), "nonsense in trainer_state.json: cannot be read"),
    "sealed state a list": (seal_in("trainer_state.json", "[]"), "nonsense in trainer_state.json: is not what"),
    "sealed state beyond": (seal_in("trainer_state.json", '{"global_step": 100}'), "trainer_state.json of step 100"),
    "sealed progress": (
        seal_in("progress.json", json.dumps(PROGRESS | {"loss": "x"})),
        "nonsense in progress.json: loss: is not what it has to be; expected a number, got 'x'",
    ),
    "files of nothing": (change_seal(files={}), "lacks trainer_state.json, progress.json"),
    "file outside": (
        change_seal(
            files={
                "../checkpoint-4/trainer_state.json": {"bytes": 1, "sha256": ""},
                "trainer_state.json": {"bytes": 1, "sha256": ""},
                "progress.json": {"bytes": 2, "sha256": ""},
            }
        ),
        "names files outside of it",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_the_reason(tmp_path: Path, name: str) -> None:
    older, newer = save(tmp_path, 4), save(tmp_path, 8)
    damage, reason = DAMAGES[name]
    damage(newer)
    found = find_whole(tmp_path, RUN)
    assert found.path == older and found.step == 4
    assert (
        list(found.passed_over) == ["checkpoint-8"] and reason.removeprefix("a ") in found.passed_over["checkpoint-8"]
    )


def test_of_whole_ones_the_newest_is_taken_and_none_beyond_the_run(tmp_path: Path) -> None:
    for step in (8, 20, 100):
        save(tmp_path, step)
    assert find_whole(tmp_path, RUN).step == 100
    found = find_whole(tmp_path, RUN, last_step=20)
    assert found.step == 20 and found.passed_over["checkpoint-100"] == "is of step 100, and the run ends at step 20"
    assert find_whole(tmp_path, "another run").path is None


def test_one_in_the_making_is_none(tmp_path: Path) -> None:
    whole = save(tmp_path, 4)
    shutil.copytree(whole, tmp_path / "checkpoint-8.saving")  # what a kill before the last rename leaves
    (tmp_path / "checkpoint-12").symlink_to(whole)
    found = find_whole(tmp_path, RUN)
    assert found.path == whole and found.passed_over == {}
    checkpoints.remove_unfinished(tmp_path)
    assert not (tmp_path / "checkpoint-8.saving").exists()


def test_a_damaged_one_of_the_same_step_makes_room(tmp_path: Path) -> None:
    truncate(save(tmp_path, 4) / "optimizer.pt")
    assert find_fault(save(tmp_path, 4), RUN) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def fail_to_write(place: Path, reason: int) -> None:
    place.mkdir()
    raise OSError(reason, "No space left on device")


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_one_line_that_says_what_remains(tmp_path: Path, reason: int) -> None:
    save(tmp_path, 4)
    said = r"the checkpoint of step 8 cannot be saved \(.*\); checkpoint-4, saved before, is whole"
    with pytest.raises(DpotoolError, match=said), staging(tmp_path, 8, is_main=True) as place:
        fail_to_write(place, reason)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        save(tmp_path, step)
    rotate(tmp_path, None)
    assert len(list(tmp_path.iterdir())) == 3
    rotate(tmp_path, 1, frozenset({4}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-12", "checkpoint-4"]
    rotate(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-12"]

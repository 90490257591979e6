"""A sweep that is interrupted or killed: no process stays behind, what is finished stays, and it goes on."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from forks import Fork
from tiny_models import save_tiny_model, write_pairs
from transformers.trainer_utils import get_last_checkpoint

from dpotool.errors import DpotoolError
from dpotool.runs.folder import RunFolder
from dpotool.sweep.config import SweepConfig
from dpotool.sweep.run import sweep

pytestmark = pytest.mark.skipif(os.name != "posix", reason="asks processes to stop by POSIX signals")


def start(settings: dict[str, Any], output: Path) -> Fork:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return Fork([sys.executable, "-m", "dpotool", "sweep", "--jobs=2", *words], output)


def wait_for_step(folder: Path, step: int, seconds: float = 120) -> None:
    """Returns once a run has logged a later step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            rows = RunFolder(folder).read_metrics()
        except DpotoolError:
            rows = []
        if any(row.get("step", 0) > step for row in rows):
            return
        time.sleep(0.05)
    raise AssertionError(f"{folder} did not reach step {step}")


def find_workers(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        is_worker = "dpotool.sweep.worker" in words and any(str(folder) in word for word in words)
        if is_worker and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.mark.slow
def test_ctrl_c_and_a_kill_leave_no_process_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "sweep"
    settings: dict[str, Any] = {
        "model": str(save_tiny_model(tmp_path / "tiny")),
        "data": str(write_pairs(tmp_path / "pairs.jsonl", 20)),
        "test_fraction": 0.3,
        "batch_size": 7,
        "max_steps": 200,
        "eval_steps": 1000,
        "logging_steps": 5,
        "output": str(folder),
    }
    sweep(SweepConfig(**settings, lambdas="1.0"))
    weights = (folder / "dpo" / "model.safetensors").stat().st_mtime_ns

    # Ctrl-C, sent to the sweep alone: its run ends with a checkpoint
    process = start(settings | {"lambdas": "0.5,1.0"}, tmp_path / "first.txt")
    wait_for_step(folder / "shift-0.5", 20)
    assert len(find_workers(folder)) == 1
    process.send_signal(signal.SIGINT)
    code, out = process.wait(timeout=60), process.read_output()
    assert code == 130, out
    assert "stopping after this step: shift-0.5" in out and "Run the same command again" in out
    assert find_workers(folder) == []
    manifests = [RunFolder(folder / name).read_manifest()["status"] for name in (".", "dpo", "shift-0.5")]
    assert manifests == ["interrupted", "finished", "interrupted"]
    stopped_at = int(str(get_last_checkpoint(str(folder / "shift-0.5"))).rpartition("-")[2])
    assert 20 < stopped_at < 200

    # kill -9 of the sweep: its run notices and stops by itself, further on
    process = start(settings | {"lambdas": "0.5,1.0"}, tmp_path / "second.txt")
    wait_for_step(folder / "shift-0.5", stopped_at + 20)
    process.kill()
    process.wait(timeout=60)
    end = time.monotonic() + 60
    while find_workers(folder) and time.monotonic() < end:
        time.sleep(0.1)
    assert find_workers(folder) == []
    killed_at = int(str(get_last_checkpoint(str(folder / "shift-0.5"))).rpartition("-")[2])
    assert stopped_at < killed_at < 200

    result = sweep(SweepConfig(**settings, lambdas="0.5,1.0"))
    assert result.n_trained == 1 and result.table["label"].tolist() == ["DPO", "DPO-Shift λ=0.5"]
    assert (folder / "dpo" / "model.safetensors").stat().st_mtime_ns == weights
    steps = [row["step"] for row in RunFolder(folder / "shift-0.5").read_metrics() if "logps/chosen" in row]
    assert steps == list(range(5, 201, 5)), "no step lost, none logged twice"

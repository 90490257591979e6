"""The built-in model is there whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dpotool.cache.clearing import clear_unfinished
from dpotool.errors import DpotoolError
from dpotool.models.builtin import is_builtin, locate_model, standing_in
from dpotool.models.loading import load_tokenizer
from dpotool.models.subject import describe_subject
from dpotool.progress import SILENT
from dpotool.settings.scoring import ScoreConfig
from dpotool.training import demo


def start_making(cache: Path, **environment: str) -> subprocess.Popen[str]:
    """Starts a command that makes the built-in model, and returns when that is being trained."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dpotool", "score", "builtin:demo", "--limit", "2", "--output", str(cache / "out")],
        env=os.environ | {"DPOTOOL_CACHE": str(cache)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not list(cache.glob("tmp-demo-*/trained/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="asks a process to stop by POSIX signals")
@pytest.mark.parametrize(("end", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -9)])  # SIGINT goes as SIGTERM does
def test_an_interrupted_first_use_keeps_nothing(own_cache: Path, end: signal.Signals, code: int) -> None:
    process = start_making(own_cache)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 1
    process.send_signal(end)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in out
    assert psutil.wait_procs(children, timeout=10)[1] == [], "it does not outlive who asked for it"
    assert not list(own_cache.glob("demo-*"))
    clear_unfinished()
    assert not list(own_cache.glob("tmp*"))


@pytest.mark.slow
def test_whoever_asks_gets_the_same_bits_and_nothing_else_is_left(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a launcher with two processes, with two threads and settings of torch's that change numbers.

    Only three steps of its training are taken.
    """
    train = demo._train_apart
    train(tmp_path, SILENT, max_steps=3)
    monkeypatch.setattr(demo, "_train_apart", lambda place, progress: train(place, progress, max_steps=3))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "OMP_NUM_THREADS": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    torch.set_float32_matmul_precision("medium")
    made = demo.ensure_demo_model()
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (made / name).read_bytes() == (tmp_path / "trained" / name).read_bytes()
    weights = [(tmp_path / stage / "model.safetensors").read_bytes() for stage in ("untrained", "trained")]
    assert weights[0] != weights[1], "three steps change the weights"
    assert demo.find_demo_model() == made
    assert {path.name for path in own_cache.iterdir()} <= {made.name, "reference"}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The built-in model, made and sealed as it is but for its training."""
    monkeypatch.setattr(demo, "_train_apart", lambda place, progress: demo._save_untrained(place / "trained"))
    return demo.ensure_demo_model()


def test_it_is_a_checkpoint_like_any_other_and_no_run(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    subject = describe_subject(str(folder), ScoreConfig(data="builtin:demo"))
    assert subject.reference is None and subject.folder.path == Path("runs") / folder.name


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "made.json"])
def test_one_that_was_changed_is_not_taken_for_it(folder: Path, name: str) -> None:
    assert demo.find_demo_model() == folder
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert demo.find_demo_model() is None


@pytest.mark.parametrize("root", ["file", "file/below"])
def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: Any, root: str) -> None:
    (tmp_path / "file").write_text("keep")
    monkeypatch.setenv("DPOTOOL_CACHE", str(tmp_path / root))
    with pytest.raises(DpotoolError, match=r"file.*: cannot be written, a file stands where a folder is needed"):
        demo.ensure_demo_model()


def test_a_model_is_found_by_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DEMO_MODEL", replace(demo.DEMO_MODEL, make=lambda progress: Path("made")))
    names = ["builtin:demo", "org/model", "runs/mine"]
    assert list(map(locate_model, names)) == ["made", "org/model", "runs/mine"]
    assert list(map(is_builtin, names)) == [True, False, False]


def test_a_stand_in_is_untrained_and_makes_nothing(own_cache: Path) -> None:
    with standing_in():
        folder = Path(locate_model("builtin:demo"))
        assert folder == Path(locate_model("builtin:demo")) and (folder / "model.safetensors").is_file()
        assert load_tokenizer("builtin:demo").vocab_size == 1024
    assert not folder.exists() and not list(own_cache.glob("demo-*"))

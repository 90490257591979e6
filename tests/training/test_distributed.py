"""Two gloo processes under torchrun give the numbers of one process with twice the batch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import read_weights, training_rows

from dpotool.cli.app import main
from dpotool.runs.folder import RunFolder

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def launch(n_processes: int, *arguments: str) -> None:
    """Runs `dpotool ARGUMENTS...` in so many processes; one is this one, which needs no launcher."""
    if n_processes == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["dpotool", *arguments])
            with pytest.raises(SystemExit) as left:
                main()
        assert not left.value.code
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1"]
    command += [f"--nproc-per-node={n_processes}", "-m", "dpotool", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]


def flags(settings: dict[str, Any], **changes: Any) -> list[str]:
    merged = {**settings, "device": "cpu", "dtype": "float64", **changes}
    return [part for name, value in merged.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def expect_equal(run: Path, truth: Path) -> None:
    """Asserts that two runs ended with the same weights, and logged the same on the way."""
    expected, got = read_weights(truth), read_weights(run)
    assert got.keys() == expected.keys()
    for name, weight in got.items():
        assert torch.allclose(weight, expected[name], rtol=1e-7, atol=1e-10), name
    for ours, theirs in zip(training_rows(RunFolder(run)), training_rows(RunFolder(truth)), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["logps/chosen"] == pytest.approx(theirs["logps/chosen"], rel=1e-6)


@pytest.mark.parametrize("loss", ["dpo", "sft"])
def test_two_processes_equal_one(settings: dict[str, Any], tmp_path: Path, loss: str) -> None:
    launch(1, "train", *flags(settings, loss=loss, batch_size=8, output=tmp_path / "one"))
    launch(2, "train", *flags(settings, loss=loss, batch_size=4, output=tmp_path / "two"))
    expect_equal(tmp_path / "two", tmp_path / "one")


def test_weights_spread_over_two_processes_are_trained_as_whole_ones(settings: dict[str, Any], tmp_path: Path) -> None:
    """The example for FSDP2, with evaluation and saving; the unevenly many test pairs go round both processes."""
    launch(1, "train", *flags(settings, batch_size=8, output=tmp_path / "one"))
    example = Path(__file__).parents[2] / "examples" / "accelerate" / "fsdp2.yaml"
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(example),
        "--num_processes",
        "2",
    ]
    command += ["--main_process_port", "0", str(Path(__file__).with_name("fsdp2_worker.py"))]
    command += ["train", *flags(settings, batch_size=4, output=tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    n_spread, n_all = re.findall(r"spread: (\d+) of (\d+)", result.stderr)[0]
    assert n_spread == n_all != "0"
    expect_equal(tmp_path / "two", tmp_path / "one")


def test_the_monitor_sees_the_pairs_of_all_processes(settings: dict[str, Any], tmp_path: Path) -> None:
    for n in (1, 2):
        launch(n, "train", *flags(settings, batch_size=8 // n, output=tmp_path / str(n)), "--monitor-theory")
    for ours, theirs in zip(*(training_rows(RunFolder(tmp_path / str(n))) for n in (1, 2)), strict=True):
        assert ours["theory/u"] == pytest.approx(theirs["theory/u"], rel=1e-5)
        assert ours["theory/chosen_grad_norm"] == pytest.approx(theirs["theory/chosen_grad_norm"], rel=1e-5)


def test_theory_holds_each_pair_once(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    base = ["--model", settings["model"], "--data", settings["data"], "--device", "cpu", "--batch-tokens", "60"]
    for n in (1, 2):
        monkeypatch.setenv("DPOTOOL_CACHE", str(tmp_path / f"cache{n}"))  # or the second would only read the first's
        launch(n, "theory-gap", *base, "--output", str(tmp_path / f"out{n}"))
    one, two = (pd.read_parquet(next((tmp_path / f"out{n}" / "theory").glob("*.parquet"))) for n in (1, 2))
    for name in ("pair_id", "u", "v", "chosen_dot_mean_chosen", "rejected_dot_mean_rejected"):
        assert one[name].tolist() == pytest.approx(two[name].tolist(), rel=1e-3), name


def test_a_diagnosis_holds_each_pair_once(settings: dict[str, Any], tmp_path: Path) -> None:
    """Both tables, and what the vocabulary gained over the pairs of all processes, are those of one process."""
    import json

    import pandas as pd
    from tiny_models import save_tiny_model

    reference = str(save_tiny_model(tmp_path / "reference", seed=5))
    base = ["--data", settings["data"], "--device", "cpu", "--dtype", "float64", "--reference", reference]
    for n in (1, 2):
        launch(n, "diagnose", settings["model"], *base, "--batch-tokens", "60", "--output", str(tmp_path / f"out{n}"))
    folders = [tmp_path / f"out{n}" / "diagnosis" for n in (1, 2)]
    for pattern in ("*.tokens.parquet", "*[!s].parquet"):
        one, two = (pd.read_parquet(next(folder.glob(pattern))) for folder in folders)
        pd.testing.assert_frame_equal(two, one, rtol=1e-6, atol=1e-9)
        assert one["pair_id"].nunique() == 32
    one, two = (json.loads(next(folder.glob("*.summary.json")).read_text()) for folder in folders)
    ours, theirs = ([list(item.values()) for item in each["vocabulary"]["gained"]] for each in (two, one))
    for (token_id, _, change, n_first), expected in zip(ours, theirs, strict=True):
        assert [token_id, change, n_first] == pytest.approx([expected[0], *expected[2:]], rel=1e-6)
    assert two["mass"]["lost"] == pytest.approx(one["mass"]["lost"], rel=1e-6)


def test_scores_hold_each_pair_once(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    base = ["--data", settings["data"], "--device", "cpu", "--beta", "0.1"]
    for n in (1, 2):
        monkeypatch.setenv("DPOTOOL_CACHE", str(tmp_path / f"cache{n}"))  # or the second would only read the first's
        launch(n, "score", settings["model"], *base, "--output", str(tmp_path / f"out{n}"))
    frames = [pd.read_parquet(next((tmp_path / f"out{n}" / "scores").glob("*.parquet"))) for n in (1, 2)]
    assert frames[0]["pair_id"].tolist() == frames[1]["pair_id"].tolist() == list(range(32))
    assert frames[0]["chosen_logps"].tolist() == pytest.approx(frames[1]["chosen_logps"].tolist(), rel=1e-5)

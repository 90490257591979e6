"""Two gloo processes give the numbers of one process with twice the batch, launched by the examples for accelerate.

Two processes take 20 seconds to start, so all commands are run by the same two, and those on spread weights by two
more: this file is also the script that each of them runs.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from forks import run_launcher
from tiny_models import save_tiny_model
from training_helpers import read_weights, training_rows

from dpotool.cli.app import main
from dpotool.judging.answers import read_answers
from dpotool.runs.folder import RunFolder
from dpotool.runs.summaries import summary_path

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
EXAMPLES = Path(__file__).parents[2] / "examples" / "accelerate"
ROOT = "FOLDER"
"""In a command, where the folders of all of them lie."""


def run_commands(commands: dict[str, list[str]], root: Path) -> None:
    """Runs each command in this process, with a store that no other has filled; its folder is `root/NAME`."""
    for name, words in commands.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DPOTOOL_CACHE", str(root / f"cache-{name}"))
            words = [word.replace(ROOT, str(root)) for word in words]
            patch.setattr(sys, "argv", ["dpotool", *words, "--output", str(root / name)])
            patch.setattr("dpotool.cli.sweep.conclude", lambda *_: {})  # pictures and a report
            with pytest.raises(SystemExit) as left:
                main()
        assert not left.value.code, name


def launch(example: str, script: str, commands: dict[str, list[str]], root: Path) -> str:
    """Starts two processes as the example's first lines say, which run the commands; returns what they said."""
    (root.parent / f"{root.name}.json").write_text(json.dumps(commands))
    words = ["--config_file", str(EXAMPLES / f"{example}.yaml"), "--num_processes", "2", "--main_process_port", "0"]
    words += [script, str(root.parent / f"{root.name}.json"), str(root)]
    return run_launcher("accelerate.commands.launch", words, root.parent / f"{root.name}-said", OMP_NUM_THREADS="1")


def flags(settings: dict[str, Any], **changes: Any) -> list[str]:
    merged = {**settings, "device": "cpu", "dtype": "float64", **changes}
    return [part for name, value in merged.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def list_commands(settings: dict[str, Any], reference: Path, n_processes: int) -> dict[str, list[str]]:
    """The commands whose results must not depend on the number of processes, by the name of the folder of each."""
    model, pairs = settings["model"], ["--data", settings["data"], "--device", "cpu"]
    training = ["train", *flags(settings, batch_size=8 // n_processes)]
    return {
        "dpo": [*training, "--loss", "dpo"],
        "sft": [*training, "--loss", "sft"],
        "monitored": [*training, "--monitor-theory"],
        "products": [
            *("theory-gap", "--model", model, "--reference", str(reference)),
            *(*pairs, "--limit", "15", "--batch-tokens", "60"),
        ],
        "scored": ["score", model, *pairs, "--beta", "0.1"],
        "diagnosed": [
            *("diagnose", model, *pairs, "--dtype", "float64"),
            *("--reference", str(reference), "--batch-tokens", "60"),
        ],
        "predicted": ["predict", f"{ROOT}/dpo"],
        "answered": [
            *("generate", model, *pairs, "--limit", "12", "--dtype", "float64"),
            *("--max-new-tokens", "10", "--temperature", "1", "--batch-tokens", "60"),
        ],
        "swept": ["sweep", *flags(settings, batch_size=8 // n_processes, max_steps=2), "--lambdas", "0.5,1"],
    }


@pytest.fixture(scope="module")
def folders(base_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where one process left its runs and tables, and where two did."""
    root = tmp_path_factory.mktemp("processes")
    reference = save_tiny_model(root / "reference", seed=5)
    run_commands(list_commands(base_settings, reference, 1), root / "one")
    said = launch("ddp", __file__, list_commands(base_settings, reference, 2), root / "two")
    assert "processes: 2" in said
    return root / "one", root / "two"


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
def test_two_processes_equal_one(folders: tuple[Path, Path], loss: str) -> None:
    one, two = folders
    expect_equal(two / loss, one / loss)


def test_spread_weights_give_the_numbers_of_whole_ones(
    folders: tuple[Path, Path], base_settings: dict[str, Any], tmp_path: Path
) -> None:
    """Training with evaluation and saving, and products; the unevenly many pairs go round both processes."""
    one = folders[0]
    commands = list_commands(base_settings, one.parent / "reference", 2)
    chosen = {name: commands[name] for name in ("dpo", "products")}
    said = launch("fsdp2", str(Path(__file__).with_name("fsdp2_worker.py")), chosen, tmp_path / "spread")
    n_spread, n_all = re.findall(r"spread: (\d+) of (\d+)", said)[0]
    assert n_spread == n_all != "0" and "the weights are spread over 2 processes" in said
    expect_equal(tmp_path / "spread" / "dpo", one / "dpo")
    expected, got = read_tables((one, tmp_path / "spread"), "products/theory/*.parquet")
    scale = np.sqrt(expected["chosen_grad_sq_norm"] * expected["rejected_grad_sq_norm"])
    for name in ("grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm"):
        assert (np.abs(got[name] - expected[name]) / scale).max() < 1e-6, name
    for name in ("chosen_dot_mean_chosen", "rejected_dot_mean_rejected", "chosen_logratios"):
        assert got[name].tolist() == pytest.approx(expected[name].tolist(), rel=1e-5, abs=1e-6 * scale.max()), name


def test_the_monitor_sees_the_pairs_of_all_processes(folders: tuple[Path, Path]) -> None:
    rows = [training_rows(RunFolder(folder / "monitored")) for folder in folders]
    assert rows[0]
    for ours, theirs in zip(*rows, strict=True):
        assert ours["theory/u"] == pytest.approx(theirs["theory/u"], rel=1e-5)
        assert ours["theory/chosen_grad_norm"] == pytest.approx(theirs["theory/chosen_grad_norm"], rel=1e-5)


def read_tables(folders: tuple[Path, Path], pattern: str) -> list[pd.DataFrame]:
    """The table of one process and that of two."""
    return [pd.read_parquet(next(folder.glob(pattern))) for folder in folders]


def test_theory_holds_each_pair_once(folders: tuple[Path, Path]) -> None:
    one, two = read_tables(folders, "products/theory/*.parquet")
    for name in ("pair_id", "u", "v", "chosen_dot_mean_chosen", "rejected_dot_mean_rejected"):
        assert one[name].tolist() == pytest.approx(two[name].tolist(), rel=1e-3), name


def test_scores_hold_each_pair_once(folders: tuple[Path, Path]) -> None:
    one, two = read_tables(folders, "scored/scores/*.parquet")
    assert one["pair_id"].tolist() == two["pair_id"].tolist() == list(range(32))
    assert one["chosen_logps"].tolist() == pytest.approx(two["chosen_logps"].tolist(), rel=1e-5)


def test_each_prompt_is_answered_once(folders: tuple[Path, Path]) -> None:
    """In the order of the prompts, with the same words; sampled, so that streams are compared too."""
    paths = [next(folder.glob("answered/answers/*[!s].jsonl")) for folder in folders]
    one, two = map(read_answers, paths)
    assert len(one) == 12 and two == one
    means = [json.loads(summary_path(path).read_text())["logps_per_token"]["mean"] for path in paths]
    assert means[0] == pytest.approx(means[1], abs=1e-12)


def test_a_prediction_and_a_sweep_are_those_of_one_process(folders: tuple[Path, Path]) -> None:
    for pattern in ("predicted/predictions/*.parquet", "swept/shift-0.5/scores/*.parquet"):
        one, two = read_tables(folders, pattern)
        assert len(one) == 8
        pd.testing.assert_frame_equal(two, one, rtol=1e-6, atol=1e-9)
    for name in ("dpo", "shift-0.5"):
        expect_equal(*(folder / "swept" / name for folder in folders))


def test_a_diagnosis_holds_each_pair_once(folders: tuple[Path, Path]) -> None:
    """Both tables, and what the vocabulary gained over the pairs of all processes, are those of one process."""
    for pattern in ("*.tokens.parquet", "*[!s].parquet"):
        one, two = read_tables(folders, f"diagnosed/diagnosis/{pattern}")
        pd.testing.assert_frame_equal(two, one, rtol=1e-6, atol=1e-9)
        assert one["pair_id"].nunique() == 32
    one, two = (json.loads(next(folder.glob("diagnosed/diagnosis/*.summary.json")).read_text()) for folder in folders)
    ours, theirs = ([list(item.values()) for item in each["vocabulary"]["gained"]] for each in (two, one))
    for (token_id, _, change, n_first), expected in zip(ours, theirs, strict=True):
        assert [token_id, change, n_first] == pytest.approx([expected[0], *expected[2:]], rel=1e-6)
    assert two["mass"]["lost"] == pytest.approx(one["mass"]["lost"], rel=1e-6)


if __name__ == "__main__":
    run_commands(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))

"""The commands from end to end on a tiny model: what they print where, what they write, and how they find runs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpotool.cli.app import main
from dpotool.likelihood import pair_logps
from dpotool.runs.schemas import SCORE_SCHEMA, THEORY_SCHEMA


@pytest.fixture(scope="module")
def trained_once(model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `train` leaves, in the cache too."""
    folder = tmp_path_factory.mktemp("trained")
    flags = ("--model", model, "--data", pairs, "--test-fraction", "0.25", "--learning-rate", "0.01", "--batch-size", 6)
    words = ("dpotool", "train", "--loss", "shift", "--lambda", "0.8", *flags, "--output", "runs/first")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DPOTOOL_CACHE", str(folder / "cache"))
        patch.setattr(sys, "argv", [str(word) for word in words])
        with pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code
    return folder


@pytest.fixture
def trained(dpotool: Any, trained_once: Path, tmp_path: Path, own_cache: Path) -> Path:
    shutil.copytree(trained_once / "runs", tmp_path / "runs")
    shutil.copytree(trained_once / "cache", own_cache, dirs_exist_ok=True)
    return Path("runs/first")


def test_train_says_where_the_run_is_and_what_to_do_next(dpotool: Any, model: Path, pairs: Path) -> None:
    outcome = dpotool("train", "--model", model, "--data", pairs, "--max-steps", 2)
    [folder] = Path("runs").iterdir()
    assert folder.name.startswith("dpo-pairs-")
    change = pd.read_json(folder / "metrics.jsonl", lines=True)["displacement/chosen"].dropna().iloc[-1]
    said = f"the chosen answers are {abs(change):.2g} nats {'more' if change > 0 else 'less'} likely than under the"
    assert said in " ".join(outcome.out.split())
    assert f"run folder: {folder}" in outcome.out
    assert f"Next: dpotool score {folder}" in outcome.out
    assert "has no test split, so the run is not evaluated. Name one with --eval-data or --test-fraction" in outcome.err


def test_score_takes_the_newest_run_and_its_own_reference_and_data(dpotool: Any, trained: Path, model: Path) -> None:
    outcome = dpotool("score")
    assert "scoring the newest run, runs/first" in outcome.err
    table = trained / "scores" / "pairs-test.parquet"
    assert f"scores: {table}" in outcome.out
    frame = pd.read_parquet(table)
    assert list(frame.columns) == SCORE_SCHEMA.names
    assert len(frame) == 6
    summary = json.loads(table.with_suffix(".summary.json").read_text())
    assert summary["reference"] == str(model)
    assert summary["n"] == 6 and summary["beta"] == 0.1
    assert frame["reward_margins"].mean() == pytest.approx(
        0.1 * ((frame.chosen_logps - frame.ref_chosen_logps) - (frame.rejected_logps - frame.ref_rejected_logps)).mean()
    )


def test_a_part_never_replaces_the_whole(dpotool: Any, trained: Path) -> None:
    dpotool("score", trained)
    whole = trained / "scores" / "pairs-test.parquet"
    before = whole.read_bytes(), whole.with_suffix(".summary.json").read_bytes()
    outcome = dpotool("score", trained, "--limit", 3, "--tokens")
    assert f"scores: {trained}/scores/pairs-test-limit-3.parquet" in outcome.out
    assert {path.name for path in (trained / "scores").iterdir()} == {
        *("pairs-test.parquet", "pairs-test.summary.json"),
        *("pairs-test-limit-3.parquet", "pairs-test-limit-3.summary.json", "pairs-test-limit-3.tokens.parquet"),
    }
    assert (whole.read_bytes(), whole.with_suffix(".summary.json").read_bytes()) == before


def test_a_checkpoint_on_the_way_is_scored_and_drawn_beside_its_run(dpotool: Any, model: Path, pairs: Path) -> None:
    flags = ("--model", model, "--data", pairs, "--test-fraction", "0.25", "--learning-rate", "0.01", "--batch-size", 6)
    assert dpotool("train", *flags, "--save-at", "2", "--beta", "0.3", "--output", "runs/first").code == 0
    part = Path("runs/first/checkpoint-2")
    outcome = dpotool("score", "runs/first", part)
    assert outcome.code == 0, outcome.err
    assert "first/checkpoint-2" in outcome.out
    run, checkpoint = (
        json.loads((folder / "scores" / "pairs-test.summary.json").read_text()) for folder in (part.parent, part)
    )
    for name in ("reference", "data", "split", "beta", "n"):
        assert checkpoint[name] == run[name], name
    assert checkpoint["chosen_logps"] != run["chosen_logps"]
    assert dpotool("score", part).code == 0, "a second time too"
    assert dpotool("theory-gap", "--model", part, "--limit", 2).code == 0
    assert dpotool("plot", "displacement", "runs/first", part).code == 0
    assert not Path("runs/checkpoint-2").exists()


def test_json_is_one_object_and_nothing_else_on_stdout(dpotool: Any, trained: Path) -> None:
    for words in (
        ("score", trained, "--json"),
        ("theory-gap", "--model", trained, "--json"),
        ("plot", "all", trained, "--json"),
    ):
        outcome = dpotool(*words)
        assert outcome.code == 0, outcome.err
        assert outcome.out.count("\n") == 1
        json.loads(outcome.out)


def test_tokens_cost_no_second_pass(
    dpotool: Any, model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """24 pairs are computed for both tables, and once more for their tokens where the store has the sums."""
    computed: list[int] = []
    real = pair_logps._score_batch

    def count(model: Any, batch: Any, *rest: Any) -> Any:
        computed.extend(pair.pair_id for pair in batch)
        return real(model, batch, *rest)

    monkeypatch.setattr(pair_logps, "_score_batch", count)
    words = ("score", model, "--data", pairs, "--no-noise-floor", "--device", "cpu", "--output")
    tables = []
    for number, more in enumerate((["--tokens"], [], ["--tokens"])):
        folder = tmp_path / str(number)
        assert dpotool(*words, folder, *more).code == 0
        tables.append(pd.read_parquet(folder / "scores" / "pairs-all.parquet"))
    assert sorted(computed) == sorted([*range(24), *range(24)])
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)


def test_tokens_add_up_to_the_score_table(dpotool: Any, trained: Path) -> None:
    outcome = dpotool("score", trained, "--tokens")
    assert f"tokens: {trained}/scores/pairs-test.tokens.parquet" in outcome.out
    pair_sums = pd.read_parquet(trained / "scores" / "pairs-test.parquet").set_index("pair_id")
    tokens = pd.read_parquet(trained / "scores" / "pairs-test.tokens.parquet")
    sums = tokens.groupby(["pair_id", "side"])[["logp", "ref_logp"]].sum().unstack()
    assert sums["logp"]["chosen"].tolist() == pytest.approx(pair_sums["chosen_logps"].tolist(), rel=1e-5)
    assert sums["ref_logp"]["rejected"].tolist() == pytest.approx(pair_sums["ref_rejected_logps"].tolist(), rel=1e-5)
    assert "".join(tokens.query("side == 'chosen' and pair_id == @pair_sums.index[0]")["token"]).endswith("<eos>")


@pytest.mark.parametrize("format_", ["csv", "jsonl"])
def test_other_table_formats(dpotool: Any, trained: Path, format_: str) -> None:
    assert dpotool("score", trained, "--format", format_).code == 0
    path = trained / "scores" / f"pairs-test.{format_}"
    frame = pd.read_csv(path) if format_ == "csv" else pd.read_json(path, lines=True)
    assert list(frame.columns) == SCORE_SCHEMA.names and len(frame) == 6


def test_a_model_without_reference_has_no_rewards_and_says_so(dpotool: Any, model: Path, pairs: Path) -> None:
    outcome = dpotool("score", model, "--data", pairs, "--output", "out")
    assert "there is no reference, so rewards and displacement are missing" in outcome.err
    frame = pd.read_parquet("out/scores/pairs-all.parquet")
    assert frame["chosen_logps"].notna().all() and frame["reward_margins"].isna().all()


def test_pairs_that_do_not_fit_are_rows_with_a_reason(dpotool: Any, model: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Say:", "chosen": " red", "rejected": " blue"},
        {"prompt": "Say:", "chosen": " red" * 30, "rejected": " b"},
    ]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = dpotool("score", model, "--data", path, "--max-length", 40, "--output", "out", "--json")
    frame = pd.read_parquet("out/scores/long-all.parquet")
    assert frame["pair_id"].tolist() == [0, 1]
    assert frame["status"].tolist()[0] == "ok" and frame["status"].tolist()[1] != "ok"
    assert pd.isna(frame["chosen_logps"][1])
    [result] = json.loads(outcome.out)["results"]
    assert result["n"] == 1 and sum(result["n_excluded"].values()) == 1


def test_theory_gap_writes_its_table_beside_the_papers_shares(dpotool: Any, trained: Path) -> None:
    outcome = dpotool("theory-gap", "--model", trained)
    assert "71.4" in outcome.out and "81.7" in outcome.out
    frame = pd.read_parquet(trained / "theory" / "pairs-test.parquet")
    assert list(frame.columns) == THEORY_SCHEMA.names and len(frame) == 6
    assert (frame["chosen_logratios"].abs() > 0).all(), "away from the reference"


def test_config_file_presets_and_flags_win(dpotool: Any, model: Path, pairs: Path, tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(
        f"model: {model}\ndata: {pairs}\nloss: shift\nlambda: 0.5\nmax-steps: 1\nbeta: 0.3\nsave_at: [1]\n"
    )
    outcome = dpotool("train", "--config", config, "--lambda", "0.7", "--output", "run", "--json")
    assert outcome.code == 0, outcome.err
    settings = __import__("yaml").safe_load(Path("run/run.yaml").read_text())["config"]
    assert (settings["loss"], settings["lambda_"], settings["beta"]) == ("shift", 0.7, 0.3)
    assert settings["save_at"] == "1", "a list is what the command line separates by commas"
    again = dpotool("train", "--config", "run/run.yaml", "--output", "again")
    assert again.code == 0, again.err
    assert Path("again/model.safetensors").read_bytes() == Path("run/model.safetensors").read_bytes()


def test_every_command_takes_a_training_runs_own_file(dpotool: Any, model: Path, trained: Path) -> None:
    """What looks at a model looks at the pairs the run was evaluated on; what a command lacks is counted."""
    dpotool("score", trained)
    words = ("--config", trained / "run.yaml", "--output", "out", "--json")
    outcome = dpotool("score", model, *words, "--reference", model)
    assert outcome.code == 0, outcome.err
    assert "run.yaml: " in outcome.err and "settings of other commands left out" in outcome.err
    [result] = json.loads(outcome.out)["results"]
    own = json.loads((trained / "scores" / "pairs-test.summary.json").read_text())
    assert (result["data"], result["split"], result["n"]) == (own["data"], own["split"], own["n"])
    outcome = dpotool("theory-gap", *words, "--model", model)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["n"] == own["n"], "train's --optimizer is another thing and left out"


@pytest.mark.usefixtures("no_conclusion")
def test_a_sweeps_file_does_not_send_a_run_into_the_sweep(dpotool: Any, model: Path, pairs: Path) -> None:
    words = ("sweep", "--model", model, "--data", pairs, "--test-fraction", "0.25", "--no-controls")
    words += ("--max-steps", 1, "--output", "sw")
    assert dpotool(*words, "--lambdas", "1.0").code == 0
    outcome = dpotool("train", "--config", "sw/run.yaml", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["run"].startswith("runs/dpo-pairs-")
    again = dpotool("sweep", "--config", "sw/run.yaml", "--json")
    assert json.loads(again.out)["n_trained"] == 0, "the sweep's own file continues it"


@pytest.mark.parametrize("name", ["lora", "gradient-checkpointing", "bf16"])
def test_a_flag_of_a_file_can_be_switched_off(
    dpotool: Any, model: Path, pairs: Path, tmp_path: Path, name: str
) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(f"model: {model}\ndata: {pairs}\nmax-steps: 1\n{name}: true\n")
    outcome = dpotool("train", "--config", config, f"--no-{name}", "--output", "run")
    assert outcome.code == 0, outcome.err
    assert Path("run/model.safetensors").exists()
    settings = __import__("yaml").safe_load(Path("run/run.yaml").read_text())["config"]
    assert settings[name.replace("-", "_")] is False


def test_two_models_side_by_side(dpotool: Any, model: Path, pairs: Path, trained: Path) -> None:
    flags = ("--model", model, "--data", pairs, "--test-fraction", "0.25", "--max-steps", 2)
    dpotool("train", *flags, "--output", "runs/second")
    outcome = dpotool("score", "runs/first", "runs/second", "--full")
    [header] = [line for line in outcome.out.splitlines() if "first" in line and "second" in line]
    assert header.split() == ["first", "second"]
    brief = dpotool("score", "runs/first", "runs/second").out
    assert all(len(line) <= 80 for line in brief.splitlines() if "[" in line)


def test_plot_takes_the_newest_and_names_its_pictures(dpotool: Any, trained: Path) -> None:
    dpotool("score")
    outcome = dpotool("plot", "displacement", "--format", "png,svg")
    assert "drawing the newest: runs/first" in outcome.err
    assert outcome.out.split() == ["runs/first/plots/displacement.png", "runs/first/plots/displacement.svg"]
    assert all(Path(path).stat().st_size > 5000 for path in outcome.out.split())


def test_version_and_module_entry(dpotool: Any) -> None:
    import subprocess
    import sys

    assert dpotool("--version").out.startswith("dpotool 0.")
    result = subprocess.run([sys.executable, "-m", "dpotool", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("dpotool 0.")


def test_a_log_alone_makes_a_report_that_warns(dpotool: Any) -> None:
    history = [{"step": step, "logps/chosen": -10.0 - step, "logps/rejected": -12.0 - step} for step in (1, 2)]
    Path("trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert dpotool("import", "trainer_state.json", "--output", "trl").code == 0
    outcome = dpotool("report", "trl", "-o", "page.html")
    assert (outcome.code, outcome.out) == (0, "report: page.html\n")
    assert "warning: There is no verdict, because nothing here is scored" in outcome.err
    assert ">What is missing, and what to do next</h2>" in Path("page.html").read_text(encoding="utf-8")

"""Bad input gets one clear line on stderr, exit code 1, and nothing is lost; wrong usage gets exit code 2."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_byte_tokenizer, save_tiny_model, write_pairs
from training_helpers import DIVERGES

from dpotool.runs import atomic

GOOD = {"prompt": "Say red:", "chosen": " red", "rejected": " blue"}


@pytest.fixture
def fails(dpotool: Any) -> Any:
    """Calls the command and returns its one line of complaint."""

    def run(*words: object) -> str:
        outcome = dpotool(*words)
        assert outcome.code == 1, outcome
        lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, outcome.err
        assert "Traceback" not in outcome.err
        return lines[0]

    return run


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({**GOOD, "rejected": ""}, "'rejected' is empty"),
        ({"prompt": "a", "chosen": "b"}, "rejected"),
        ({**GOOD, "chosen": 7}, "'chosen'"),
        ('{"prompt": "cut sho', "JSON"),
    ],
    ids=["empty completion", "missing field", "wrong type", "broken JSON"],
)
def test_malformed_rows_name_their_line(fails: Any, model: Path, tmp_path: Path, bad: Any, complaint: str) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", [GOOD, GOOD, bad, GOOD, bad])
    line = fails("train", "--model", model, "--data", path)
    assert line.startswith(f"error: {path}:3: ")
    assert complaint in line
    assert "1 more row is malformed" in line
    assert "--skip-invalid" in line


def test_skip_invalid_counts_what_it_leaves_out(dpotool: Any, model: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", [GOOD, "{", GOOD])
    outcome = dpotool("score", model, "--data", path, "--skip-invalid", "--output", "out", "--json")
    assert outcome.code == 0
    [result] = json.loads(outcome.out)["results"]
    assert result["n"] == 2
    assert sum(result["n_excluded"].values()) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pairs.jsonl", ("validate", "odd/pairs.jsonl")),
        ("pairs.jsonl", ("judge", "odd/pairs.jsonl", "odd/pairs.jsonl", "--judge", "chrf")),
        ("run.yaml", ("compare", "odd")),
        ("run.yaml", ("train", "--config", "odd/run.yaml")),
        ("tokenizer.json", ("score", "odd", "--data", "builtin:demo")),
        ("config.json", ("score", "odd", "--data", "builtin:demo")),
    ],
    ids=lambda each: each if isinstance(each, str) else each[0],
)
@pytest.mark.parametrize("is_pipe", [True, False], ids=["pipe", "device"])
def test_what_may_have_no_end_is_not_read(
    fails: Any, model: Path, tmp_path: Path, name: str, words: tuple[str, ...], is_pipe: bool
) -> None:
    """A pipe that nobody writes to, and a link to a device that writes for ever."""
    place = tmp_path / "odd" / name
    shutil.copytree(model, place.parent)
    place.unlink(missing_ok=True)
    if is_pipe:
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    line = fails(*words)
    assert "pipe or a device" in line or "no answers" in line or "no config.json" in line


def test_missing_column(fails: Any, model: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", [{"question": "a", "answer": "b"}])
    line = fails("score", model, "--data", path)
    assert "question" in line and "chosen" in line


@pytest.mark.parametrize(
    "verb",
    [
        ("score", "--dry-run"),
        ("score",),
        ("train", "--dry-run"),
        ("sweep",),
        ("sweep", "--dry-run"),
        ("theory-gap",),
        ("theory-gap", "--dry-run"),
        ("predict", "a", "b"),
        ("cache", "verify"),
    ],
    ids=" ".join,
)
def test_unknown_layout(fails: Any, verb: tuple[str, ...]) -> None:
    expected = "--layout: unknown layout; expected auto, shared, paired, got 'packed'"
    assert expected in fails(*verb, "--layout", "packed")


@pytest.mark.parametrize("data", ["nowhere.jsonl", "no-such/dataset"])
def test_missing_data(fails: Any, model: Path, data: str) -> None:
    assert data in fails("score", model, "--data", data)


def test_unknown_loss_suggests_the_nearest(fails: Any) -> None:
    line = fails("train", "--loss", "shfit")
    assert "unknown loss 'shfit'. Did you mean 'shift'? Known: apo-down, apo-zero, bdpo, " in line


@pytest.mark.parametrize("verb", [("score",), ("train", "--model"), ("theory-gap", "--model")])
def test_missing_checkpoint(fails: Any, verb: tuple[str, ...], pairs: Path) -> None:
    assert "nowhere/model: no such folder" in fails(*verb, "nowhere/model", "--data", pairs)


@pytest.mark.parametrize("verb", [("score",), ("train", "--model"), ("theory-gap", "--model"), ("sweep", "--model")])
def test_a_mistyped_path_leaves_no_folder(fails: Any, verb: tuple[str, ...]) -> None:
    assert "./runs/typo: no such folder. Check the path" in fails(*verb, "./runs/typo")
    assert not Path("runs").exists()


def test_no_chat_template_for_conversations(fails: Any, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "m", tokenizer=build_byte_tokenizer(chat_template=None))
    turn = [{"role": "user", "content": "Say red"}]
    row = {
        "prompt": turn,
        "chosen": [{"role": "assistant", "content": "red"}],
        "rejected": [{"role": "assistant", "content": "blue"}],
    }
    assert "chat template" in fails("score", model, "--data", write_rows(tmp_path / "chat.jsonl", [row]))


def test_max_length_too_small_for_every_pair(fails: Any, model: Path, pairs: Path) -> None:
    line = fails("score", model, "--data", pairs, "--max-length", 3)
    assert "max" in line and "3" in line


def test_odpo_without_scores(fails: Any, model: Path, tmp_path: Path) -> None:
    bare = write_pairs(tmp_path / "bare.jsonl", 6, scores=False)
    line = fails("train", "--model", model, "--data", bare, "--loss", "odpo", "--output", "run")
    assert "score" in line
    assert not Path("run/model.safetensors").exists()


def test_odpo_with_inverted_scores_names_the_row(fails: Any, model: Path, tmp_path: Path) -> None:
    rows = [{**GOOD, "score_chosen": 5, "score_rejected": 2}, {**GOOD, "score_chosen": 1, "score_rejected": 3}]
    line = fails(
        "train", "--model", model, "--data", write_rows(tmp_path / "p.jsonl", rows), "--loss", "odpo", "--output", "run"
    )
    assert "row 1" in line or ":2" in line


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--lambda", "0.9"), "--lambda: loss 'dpo' has no lambda"),
        (("--loss", "shift", "--lambda", "1.05"), "--allow-lambda-above-one"),
        (("--loss", "shift", "--lambda", "0"), "--lambda"),
        (("--loss", "shift", "--lambda-schedule", "linear"), "--lambda-schedule"),
        (("--beta", "0"), "--beta"),
        (("--batch-size", "0"), "--batch-size: not a usable batch_size; expected a number, 1 <= batch_size"),
        (("--truncation", "keep"), "--truncation"),
        (("--test-fraction", "1.5"), "--test-fraction"),
        (("--optimizer", "adamm"), "optim"),
        (("--scheduler", "cosinus"), "schedul"),
        (("--dtype", "float12"), "--dtype"),
        (("--bf16", "--dtype", "bfloat16"), "--bf16"),
        (("--save-at", "1,b"), "--save-at"),
        (("--seed", "-1"), "--seed: not a usable seed; expected a number, 0 <= seed"),
        (("--report-to", "nonsense"), "nonsense is not supported"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_settings_that_cannot_be(fails: Any, model: Path, pairs: Path, flags: tuple[str, ...], complaint: str) -> None:
    assert complaint in fails("train", "--model", model, "--data", pairs, "--output", "run", *flags)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_an_optimizer_that_is_not_installed_leaves_a_folder_to_try_again_in(
    fails: Any, dpotool: Any, model: Path, pairs: Path
) -> None:
    words = ("train", "--model", model, "--data", pairs, "--max-steps", 1, "--output", "run")
    assert "bitsandbytes" in fails(*words, "--optimizer", "paged_adamw_32bit")
    assert dpotool(*words).code == 0


@pytest.mark.parametrize("verb", ["train", "sweep"])
@pytest.mark.parametrize(
    "flags",
    [("--optimizer", "adamm"), ("--scheduler", "cosinus"), ("--report-to", "nonsense"), ("--report-to", "wandb")],
    ids=" ".join,
)
def test_what_the_trainer_would_refuse_late_is_refused_first(
    fails: Any, model: Path, pairs: Path, verb: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    assert flags[1] in fails(verb, "--model", model, "--data", pairs, "--output", "run", *flags)
    assert not Path("run").exists(), "nothing was made or loaded"


@pytest.mark.parametrize("verb", [("score",), ("theory-gap", "--model")])
def test_an_unknown_table_format_is_refused_before_scoring(fails: Any, model: Path, verb: tuple[str, ...]) -> None:
    line = fails(*verb, model, "--format", "xls", "--output", "out")
    assert "--format: unknown table format 'xls'" in line and "parquet" in line
    assert not Path("out").exists()


@pytest.mark.parametrize("verb", ["train", "theory-gap"])
def test_quantised_weights_have_no_gradients(fails: Any, pairs: Path, tmp_path: Path, verb: str) -> None:
    model = save_tiny_model(tmp_path / "four-bit")
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (model / "config.json").write_text(json.dumps(config))
    line = fails(verb, "--model", model, "--data", pairs, "--output", "run")
    assert "quantised weights have no gradients" in line and "got bitsandbytes" in line


def test_lambda_above_one_warns_with_the_papers_collapse(dpotool: Any, model: Path, pairs: Path) -> None:
    flags = ("--loss", "shift", "--lambda", "1.05", "--allow-lambda-above-one", "--max-steps", "1", "--output", "run")
    outcome = dpotool("train", "--model", model, "--data", pairs, *flags)
    assert outcome.code == 0
    assert "1.05 collapsed" in outcome.err


@pytest.mark.parametrize("content", ["kind: train\nstatus: fini", "", "[1, 2]", "kind: [", "kind: train"])
@pytest.mark.parametrize("verb", ["score", "plot displacement"])
def test_half_written_run_folder(fails: Any, verb: str, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "run.yaml").write_text(content)
    assert str(folder) in fails(*verb.split(), folder)


def test_a_name_longer_than_a_file_system_takes(fails: Any, model: Path, pairs: Path) -> None:
    assert "File name too long. Check the path" in fails("score", model, "--data", pairs, "--output", "x" * 300)


def test_folder_that_is_no_run(fails: Any, tmp_path: Path) -> None:
    assert "holds no model" in fails("score", tmp_path)
    assert "not a run folder" in fails("plot", "margin", tmp_path)


def test_run_whose_training_never_finished(fails: Any, model: Path, pairs: Path) -> None:
    flags = [word for name, value in DIVERGES.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    fails("train", "--model", model, "--data", pairs, "--epochs", "9", "--output", "run", *flags)
    assert "holds no model" in fails("score", "run")


def test_read_only_output_folder(fails: Any, model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the refusal of the system is played."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    line = fails("train", "--model", model, "--data", pairs, "--output", "locked/run")
    assert "locked" in line


def test_full_disk_keeps_what_was_there(
    dpotool: Any, fails: Any, model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("score", model, "--data", pairs, "--output", "out")
    assert dpotool(*words).code == 0
    [table] = Path("out/scores").glob("*.parquet")
    before = table.read_bytes()

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "_force_to_disk", full)
    assert "full" in fails(*words) or "space" in fails(*words)
    assert table.read_bytes() == before
    assert not list(Path("out").rglob(".tmp*"))


def test_output_that_holds_a_run_is_not_overwritten(fails: Any, dpotool: Any, model: Path, pairs: Path) -> None:
    words = ("train", "--model", model, "--data", pairs, "--max-steps", 1, "--output", "run")
    assert dpotool(*words).code == 0
    weights = Path("run/model.safetensors").read_bytes()
    assert "the output folder is not empty" in fails(*words)
    assert Path("run/model.safetensors").read_bytes() == weights


def test_config_files(fails: Any, tmp_path: Path) -> None:
    assert "missing.yaml: cannot be read" in fails("train", "--config", "missing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("loss: [")
    assert "no valid YAML" in fails("train", "--config", broken)
    broken.write_text("los: shift")
    line = fails("train", "--config", broken)
    assert line.endswith("unknown setting 'los'. Did you mean 'loss'? `dpotool train --help` lists the settings")
    broken.write_text("lambdda: 0.5")
    assert "Did you mean 'lambda'?" in fails("train", "--config", broken)
    broken.write_text("epocs: 1")
    assert "unknown setting 'epocs'" in fails("score", "--config", broken), "no command has it"
    broken.write_text("beta: {a: 1}")
    assert "broken.yaml: beta: is no value of a setting" in fails("train", "--config", broken)
    broken.write_text("- loss")
    assert "holds no settings" in fails("train", "--config", broken)


def test_resuming_without_a_name(fails: Any) -> None:
    assert fails("train", "--resume") == "error: --resume: no run is named. Name its folder with --output"


@pytest.mark.usefixtures("no_conclusion")
def test_a_sweep_warns_once_of_each_lambda_above_one(dpotool: Any, model: Path, pairs: Path) -> None:
    flags = ("--model", model, "--data", pairs, "--test-fraction", "0.25", "--max-steps", 1, "--output", "sw")
    outcome = dpotool("sweep", *flags, "--no-controls", "--lambdas", "1.05,1.1", "--allow-lambda-above-one")
    assert outcome.code == 0, outcome.err
    assert [outcome.err.count(f"lambda reaches {f}") for f in ("1.05", "1.1:")] == [1, 1]


def test_usage_errors_exit_with_two(dpotool: Any) -> None:
    assert dpotool("train", "--no-such-flag").code == 2
    assert dpotool("train", "--beta", "much").code == 2
    assert dpotool("plot").code == 2
    assert dpotool("fly").code == 2


def test_nothing_to_score_or_draw(fails: Any) -> None:
    assert "runs: no train run here" in fails("score")
    assert "no run with anything to draw" in fails("plot", "displacement")
    assert "unknown picture 'displacment'. Did you mean 'displacement'?" in fails("plot", "displacment")


@pytest.mark.usefixtures("no_conclusion")
def test_a_sweep_folder_holds_one_sweep(fails: Any, dpotool: Any, model: Path, pairs: Path) -> None:
    words = ("sweep", "--model", model, "--data", pairs, "--test-fraction", "0.25", "--no-controls")
    words += ("--max-steps", 1, "--output", "sw")
    assert dpotool(*words, "--lambdas", "1.0").code == 0
    assert "holds another sweep; expected beta = None, got 0.5" in fails(*words, "--lambdas", "1.0", "--beta", "0.5")
    assert "asked for twice: shift-0.5" in fails(*words, "--lambdas", "0.5,0.50")
    assert "not a list of numbers" in fails(*words, "--lambdas", "half")
    assert "unknown schedule 'constant'" in fails(*words, "--schedules", "constant")


@pytest.mark.parametrize("words", [("score",), ("train", "--model"), ("theory-gap", "--model")])
def test_a_model_that_is_not_there_leaves_no_folder(
    fails: Any, words: tuple[str, ...], pairs: Path, tmp_path: Path
) -> None:
    assert "no such folder, and no " in fails(*words, "nobody/nothing", "--data", pairs)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name == "runs"] == []


@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_another_model_is_not_trained_on_the_toy_pairs_unasked(fails: Any, verb: str, model: Path) -> None:
    assert f"{model}: no pairs are named. Name them with --data FILE" in fails(verb, "--model", model)
    assert not Path("runs").exists()

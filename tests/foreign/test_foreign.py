"""Files of other tools become run folders that plot, compare and report read."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_models import save_tiny_model, write_pairs
from torch.utils.tensorboard import SummaryWriter
from transformers.integrations.integration_utils import rewrite_logs

from dpotool.cli.app import main
from dpotool.compare.findings import find_out
from dpotool.errors import DpotoolError
from dpotool.foreign.run import import_file
from dpotool.plots.gallery import draw
from dpotool.report.page import write_report
from dpotool.runs.folder import RunFolder
from dpotool.runs.tables import read_table
from dpotool.settings.reading import ImportConfig, PlotConfig, ReportConfig


def write_reward_bench(path: Path, rewards: list[tuple[Any, Any]]) -> Path:
    """As `actual_main` of allenai/reward-bench, rewardbench/rewardbench.py (d5b87d1) writes MODEL_all.jsonl.

    With --save_all, a line for each pair of the lists of scores; a reward model that answers with an array of shape
    (batch, 1) leaves lists of one there, since `.tolist()` makes the scores.
    """
    with path.open("w") as file:
        for chosen, rejected in rewards:
            file.write(json.dumps({"chosen": chosen, "rejected": rejected}) + "\n")
    return path


def write_reward_bench_outputs(path: Path, chosen: torch.Tensor, rejected: torch.Tensor, prompts: list[str]) -> Path:
    """As the same function writes MODEL_outputs.jsonl, always: a table of columns, a line of all of them per row.

    Rewards of a batch come as a tensor of shape (batch,) or (batch, 1); lists of lists are flattened; then the texts
    and whatever other columns the data set had.
    """
    scores = [rewards.float().cpu().numpy().tolist() for rewards in (chosen, rejected)]
    results = [1 if one > other else 0 for one, other in zip(*scores, strict=True)]
    flat = [[item for row in side for item in (row if isinstance(row, list) else [row])] for side in scores]
    table = {
        "prompt": prompts,
        "results": results,
        "scores_chosen": flat[0],
        "scores_rejected": flat[1],
        "text_chosen": [f"{prompt} yes" for prompt in prompts],
        "text_rejected": [f"{prompt} no" for prompt in prompts],
        "subset": ["alpacaeval-easy"] * len(prompts),
        "id": list(range(len(prompts))),
    }
    with path.open("w") as file:
        for row in range(len(prompts)):
            json.dump({name: column[row] for name, column in table.items()}, file)
            file.write("\n")
    return path


def write_unalignment(path: Path, indices: torch.Tensor, ches: list[torch.Tensor], **more: Any) -> Path:
    """As `main` of princeton-nlp/unintentional-unalignment (8567b81), compute_preference_similarity_per_example.py.

    `sample_indices`: int64, a slice of `torch.randperm`; the distances float32 and negated; the scores
    `torch.tensor` of a list of scalars in the model's own type. All of shape (pairs,).
    """
    results = {
        "sample_indices": indices,
        "minus_normalized_edit_distances": -torch.tensor([0.5, 0.25, 1.0]).to(torch.float),
        "ches_scores": torch.tensor(ches),
        "ln_ches_scores": torch.tensor([score / 100 for score in ches]),
        "last_hidden_embedding_inner_prods": torch.tensor([2 * score for score in ches]),
    }
    torch.save(results | more, path)
    return path


@pytest.mark.slow
def test_what_trl_itself_logs_is_a_trajectory(tmp_path: Path) -> None:
    """Two real steps of TRL's DPOTrainer with evaluation, and the trainer_state.json of its checkpoint."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    model = save_tiny_model(tmp_path / "tiny")
    rows = [json.loads(line) for line in write_pairs(tmp_path / "p.jsonl", 8, scores=False).read_text().splitlines()]
    arguments = DPOConfig(
        output_dir=str(tmp_path / "trl"), max_steps=2, logging_steps=1, save_steps=2, eval_strategy="steps",
        eval_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True, bf16=False, beta=0.1,
        learning_rate=1e-3,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:4]),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    state = tmp_path / "trl" / "checkpoint-2" / "trainer_state.json"
    logged = json.loads(state.read_text())["log_history"]

    result = import_file(str(state), ImportConfig(output=str(tmp_path / "run"), beta=0.1))

    assert result.kind == "trl"
    metrics = RunFolder(tmp_path / "run").read_metrics()
    assert [row["step"] for row in metrics] == [1, 1, 2, 2]
    theirs = [row for row in logged if "logps/chosen" in row]
    ours = [row for row in metrics if "logps/chosen" in row]
    assert [row["logps/chosen"] for row in ours] == [row["logps/chosen"] for row in theirs]
    assert ours[-1]["displacement/chosen"] == pytest.approx(theirs[-1]["rewards/chosen"] / 0.1)
    gallery = draw("trajectory", [str(tmp_path / "run")], PlotConfig())
    assert [path.name for path in gallery.paths] == ["trajectory.png"]


def test_rewards_compare_by_margin_and_accuracy(tmp_path: Path) -> None:
    first = write_reward_bench(tmp_path / "a_all.jsonl", [(1.0, 0.5), (0.2, 0.4), ([2.0], [1.0]), (0.1, 0.1)] * 10)
    second = write_reward_bench(tmp_path / "b_all.jsonl", [(1.0, 0.5), (0.6, 0.4), (2.0, 1.0), (0.2, 0.1)] * 10)
    for path in (first, second):
        import_file(str(path), ImportConfig(output=str(tmp_path / path.stem), data="bench", beta=0.1))

    frame = read_table(RunFolder(tmp_path / "a_all").list_tables("score")[0])
    assert frame["reward_margins"].tolist()[:4] == pytest.approx([0.05, -0.02, 0.1, 0.0])
    assert frame["chosen_logps"].isna().all()
    summary = json.loads((tmp_path / "a_all" / "scores" / "bench-test.summary.json").read_text())
    assert (summary["reward_accuracy"]["value"], summary["ties"], summary["n"]) == (0.5, 10, 40)
    assert summary["chosen_logps"] is None and summary["verdict"] is None
    findings = find_out([str(tmp_path / "a_all"), str(tmp_path / "b_all")])
    assert findings.sentences[0].startswith("b_all against a_all: reward accuracy is 50.0 points higher [")
    assert "a_all has rewards but no log-likelihoods" in findings.comparison.problems[0]
    assert findings.recommendation is None
    assert findings.statement == "No verdict: there are rewards but no log-likelihoods."
    report = write_report(
        [str(tmp_path / "a_all"), str(tmp_path / "b_all")], ReportConfig(output=str(tmp_path / "r.html"))
    )
    assert {"verdict", "accuracy", "pairs"} <= {section.id for section in report.page.sections}
    assert report.page.title == "Likelihood displacement: a_all", "an import knows no model"


def test_a_lambda_is_shown_or_refused(tmp_path: Path) -> None:
    file = str(write_reward_bench(tmp_path / "a.jsonl", [(1.0, 0.5), (0.2, 0.4)] * 10))
    import_file(file, ImportConfig(output=str(tmp_path / "run"), loss="shift", lambda_=0.9))
    [row] = find_out([str(tmp_path / "run")]).comparison.runs.to_dict("records")
    assert (row["label"], row["lambda"]) == ("DPO-Shift λ=0.9", 0.9)
    with pytest.raises(
        DpotoolError, match="--lambda: is shown for DPO-Shift only; expected --loss shift, got no --loss"
    ):
        import_file(file, ImportConfig(output=str(tmp_path / "other"), lambda_=0.9))
    with pytest.raises(
        DpotoolError, match="--lambda: is shown for DPO-Shift only; expected --loss shift, got --loss ipo"
    ):
        import_file(file, ImportConfig(output=str(tmp_path / "other"), loss="ipo", lambda_=0.9))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_what_rewardbench_always_writes_has_prompts_too(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Two pairs a prompt: they are one draw of the bootstrap."""
    chosen, rejected = torch.arange(40.0).reshape(shape), torch.full(shape, 19.5)
    file = write_reward_bench_outputs(
        tmp_path / "m_outputs.jsonl", chosen, rejected, [f"<s>prompt {row // 2}" for row in range(40)]
    )

    result = import_file(str(file), ImportConfig(output=str(tmp_path / "run"), beta=0.1))

    frame = read_table(result.path)
    assert frame["chosen_rewards"].tolist() == pytest.approx([0.1 * row for row in range(40)])
    assert (frame["reward_margins"] > 0).mean() == 0.5
    assert frame["prompt_id"].nunique() == 20 and frame["prompt_id"][0] == frame["prompt_id"][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dict_of_tensors_becomes_a_table_by_pair(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = tmp_path / "OLMo-1B_ultrafeedback"
    folder.mkdir()
    ches = [torch.tensor(value, dtype=dtype) for value in (1.5, -2.0, 0.0)]
    file = write_unalignment(folder / "results_samples.pt", torch.tensor([5, 2, 9]), ches)

    result = import_file(str(file), ImportConfig(output=str(tmp_path / "run")))

    frame = pd.read_csv(result.path)
    assert frame["pair_id"].tolist() == [2, 5, 9]
    assert frame["ches_scores"].tolist() == [-2.0, 1.5, 0.0]
    assert frame["minus_normalized_edit_distances"].tolist() == [-0.25, -0.5, -1.0]
    assert result.left_out == []


def test_what_is_no_column_is_named(tmp_path: Path) -> None:
    """Copies of the script save a score for each layer beside these."""
    file = write_unalignment(
        tmp_path / "results_samples.pt", torch.arange(3), [torch.tensor(1.0)] * 3, layers=torch.zeros(3, 7), name="a"
    )
    result = import_file(str(file), ImportConfig(output=str(tmp_path / "run")))
    assert result.left_out == ["layers (shape (3, 7))", "name (str)"]


def test_tensors_of_log_likelihoods_become_scores(tmp_path: Path) -> None:
    values = {name: torch.randn(30) - 20 for name in ("chosen_logps", "rejected_logps")}
    values |= {f"ref_{name}": column + 1 for name, column in values.items()}
    torch.save(values, tmp_path / "scores.pt")

    result = import_file(str(tmp_path / "scores.pt"), ImportConfig(output=str(tmp_path / "run"), beta=0.5, loss="dpo"))

    frame = read_table(result.path)
    assert frame["chosen_rewards"].tolist() == pytest.approx([-0.5] * 30, abs=1e-5)
    findings = find_out([str(tmp_path / "run")])
    assert findings.comparison.baseline == "DPO"
    assert findings.statement.startswith("No verdict: the table has no completion lengths")
    assert findings.next_action.startswith("Import again with chosen_tokens and rejected_tokens, or score")
    values |= {f"{side}_tokens": torch.full((30,), 20) for side in ("chosen", "rejected")}
    torch.save(values, tmp_path / "scores.pt")
    import_file(str(tmp_path / "scores.pt"), ImportConfig(output=str(tmp_path / "run"), beta=0.5, loss="dpo"))
    assert find_out([str(tmp_path / "run")]).verdicts["DPO"] is not None, "the advice helps"


@pytest.mark.parametrize(
    ("indices", "got"),
    [([5.0, 2.0, 5.0], "got 5 twice"), ([5.0, 2.5, 9.0], r"got 2\.5"), ([5.0, float("nan"), 9.0], "got nan")],
)
def test_indices_that_do_not_number_the_pairs_are_refused(tmp_path: Path, indices: list[float], got: str) -> None:
    file = write_unalignment(tmp_path / "results_samples.pt", torch.tensor(indices), [torch.tensor(1.0)] * 3)
    with pytest.raises(
        DpotoolError, match=f"sample_indices does not number the pairs; expected whole numbers, .*{got}"
    ):
        import_file(str(file), ImportConfig(output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_tensors_that_still_require_a_gradient_are_read(tmp_path: Path) -> None:
    torch.save({"ches_scores": torch.tensor([1.0, 2.0], requires_grad=True)}, tmp_path / "a.pt")
    result = import_file(str(tmp_path / "a.pt"), ImportConfig(output=str(tmp_path / "run")))
    assert pd.read_csv(result.path)["ches_scores"].tolist() == [1.0, 2.0]


def test_a_line_separator_within_a_prompt_ends_no_line(tmp_path: Path) -> None:
    """JSON allows U+2028 in a string as it is; a writer with ensure_ascii=False leaves it so."""
    row = {"prompt": "one\u2028two", "scores_chosen": 1.0, "scores_rejected": 0.5}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8", newline="")
    assert import_file(str(tmp_path / "a.jsonl"), ImportConfig(output=str(tmp_path / "run"))).n_rows == 1


@pytest.mark.parametrize("name", ["a.jsonl", "trainer_state.json"])
def test_a_file_that_is_no_utf8_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(DpotoolError, match=rf"{name}: cannot be read as UTF-8 text"):
        import_file(str(tmp_path / name), ImportConfig(output=str(tmp_path / "run")))


def refuse_to_compare(paths: list[str], name: str) -> list[str]:
    """Returns the words of the command that the refusal names."""
    with pytest.raises(DpotoolError, match="If they are of the same pairs, import again: `") as refusal:
        find_out(paths, baseline=name)
    return shlex.split(str(refusal.value).split("`")[1])


def test_files_named_by_model_compare_after_what_the_error_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two refusals, for data and for split; what they tell to type changes nothing else. A folder has a blank."""
    folder = tmp_path / "my files"
    folder.mkdir()
    splits, paths = {"a": "test", "b": "validation"}, [str(folder / name) for name in ("a", "b")]
    for name, split in splits.items():
        file = write_reward_bench(folder / f"{name}.jsonl", [(1.0, 0.5), (0.2, 0.4)] * 10)
        import_file(str(file), ImportConfig(output=str(folder / name), beta=0.1, loss="dpo", split=split))
    before = read_table(RunFolder(folder / "b").list_tables("score")[0])

    for told in (["--data", "a", "--split", "validation"], ["--data", "a", "--split", "test"]):
        command = refuse_to_compare(paths, "a")
        flags = ["--beta", "0.1", "--loss", "dpo", *told, "--output", str(folder / "b")]
        assert command == ["dpotool", "import", str(folder / "b.jsonl"), *flags]
        monkeypatch.setattr(sys, "argv", command)
        with suppress(SystemExit):
            main()

    found = find_out(paths, baseline="a", data="a", split="test").comparison
    assert found.runs["loss"].tolist() == ["dpo", "dpo"]
    pd.testing.assert_frame_equal(found.scored[1].scored.reset_index(drop=True), before)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_steps": 4, "global_step": 100}, "goes beyond its own end; expected at most max_steps, 4, got step 100"),
        (
            {"log_history": [{"loss": 1.0, "step": "7"}]},
            r"log_history\.0\.step: is not what it has to be; expected a whole",
        ),
        ({"log_history": [{"loss": 1.0, "step": -7}]}, r"log_history\.0\.step: is not what it has to be; .*got -7"),
        ({"global_step": [1]}, r"global_step: is not what it has to be"),
    ],
)
def test_a_trainer_state_that_no_training_wrote_is_one_line(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    state = {"global_step": 4, "max_steps": 4, "log_history": [{"loss": 0.7, "step": 4}], **changed}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(DpotoolError, match=said):
        import_file(str(tmp_path), ImportConfig(output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"log_history": ' + "9" * 5000 + "}"], ids=["deep", "5000 digits"])
def test_json_that_no_tool_wrote_is_one_line(text: str, tmp_path: Path) -> None:
    for name in ("state.json", "scores.jsonl"):
        (tmp_path / name).write_text(text)
        with pytest.raises(DpotoolError, match=r"cannot be read as JSON|not a line that rewardbench writes"):
            import_file(str(tmp_path / name), ImportConfig(output=str(tmp_path / "run")))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (
            "chosen_tokens",
            [3, -2],
            r"chosen_tokens\[1\]: is no such number; expected whole numbers, at least 1, got -2",
        ),
        ("chosen_logps", [-3.0, 2.0], r"chosen_logps\[1\]: is no such number; expected log-probabilities, at most 0"),
        ("chosen_logps", [-3.0 + 1j, -2.0], "chosen_logps: holds complex numbers"),
    ],
)
def test_numbers_that_no_model_gives_are_refused(column: str, value: list[Any], said: str, tmp_path: Path) -> None:
    tensors = {"chosen_logps": [-1.0, -2.0], "rejected_logps": [-1.0, -2.0], "chosen_tokens": [3, 3], column: value}
    torch.save({name: torch.tensor(values) for name, values in tensors.items()}, tmp_path / "x.pt")
    with pytest.raises(DpotoolError, match=said):
        import_file(str(tmp_path / "x.pt"), ImportConfig(output=str(tmp_path / "run")))


def test_what_is_not_finite_is_left_out_and_never_ok(tmp_path: Path) -> None:
    tensors = {"chosen_logps": [-1.0, float("nan"), -3.0], "rejected_logps": [-1.0, -2.0, float("-inf")]}
    torch.save({name: torch.tensor(values) for name, values in tensors.items()}, tmp_path / "x.pt")
    result = import_file(str(tmp_path / "x.pt"), ImportConfig(output=str(tmp_path / "run")))
    assert read_table(result.path)["status"].tolist() == ["ok", *["log-likelihood is not finite"] * 2]
    summary = json.loads(result.path.with_suffix(".summary.json").read_text())
    assert (summary["n"], summary["n_excluded"]) == (1, {"log-likelihood is not finite": 2})


def test_a_training_folder_is_read_by_its_newest_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for step in (20, 100):
        (tmp_path / f"sft/checkpoint-{step}").mkdir(parents=True)
        log = [{"loss": 1.0, "step": done} for done in range(20, step + 1, 20)]
        Path(f"sft/checkpoint-{step}/trainer_state.json").write_text(json.dumps({"log_history": log}))
    result = import_file("sft", ImportConfig())
    assert (result.folder.path, result.n_rows) == (Path("runs/sft"), 5)
    (tmp_path / "runs/sft/run.yaml").unlink()
    (tmp_path / "runs/sft/config.json").write_text("{}")
    with pytest.raises(DpotoolError, match="runs/sft: holds a model, and no run"):
        import_file("sft", ImportConfig())
    with pytest.raises(DpotoolError, match=r"holds no trainer_state\.json, nor does a checkpoint in it"):
        import_file("runs", ImportConfig())


def test_an_unknown_loss_is_refused(tmp_path: Path) -> None:
    file = str(write_reward_bench(tmp_path / "a.jsonl", [(1.0, 0.5)]))
    with pytest.raises(DpotoolError, match=r"unknown loss 'dop'\. Did you mean 'dpop'"):
        import_file(file, ImportConfig(output=str(tmp_path / "run"), loss="dop"))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: Path(path).write_bytes(pickle.dumps(value))])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Any) -> None:
    monkeypatch.chdir(tmp_path)
    save({"a": Evil()}, "evil.pt")
    with pytest.raises(DpotoolError, match=r"evil\.pt: holds more than tensors, or cannot be read"):
        import_file("evil.pt", ImportConfig(output="run"))
    assert not Path("pwned").exists() and not Path("run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", "{}", r"state\.json: holds no log_history\. Name the trainer_state\.json"),
        ("state.json", "{", "cannot be read as JSON"),
        ("a.jsonl", '{"chosen": 1}\n', r"a\.jsonl:1: not a line that rewardbench writes for pairs; expected"),
        ("a.jsonl", '{"chosen": 1, "rejected": 2}\n{"chosen": NaN, "rejected": 2}\n', r"a\.jsonl:2: not a line"),
        ("a.jsonl", "", "holds no rewards"),
        ("a.txt", "x", "cannot tell what wrote it from its name"),
    ],
)
def test_what_is_none_of_these_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    with pytest.raises(DpotoolError, match=message):
        import_file(name, ImportConfig(output="run"))
    assert not Path("run").exists()


def test_another_runs_folder_is_left_alone(tmp_path: Path) -> None:
    from scored_runs import write_scored_run

    write_scored_run(tmp_path / "dpo", loss="dpo")
    file = write_reward_bench(tmp_path / "a.jsonl", [(1, 0)])
    with pytest.raises(DpotoolError, match="holds another run; got kind train"):
        import_file(str(file), ImportConfig(output=str(tmp_path / "dpo")))
    with pytest.raises(DpotoolError, match="no such file"):
        import_file(str(tmp_path / "nothing.pt"), ImportConfig())


def test_files_that_reward_bench_wrote(tmp_path: Path) -> None:
    """Both of its files of one run (reward_bench/README.md) hold the same rewards, and the accuracy it found itself."""
    written = Path(__file__).parent / "reward_bench"
    own = json.loads((written / "tiny-rm.json").read_text())
    frames = []
    for name in ("tiny-rm_all", "tiny-rm_outputs"):
        import_file(str(written / f"{name}.jsonl"), ImportConfig(data="six", output=str(tmp_path / name)))
        (path,) = RunFolder(tmp_path / name).list_tables("score")
        frames.append(read_table(path))
        summary = json.loads(path.with_suffix(".summary.json").read_text())
        assert summary["reward_accuracy"]["value"] == own["accuracy"] == 0.5
    for column in ("chosen_rewards", "rejected_rewards"):
        assert frames[0][column].tolist() == frames[1][column].tolist()
        assert len(frames[0][column].unique()) == own["num_prompts"] == 6
    assert frames[0]["chosen_rewards"][4] == frames[0]["rejected_rewards"][4], "a tie, which it counts as wrong"


LOGGED = [
    {"step": 10, "loss": 0.69, "logps/chosen": -50.0, "rewards/chosen": -0.1, "rewards/accuracies": 0.5},
    {"step": 10, "eval_loss": 0.68, "eval_logps/chosen": -51.0, "eval_rewards/chosen": -0.2},
    {"step": 20, "loss": 0.6, "logps/chosen": -53.0, "rewards/chosen": -0.4, "rewards/accuracies": 0.75},
]
"""What a trainer of TRL logs; transformers' callbacks hand the same to every service (`rewrite_logs`)."""
CLOSING = {"step": 20, "train_runtime": 3.0, "train_loss": 0.65, "total_flos": 1e9}


def for_service(row: dict[str, Any]) -> dict[str, Any]:
    return rewrite_logs({name: value for name, value in row.items() if name != "step"})


def write_tensorboard(folder: Path) -> Path:
    """As transformers' TensorBoardCallback does: a scalar for each name, at the global step."""
    writer = SummaryWriter(str(folder))
    for row in [*LOGGED, CLOSING]:
        for name, value in for_service(row).items():
            writer.add_scalar(name, value, row["step"])
    writer.close()
    return folder


def write_wandb(folder: Path) -> Path:
    """As `wandb.Api().run(...).history().to_csv()`: a column for each name, empty where a row has none."""
    rows = [
        {
            "_step": place,
            "_runtime": 1.5 * place,
            "_timestamp": 1.7e9,
            **for_service(row),
            "train/global_step": row["step"],
        }
        for place, row in enumerate([*LOGGED, CLOSING])
    ]
    path = folder / "history.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def write_trackio(folder: Path, runs: tuple[str, ...] = ("run-a",)) -> Path:
    """As trackio 0.43 keeps them (`SQLiteStorage.bulk_log`): metrics as JSON bytes, NaN as text."""
    path = folder / "project.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, timestamp TEXT "
            "NOT NULL, "
            "run_name TEXT NOT NULL, step INTEGER NOT NULL, metrics TEXT NOT NULL, log_id TEXT, space_id TEXT)"
        )
        for run in runs:
            for place, row in enumerate([*LOGGED, CLOSING]):
                logged = for_service(row) | {"train/global_step": row["step"], "train/grad_norm": "NaN"}
                values = (run, "2026-11-26T20:37:20+00:00", run, place, json.dumps(logged).encode())
                database.execute(
                    "INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?, ?)", values
                )
    return path


@pytest.mark.parametrize(
    ("write", "kind"), [(write_tensorboard, "tensorboard"), (write_wandb, "wandb"), (write_trackio, "trackio")]
)
def test_what_a_service_logged_is_what_trl_itself_logged(tmp_path: Path, write: Any, kind: str) -> None:
    result = import_file(str(write(tmp_path)), ImportConfig(output=str(tmp_path / "run"), beta=0.1))
    rows = [json.loads(line) for line in result.path.read_text().splitlines()]
    assert result.kind == kind
    expected = [dict(row) for row in LOGGED]
    expected[0]["displacement/chosen"], expected[2]["displacement/chosen"] = -1.0, -4.0
    expected[1]["eval_displacement/chosen"] = -2.0
    for row in rows:
        [same] = [each for each in expected if each["step"] == row["step"] and ("loss" in each) == ("loss" in row)]
        assert row == pytest.approx(same, rel=1e-6)
    assert len(rows) == 3
    assert draw("trajectory", [str(result.folder.path)], PlotConfig()).paths[0].is_file()


def test_of_several_runs_one_is_named(tmp_path: Path) -> None:
    path = write_trackio(tmp_path, ("run-a", "run-b"))
    with pytest.raises(
        DpotoolError,
        match=r"holds several runs; .* got run-a, run-b\. Choose one, for example "
        "--run run-b",
    ):
        import_file(str(path), ImportConfig(output=str(tmp_path / "run")))
    with pytest.raises(DpotoolError, match="--run run-c: no such run; expected run-a, run-b"):
        import_file(str(path), ImportConfig(output=str(tmp_path / "run"), run="run-c"))
    assert import_file(str(path), ImportConfig(output=str(tmp_path / "run"), run="run-b")).n_rows == 3


def test_llama_factorys_log_has_loss_and_accuracy(tmp_path: Path) -> None:
    """As its LogCallback writes trainer_log.jsonl (hiyouga/LLaMA-Factory, src/llamafactory/train/callbacks.py)."""
    lines = [
        {"current_steps": 10, "total_steps": 20, "loss": 0.69, "accuracy": 0.5, "lr": 1e-6, "epoch": 0.5,
         "percentage": 50.0, "elapsed_time": "0:00:10", "remaining_time": "0:00:10"},
        {"current_steps": 20, "total_steps": 20, "eval_loss": 0.6, "epoch": 1.0, "percentage": 100.0,
         "elapsed_time": "0:00:20", "remaining_time": "0:00:00"},
    ]  # fmt: skip
    folder = tmp_path / "saves"
    folder.mkdir()
    (folder / "trainer_log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = import_file(str(folder), ImportConfig(output=str(tmp_path / "run")))
    rows = [json.loads(line) for line in result.path.read_text().splitlines()]
    assert result.kind == "llama-factory"
    assert rows == [
        {"step": 10, "loss": 0.69, "rewards/accuracies": 0.5, "learning_rate": 1e-6},
        {"step": 20, "eval_loss": 0.6},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.db", b"no database", "is no database of trackio"),
        ("history.csv", b"a,b\n1,2\n", "row.0.step|has logged nothing|step"),
        ("trainer_log.jsonl", b"{half", "trainer_log.jsonl:1: cannot be read as JSON"),
        ("notes.txt", b"", "cannot tell what wrote it from its name"),
    ],
)
def test_a_log_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DpotoolError, match=message) as error:
        import_file(str(tmp_path / name), ImportConfig(output=str(tmp_path / "run")))
    assert "\n" not in str(error.value)

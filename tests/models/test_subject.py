"""What is scored against what: run folders know, other models are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import save_tiny_model, write_pairs

from dpotool.errors import DpotoolError
from dpotool.likelihood.subject import open_subject
from dpotool.models.subject import describe_subject
from dpotool.progress import SILENT
from dpotool.settings.scoring import ScoreConfig


def write_run(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    settings = {"model": "base", "data": "pairs.jsonl", "split": "train", "beta": 0.3, "dtype": "float32", **config}
    manifest = {
        "kind": "train",
        "status": "finished",
        "created": "2026-01-01",
        "config": settings,
        "fingerprints": {"reference": "abc"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(manifest))
    return folder


def test_a_run_is_scored_on_what_it_was_evaluated_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", eval_data="test.jsonl", eval_split="all", eval_limit=9, max_length=77, seed=3)
    subject = describe_subject(str(run), ScoreConfig())
    assert (subject.config.data, subject.config.split, subject.config.limit) == ("test.jsonl", "all", 9)
    assert (subject.config.max_length, subject.config.seed) == (77, 3)
    assert (subject.reference, subject.reference_fingerprint, subject.beta) == ("base", "abc", 0.3)
    assert (subject.dtype, subject.bf16) == ("float32", False)
    assert subject.folder.path == run


def test_what_a_run_does_not_record_is_the_default(tmp_path: Path) -> None:
    config = describe_subject(str(write_run(tmp_path / "run", eval_data="test.jsonl")), ScoreConfig()).config
    assert (config.truncation, config.skip_invalid, config.seed) == ("trim-prompt", False, ScoreConfig().seed)


def test_without_evaluation_data_the_training_pairs_are_left_and_that_is_known(tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run"))
    subject = describe_subject(run, ScoreConfig())
    assert (subject.config.data, subject.on_training_pairs) == ("pairs.jsonl", True)
    assert not describe_subject(run, ScoreConfig(data="held-out.jsonl")).on_training_pairs


def test_flags_win(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", eval_data="test.jsonl", max_length=77, bf16=True)
    config = ScoreConfig(data="other.jsonl", reference="other", limit=2, dtype="bfloat16", output=str(tmp_path / "out"))
    subject = describe_subject(str(run), config)
    assert (subject.config.data, subject.config.split, subject.config.limit) == ("other.jsonl", None, 2)
    assert subject.config.max_length == 77, "sequences are cut as in training"
    assert (subject.reference, subject.reference_fingerprint) == ("other", None)
    assert (subject.dtype, subject.bf16) == ("bfloat16", False)
    assert subject.folder.path == tmp_path / "out"


@pytest.mark.parametrize("names_code", ["model", "reference"])
def test_code_beside_the_weights_is_not_run_because_a_run_folder_says_so(tmp_path: Path, names_code: str) -> None:
    """Only the command line may allow it; `run.yaml` may come from anywhere."""
    plain, coded, mark = save_tiny_model(tmp_path / "plain"), save_tiny_model(tmp_path / "coded"), tmp_path / "mark"
    path = coded / "config.json"
    maps = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "other", "auto_map": maps}))
    (coded / "code.py").write_text(f"open({str(mark)!r}, 'w')")
    data = str(write_pairs(tmp_path / "pairs.jsonl", 4))
    names = {"model": str(plain), "reference": str(plain), names_code: str(coded)}
    run = write_run(tmp_path / "run", data=data, split="all", eval_data=data, trust_remote_code=True, **names)
    shutil.copytree(plain if names_code == "reference" else coded, run, dirs_exist_ok=True)
    with pytest.raises(DpotoolError, match=r"contains custom code.*add --trust-remote-code$"):
        open_subject(describe_subject(str(run), ScoreConfig(device="cpu")), SILENT)
    assert not mark.exists()


def test_a_named_reference_of_the_run_is_kept(tmp_path: Path) -> None:
    assert describe_subject(str(write_run(tmp_path / "run", reference="sft")), ScoreConfig()).reference == "sft"


def test_a_run_trained_in_mixed_precision_is_scored_in_it(tmp_path: Path) -> None:
    assert describe_subject(str(write_run(tmp_path / "run", bf16=True)), ScoreConfig()).bf16


def test_a_model_from_elsewhere_has_no_reference_and_writes_under_runs(tmp_path: Path) -> None:
    subject = describe_subject("org/model", ScoreConfig(data="p.jsonl"))
    assert subject.reference is None
    assert subject.config.data == "p.jsonl"
    assert subject.folder.path == Path("runs/org--model")


def test_only_the_built_in_model_goes_with_the_built_in_pairs_unasked() -> None:
    with pytest.raises(DpotoolError, match=r"org/model: no pairs are named.*--data builtin:demo"):
        describe_subject("org/model", ScoreConfig())
    assert describe_subject("builtin:demo", ScoreConfig()).config.data == "builtin:demo"
    assert describe_subject("org/model", ScoreConfig(data="builtin:demo")).config.data == "builtin:demo"
    describe_subject("org/model", ScoreConfig(), needs_pairs=False)


def test_the_built_in_model_has_its_results_among_the_runs_and_not_in_the_cache(own_cache: Path) -> None:
    model = save_tiny_model(own_cache / "demo-0123456789ab")
    for name in ("builtin:demo", str(model)):
        folder = describe_subject(name, ScoreConfig(data="builtin:demo")).folder.path
        assert folder.parent == Path("runs") and own_cache not in (folder, *folder.parents)


def test_a_sweep_is_no_model(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    manifest = yaml.safe_load((run / "run.yaml").read_text()) | {"kind": "sweep"}
    (run / "run.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(DpotoolError, match="holds no trained model; expected a run of kind train, got kind sweep"):
        describe_subject(str(run), ScoreConfig())


def test_a_mistyped_path_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DpotoolError, match="runs/typo: no such folder"):
        describe_subject("runs/typo", ScoreConfig())
    assert not Path("runs").exists()


def test_a_checkpoint_knows_its_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", eval_data="test.jsonl", eval_limit=9)
    checkpoint = run / "checkpoint-20"
    checkpoint.mkdir()
    whole, part = (describe_subject(str(path), ScoreConfig()) for path in (run, checkpoint))
    assert part.label == "run/checkpoint-20"
    assert part.folder.path == checkpoint
    for name in ("reference", "reference_fingerprint", "config", "beta", "dtype", "loss"):
        assert getattr(part, name) == getattr(whole, name), name
    (checkpoint / "run.yaml").write_text("kind: score")  # as scoring it leaves one
    assert describe_subject(str(checkpoint), ScoreConfig()) == part
    with pytest.raises(DpotoolError, match="checkpoint-21: no such folder"):
        describe_subject(str(run / "checkpoint-21"), ScoreConfig())
    assert not (run / "checkpoint-21").exists()


def test_checkpoints_from_elsewhere_do_not_share_a_folder(tmp_path: Path) -> None:
    folders = [tmp_path / trainer / "checkpoint-100" for trainer in ("trl-a", "trl-b")]
    for folder in folders:
        folder.mkdir(parents=True)
    subjects = [describe_subject(str(folder), ScoreConfig(data="p.jsonl")) for folder in folders]
    assert [str(subject.folder.path) for subject in subjects] == [
        "runs/trl-a--checkpoint-100",
        "runs/trl-b--checkpoint-100",
    ]


@pytest.mark.parametrize(
    ("asked", "variant"),
    [
        ({}, ""),
        ({"limit": 9, "beta": 0.3, "reference": "base", "max_length": 77, "dtype": "float32"}, ""),
        ({"limit": 2}, "limit-2"),
        ({"limit": 2, "beta": 0.5}, "limit-2-beta-0.5"),
        ({"reference": "models/other", "max_length": 20}, "max-length-20-reference-other"),
        ({"truncation": "exclude", "dtype": "bfloat16"}, "truncation-exclude-dtype-bfloat16"),
        ({"data": "test.jsonl", "limit": 9}, ""),
        ({"data": "other.jsonl"}, ""),
        ({"data": "other.jsonl", "limit": 9}, "limit-9"),
    ],
)
def test_what_is_not_as_the_runs_own_scoring_has_a_name(tmp_path: Path, asked: dict[str, Any], variant: str) -> None:
    run = write_run(tmp_path / "run", eval_data="test.jsonl", eval_limit=9, max_length=77, truncation="trim-prompt")
    assert describe_subject(str(run), ScoreConfig(**asked)).variant == variant


def test_truncation_asked_for_is_not_ignored(tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run", eval_data="test.jsonl", truncation="trim-prompt", skip_invalid=False))
    config = describe_subject(run, ScoreConfig(truncation="exclude", skip_invalid=True)).config
    assert (config.truncation, config.skip_invalid) == ("exclude", True)


def test_another_cut_of_a_runs_own_pairs_is_refused(tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run", test_fraction=0.1))
    assert describe_subject(run, ScoreConfig(test_fraction=0.1)).config.test_fraction == 0.1
    with pytest.raises(
        DpotoolError, match=r"--test-fraction: the pairs of a run are divided as in training; expected 0\.1"
    ):
        describe_subject(run, ScoreConfig(test_fraction=0.5))
    assert describe_subject(run, ScoreConfig(data="x.jsonl", test_fraction=0.5)).config.test_fraction == 0.5


def test_a_seed_is_honoured_and_the_cut_stays_the_runs_own(tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run", test_fraction=0.25, seed=3))
    own, asked = describe_subject(run, ScoreConfig()).config, describe_subject(run, ScoreConfig(seed=7)).config
    assert (own.seed, own.split_seed) == (3, 3)
    assert (asked.seed, asked.split_seed) == (7, 3)
    with pytest.raises(DpotoolError, match=r"--split-seed: the pairs of a run are divided as in training; .* got 5"):
        describe_subject(run, ScoreConfig(split_seed=5))
    assert describe_subject(run, ScoreConfig(split_seed=5, data="other.jsonl")).config.split_seed == 5


def test_part_of_the_data_of_a_model_from_elsewhere_is_kept_apart() -> None:
    assert describe_subject("org/model", ScoreConfig(data="p.jsonl", limit=5)).variant == "limit-5"

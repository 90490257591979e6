"""Sweeps: one start, one set of reference values, nothing done twice, and one failure does not lose the rest."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import save_tiny_model, write_pairs

from dpotool.compare.controls import find_curves
from dpotool.compare.findings import find_out
from dpotool.compare.runs_table import expand_sweeps
from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError
from dpotool.estimates.sweep import plan_sweep
from dpotool.likelihood.layout import RowLayout
from dpotool.likelihood.scorer import Scorer
from dpotool.losses.registry import LOSSES
from dpotool.progress import Progress
from dpotool.runs.folder import RunFolder
from dpotool.sweep import run as sweep_run
from dpotool.sweep.config import SweepConfig
from dpotool.sweep.plan import choose_folder, plan_cells
from dpotool.sweep.run import sweep


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(save_tiny_model(tmp_path / "tiny")),
        "data": str(write_pairs(tmp_path / "pairs.jsonl", 20)),
        "test_fraction": 0.3,
        "batch_size": 7,
        "learning_rate": 1e-2,
        "output": str(tmp_path / "sweep"),
        "lambdas": "0.5,1.0",
        "controls": False,
    }


def test_plan_puts_dpo_first_and_names_its_cells() -> None:
    config = SweepConfig(lambdas="0.5,1.0,0.9", schedules="linear_increase, linear-decrease", lambda_min=0.6)
    cells = plan_cells(config, Path("s"))
    assert [cell.name for cell in cells] == ["dpo", "shift-0.9", "shift-0.5", "linear-increase", "linear-decrease"]
    assert cells[0].config.loss == "dpo" and cells[0].config.lambda_ is None
    assert (cells[1].config.loss, cells[1].config.lambda_) == ("shift", 0.9)
    assert cells[3].config.lambda_schedule == "linear_increase" and cells[3].config.lambda_min == 0.6
    assert cells[1].config.lambda_min is None, "a constant lambda takes no ends"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lambda_min": 0.6}, "--lambda-min: no schedule .* Give --schedules linear_increase or linear_decrease or ad"),
        (
            {"lambda_max": 0.6, "schedules": "adaptive"},
            "--lambda-max: no schedule .* linear_increase or linear_decrease,",
        ),
        ({"theory": "t.parquet"}, "--theory: no schedule in this sweep uses it. Give --schedules adaptive"),
        ({"adaptive_rule": "band"}, "--adaptive-rule: no schedule in this sweep uses it. Give --schedules adaptive"),
        ({"theory": "no.parquet", "schedules": "adaptive"}, "--theory: no such table; got no.parquet. Name a table, "),
        ({"schedules": "cosine"}, "unknown schedule 'cosine'; expected linear_increase or linear_decrease or adaptive"),
    ],
)
def test_what_no_schedule_uses_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DpotoolError, match=message):
        plan_cells(SweepConfig(**given), Path("s"))


def test_adaptive_cells_need_a_theory_table(settings: dict[str, Any]) -> None:
    with pytest.raises(DpotoolError, match=r"needs the pairs' theory table\. Make one with dpotool theory-gap"):
        sweep(SweepConfig(**settings, schedules="adaptive"))
    assert not Path(settings["output"]).exists()


def test_adaptive_rules_are_cells_and_join_a_finished_sweep(settings: dict[str, Any], tmp_path: Path) -> None:
    from dpotool.gradients.run import run_theory
    from dpotool.settings.scoring import TheoryConfig

    given = {name: settings[name] for name in ("model", "data", "test_fraction")}
    config = TheoryConfig(**given, split="train", output=str(tmp_path / "theory"), pairs_only=True)
    table = str(run_theory(config).path)
    sweep(SweepConfig(**settings))
    wider = SweepConfig(**settings, schedules="adaptive", adaptive_rule="sign,band", theory=table, lambda_min=0.6)
    assert [cell.name for cell in plan_cells(wider, Path("s"))][2:] == ["adaptive-sign", "adaptive-band"]
    result = sweep(replace(wider, lambda_min=None))
    assert result.n_trained == 2 and not result.failures
    assert result.table["label"].tolist()[2:] == ["DPO-Shift λ per pair (sign)", "DPO-Shift λ per pair (band)"]
    other = str(Path(table).rename(tmp_path / "other.parquet"))
    with pytest.raises(DpotoolError, match=r"holds another sweep; expected theory = .*, got .*other\.parquet"):
        sweep(replace(wider, lambda_min=None, theory=other))


def test_same_settings_same_folder() -> None:
    assert choose_folder(SweepConfig()) == choose_folder(SweepConfig())
    assert choose_folder(SweepConfig()) != choose_folder(SweepConfig(beta=0.2))


def test_trains_scores_and_tables_every_cell(settings: dict[str, Any]) -> None:
    result = sweep(SweepConfig(**settings, schedules="linear_increase"))
    assert result.n_trained == 3 and not result.failures
    assert result.table["label"].tolist() == ["DPO", "DPO-Shift λ=0.5", "DPO-Shift λ=0.75→1 ↑"]
    assert result.table["n"].tolist() == [6, 6, 6]
    assert (result.table["reward_accuracy_low"] <= result.table["reward_accuracy"]).all()
    assert (result.folder / "runs.csv").exists()
    assert RunFolder(result.folder).read_manifest()["status"] == "finished"


def test_the_layout_holds_for_training_and_scoring(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()
    real = RowLayout.of.__func__  # type: ignore[attr-defined]

    def note(cls: type[RowLayout], model: Any, choice: str = "auto") -> RowLayout:
        asked.add(choice)
        return real(cls, model, choice)

    monkeypatch.setattr(RowLayout, "of", classmethod(note))
    sweep(SweepConfig(**settings, layout="paired"))
    assert asked == {"paired"}


def test_all_cells_start_from_the_same_model_and_pay_the_reference_once(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    real = Scorer._compute_and_keep

    def count(self: Scorer, todo: Any, *rest: Any) -> Any:
        computed.append(len(todo))
        return real(self, todo, *rest)

    monkeypatch.setattr(Scorer, "_compute_and_keep", count)
    result = sweep(SweepConfig(**settings))
    # reference on 14 training and 6 test pairs once; each of the two trained models on the test pairs
    assert sorted(computed) == [6, 6, 6, 14]
    manifests = [RunFolder(result.folder / name).read_manifest() for name in ("dpo", "shift-0.5")]
    assert len({manifest["fingerprints"]["model"] for manifest in manifests}) == 1


def test_a_second_call_repeats_nothing_and_a_wider_grid_adds_only_what_is_new(settings: dict[str, Any]) -> None:
    first = sweep(SweepConfig(**settings))
    weights = (first.folder / "dpo" / "model.safetensors").stat().st_mtime_ns
    second = sweep(SweepConfig(**settings))
    assert second.n_trained == 0
    wider = sweep(SweepConfig(**{**settings, "lambdas": "0.5,0.8,1.0"}))
    assert wider.n_trained == 1 and len(wider.table) == 3
    assert (first.folder / "dpo" / "model.safetensors").stat().st_mtime_ns == weights


def test_controls_are_models_and_no_cells(settings: dict[str, Any]) -> None:
    """Checkpoints at the quarters of two steps, blends of start and end; the run between is matched by one more."""
    result = sweep(SweepConfig(**{**settings, "lambdas": "0.9,1.0", "batch_size": 3, "controls": True}))
    assert result.table["label"].tolist() == ["DPO", "DPO-Shift λ=0.9"]
    dpo = result.folder / "dpo"
    kept = {path.name for path in dpo.glob("checkpoint-*")}
    assert kept == {"checkpoint-1", "checkpoint-2", "checkpoint-4"}, "a quarter, half and three quarters of 5 steps"
    inside = {path.name for path in (dpo / "checkpoint-2").iterdir()}
    assert "model.safetensors" in inside and not inside & {"optimizer.pt", "scheduler.pt", "seal.json"}
    scaled, stopped = find_curves(ScoredRun.open(RunFolder(dpo).list_tables("score")[0]))
    assert {0.25, 0.5, 0.75} <= {point.share for point in scaled.points}
    assert [point.share for point in stopped.points] == [0.2, 0.4, 0.8]
    assert all(
        np.allclose(point.run.table["ref_chosen_logps"], scaled.full.table["ref_chosen_logps"])
        for point in (*scaled.points, *stopped.points)
    )
    again = sweep(SweepConfig(**{**settings, "lambdas": "0.9,1.0", "batch_size": 3}))
    assert again.n_trained == 0, "whether controls are scored changes no run"


def test_blend_trains_the_ends_and_says_how_far_the_checked_blend_is_from_a_trained_run(
    settings: dict[str, Any],
) -> None:
    config = SweepConfig(**{**settings, "lambdas": "0.5,0.8,1.0"}, blend=True, check_at=0.7, seeds=2)
    result = sweep(config)
    assert result.n_trained == 6 and not result.failures
    middle = ["blend λ=0.8", "DPO-Shift λ=0.7", "blend λ=0.7"]
    labels = [label.partition(" (")[0] for label in result.table["label"]]
    assert sorted(labels) == sorted(2 * ["DPO", *middle, "DPO-Shift λ=0.5"])
    assert {"blend-0.8", "blend-0.7", "seed43"} <= {path.name for path in result.folder.iterdir()}
    found = find_out([str(result.folder)])
    told = [sentence for sentence in found.sentences if "which was trained" in sentence]
    assert len(told) == 2, "one for each seed"
    assert all(sentence.startswith("blend λ=0.7") and " nats [" in sentence for sentence in told)
    assert sweep(replace(config, blend=False, check_at=None)).n_trained == 2, "0.8 is trained after all"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"check_at": 0.7}, "--check-at: has no effect without --blend"),
        (
            {"blend": True, "check_at": 0.4},
            "--check-at: lies not between the ends; expected a lambda between 0.5 and 1",
        ),
        ({"blend": True, "lambdas": "0.5,1"}, "--blend: nothing lies between the ends"),
    ],
)
def test_what_cannot_be_blended_is_refused_before_anything_is_trained(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DpotoolError, match=message):
        plan_cells(SweepConfig(**given), Path("s"))


def test_one_failed_cell_does_not_lose_the_others(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real = sweep_run.train

    def fail_dpo(config: Any, **kwargs: Any) -> Any:
        if config.loss == "dpo":
            raise DpotoolError("out of luck", where="here")
        return real(config, **kwargs)

    monkeypatch.setattr(sweep_run, "train", fail_dpo)
    result = sweep(SweepConfig(**settings))
    assert result.failures == {"dpo": "here: out of luck"}
    assert result.table["label"].tolist() == ["DPO-Shift λ=0.5"]
    assert RunFolder(result.folder).read_manifest()["status"] == "failed"
    monkeypatch.setattr(sweep_run, "train", real)
    again = sweep(SweepConfig(**settings))
    assert again.n_trained == 1 and len(again.table) == 2 and not again.failures


def test_a_cell_that_left_only_pieces_is_trained_anew(settings: dict[str, Any]) -> None:
    result = sweep(SweepConfig(**settings))
    RunFolder(result.folder / "dpo").update_manifest(status="running")  # as a kill -9 leaves it
    (result.folder / "dpo" / "model.safetensors").unlink()
    assert sweep(SweepConfig(**settings)).n_trained == 1
    assert (result.folder / "dpo" / "model.safetensors").exists()


def test_wrong_settings_of_any_cell_stop_before_anything_runs(settings: dict[str, Any]) -> None:
    with pytest.raises(DpotoolError, match="--allow-lambda-above-one"):
        sweep(SweepConfig(**{**settings, "lambdas": "0.5,1.2"}))
    assert not Path(settings["output"]).exists()


def test_plan_has_every_cell_once_a_seed_and_other_losses() -> None:
    config = SweepConfig(lambdas="0.5,1.0", losses="ipo", seeds=2, seed=7)
    cells = plan_cells(config, Path("s"))
    assert [cell.name for cell in cells] == ["dpo", "shift-0.5", "ipo", "dpo-seed8", "shift-0.5-seed8", "ipo-seed8"]
    assert [cell.config.seed for cell in cells] == [7, 7, 7, 8, 8, 8]
    assert cells[3].config.output == "s/dpo-seed8" and cells[2].config.loss == "ipo"


def test_all_losses_are_cells_and_dpo_and_shift_are_not_trained_twice() -> None:
    cells = plan_cells(SweepConfig(lambdas="0.95,1.0", losses="all"), Path("s"))
    pairs = [name for name, spec in LOSSES.items() if spec.takes_rejected]
    assert [cell.name for cell in cells] == ["dpo", "shift-0.95", *(n for n in pairs if n not in ("dpo", "shift"))]
    assert [cell.name for cell in plan_cells(SweepConfig(lambdas="", losses="simpo,shift"), Path("s"))] == [
        "simpo",
        "shift-0.95",
    ]


def test_all_losses_without_scores_are_all_but_those_that_need_them_and_a_note_names_these(tmp_path: Path) -> None:
    class Told(Progress):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    told = Told()
    scored = SweepConfig(losses="all", data="builtin:demo", limit=8)
    assert "mappo" in sweep_run.leave_out_unusable(scored, told).losses.split(",") and not told.notes
    pairs = str(write_pairs(tmp_path / "pairs.jsonl", 6, scores=False))
    left = sweep_run.leave_out_unusable(SweepConfig(losses="all", data=pairs), told).losses.split(",")
    assert set(LOSSES) - set(left) == {"sft", "odpo", "mappo"}
    assert told.notes == [f"left out, as {pairs} has no scores of its pairs: odpo, mappo"]
    named = SweepConfig(losses="odpo", data=pairs)
    assert sweep_run.leave_out_unusable(named, told) is named, "one that is named is not left out but refused"


def test_a_grid_spans_options_and_beta_goes_to_losses_with_a_reference() -> None:
    grid = "dpop.lambda_dpop=5,50 simpo.beta=2,3 simpo.gamma-simpo=1"
    cells = plan_cells(SweepConfig(lambdas="", losses="dpop,orpo,cpo", grid=grid, beta=0.3), Path("s"))
    assert {cell.name: (cell.config.beta, cell.config.loss_options) for cell in cells} == {
        "dpop-lambda-dpop-5": (0.3, {"lambda_dpop": 5.0}),
        "dpop-lambda-dpop-50": (0.3, {"lambda_dpop": 50.0}),
        "orpo": (None, None),
        "cpo": (None, None),
        "simpo-beta-2-gamma-simpo-1": (2.0, {"gamma_simpo": 1.0}),
        "simpo-beta-3-gamma-simpo-1": (3.0, {"gamma_simpo": 1.0}),
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"losses": "dpoo"}, "unknown loss 'dpoo'. Did you mean 'dpo'"),
        ({"grid": "dpop"}, r"--grid: cannot be read; expected LOSS.OPTION=VALUE,VALUE"),
        (
            {"grid": "dpop.gamma=1"},
            r"--grid: loss 'dpop' has no option 'gamma'. It takes beta, lambda_dpop",
        ),
        ({"grid": "dpop.lambda_dpop=x"}, "--lambda-dpop: not a usable lambda_dpop"),
        ({"grid": "shift.lambda=0.5"}, "--grid: lambda has an axis of its own. Use --lambdas"),
        ({"grid": "ipo.lambda=0.5"}, "--grid: loss 'ipo' has no lambda"),
        ({"losses": "ipo,ipo"}, "asked for twice: ipo"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DpotoolError, match=message):
        plan_cells(SweepConfig(**settings), Path("s"))


def test_more_seeds_add_only_what_is_new_and_are_pooled(settings: dict[str, Any]) -> None:
    sweep(SweepConfig(**settings))
    more = sweep(SweepConfig(**settings, seeds=2))
    assert more.n_trained == 2 and len(more.table) == 4
    assert sorted(more.table["seed"]) == [42, 42, 43, 43]
    findings = find_out([str(more.folder)])
    [pooled] = findings.seeds
    assert (pooled.label, pooled.seeds) == ("DPO-Shift λ=0.5", [42, 43])
    assert findings.comparison.baseline.startswith("DPO (dpo")


def test_a_dry_run_counts_the_work_and_leaves_nothing(settings: dict[str, Any]) -> None:
    plan = plan_sweep(SweepConfig(**settings, seeds=2))
    assert [cell["steps"] for cell in plan.cells] == [2, 2, 2, 2], "14 pairs, 7 a step"
    assert (plan.n_train, plan.n_test, plan.n_open, plan.n_steps) == (14, 6, 4, 8)
    assert not Path(settings["output"]).exists()
    sweep(SweepConfig(**settings))
    later = plan_sweep(SweepConfig(**settings, seeds=2))
    assert (later.n_open, later.n_steps) == (2, 4)
    assert plan.seconds is None
    assert later.seconds == pytest.approx(4 * later.seconds_per_step) and later.seconds_per_step > 0


@pytest.mark.slow
def test_cells_trained_apart_are_the_same_runs(settings: dict[str, Any], tmp_path: Path) -> None:
    alone = sweep(SweepConfig(**settings))
    apart = sweep(SweepConfig(**{**settings, "output": str(tmp_path / "apart")}, jobs=2))
    assert apart.n_trained == 2 and not apart.failures
    assert apart.table["label"].tolist() == alone.table["label"].tolist()
    for name in ("chosen_logps", "reward_margins"):
        assert apart.table[name].tolist() == pytest.approx(alone.table[name].tolist(), rel=1e-4)
    assert len(expand_sweeps([str(apart.folder)])) == 3, "the sweep itself and its two runs"


def test_a_second_process_does_other_cells_and_waits_for_the_last(settings: dict[str, Any], tmp_path: Path) -> None:
    """The first cell is in another process's hands until the second one is done."""
    folder = Path(settings["output"])
    first, second = plan_cells(SweepConfig(**settings), folder)
    code = (
        "import sys, time, pathlib\nfrom dpotool.runs.locks import holding\nother = pathlib.Path(sys.argv[2])\n"
        "with holding(sys.argv[1], 'train'):\n    print(flush=True)\n"
        "    while not list(other.glob('scores/*.parquet')): time.sleep(0.05)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(first.folder.path), str(second.folder.path)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline()
    result = sweep(SweepConfig(**settings))
    assert process.wait(10) == 0
    assert result.n_trained == 2 and not result.failures
    assert RunFolder(folder).read_manifest()["status"] == "finished"


def test_a_link_in_the_place_of_records_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    folder, elsewhere = Path(settings["output"]), tmp_path / "elsewhere"
    elsewhere.mkdir()
    sweep(SweepConfig(**{**settings, "lambdas": "1.0"}))
    (folder / ".cells").symlink_to(elsewhere)
    with pytest.raises(DpotoolError, match=r"\.cells: is a link, and nothing is written through one"):
        sweep(SweepConfig(**settings, jobs=2))
    assert list(elsewhere.iterdir()) == []

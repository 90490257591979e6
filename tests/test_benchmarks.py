"""The benchmark of scoring and training does what it says: its methods agree, and its figures follow from its timings.

Rivals that are not installed are skipped; nothing is timed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import save_tiny_model, write_pairs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = (
    "harness",
    "workloads",
    "scoring_methods",
    "training_methods",
    "sweep_methods",
    "turns",
    "likelihood",
    "layouts",
    "floor",
    "generation",
    "device_models",
    "device_training",
    "device_memory",
    "device_parts",
    "device",
    "dry_run",
    "diagnose_cost",
    "filter_study",
)


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    """The benchmark's files, which are no package, as modules by name."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", None) and str(BENCHMARKS) in str(sys.modules[name].__file__):
                del sys.modules[name]


@pytest.fixture
def workload(bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DPOTOOL_CACHE", str(tmp_path / "cache"))
    model = save_tiny_model(tmp_path / "tiny")
    return bench["workloads"].Workload(str(model), str(write_pairs(tmp_path / "pairs.jsonl", 12)))


def need(method: str) -> None:
    package = {"TRL": "trl", "lm-eval": "lm_eval"}.get(method)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (make bench installs it apart)")


def test_generation_is_timed_on_the_same_tokens(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    """Both ways give the same tokens, and a row each; the speed of dpotool is 1 in its own row."""
    model, data = str(save_tiny_model(tmp_path / "tiny")), str(write_pairs(tmp_path / "pairs.jsonl", 12))
    ours, plain = bench["generation"].measure(model, data, "12", argparse.Namespace(max_new_tokens=8, rounds=1))
    assert ours["dpotool is faster by"] == 1 and plain["dpotool is faster by"] > 0
    assert plain["equal answers"] == "12 of 12"


def test_operations_by_hand(bench: dict[str, ModuleType], workload: Any) -> None:
    """Hidden 16, two heads of 8, one of them for keys, intermediate 32, two layers, vocabulary 259.

    A layer's linear weights: q 256 + k 128 + v 128 + o 256 + gate, up, down 3 * 512 = 2304. Prompt of 3, completions
    of 2 and 3 tokens: 3 + 1 + 2 tokens go through them, 5 through the output layer. Attended: prompt 1 + 2 + 3,
    completions 4 and 4 + 5.
    """
    from dpotool.data.pairs import TokenizedPair

    pair = TokenizedPair(0, (5, 6, 7), (8, 9), (10, 11, 12))
    model = bench["harness"].load_model(workload.model)
    linear, head, attention = 2 * 2 * 2304 * 6, 2 * 259 * 16 * 5, 2 * (2 * 2 * 16) * (6 + 4 + 9)
    assert bench["workloads"].count_operations(model, [pair]) == linear + head + attention
    packed = model.get_decoder().layers[0].mlp.up_proj
    packed.weight = torch.nn.Parameter(packed.weight.detach().view(-1, 1)[::2])  # as 4 bits are stored, two in one
    assert bench["workloads"].count_operations(model, [pair]) == linear + head + attention


@pytest.mark.parametrize("method", ["padded loop", "TRL", "lm-eval"])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_scores_agree(bench: dict[str, ModuleType], workload: Any, method: str, batch_size: int) -> None:
    need(method)
    tokenizer, pairs = bench["workloads"].load_pairs(workload)
    model = bench["harness"].load_model(workload.model)
    scorers = bench["scoring_methods"].SCORERS
    expected = scorers["dpotool"](model, tokenizer, pairs)(12, 0)
    got = scorers[method](model, tokenizer, pairs)(12, batch_size)
    assert expected.shape == (12, 2)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_trl_computes_anew_each_time(bench: dict[str, ModuleType], workload: Any) -> None:
    need("TRL")
    tokenizer, pairs = bench["workloads"].load_pairs(workload)
    model = bench["harness"].load_model(workload.model)
    score = bench["scoring_methods"].SCORERS["TRL"](model, tokenizer, pairs)
    before = score(4, 2)
    model.get_output_embeddings().weight.data.mul_(2)
    assert not np.allclose(score(4, 2), before, rtol=1e-3)


def test_losses_of_both_trainers_agree(
    bench: dict[str, ModuleType], workload: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights, pairs, order and optimiser; and training moves the loss by more than the difference."""
    need("TRL")
    monkeypatch.setattr(bench["training_methods"], "LEARNING_RATE", 1e-4)
    losses = {
        method: train_in_turns(bench, prepare(workload, str(tmp_path / method), batch_size=4, n_steps=3))
        for method, prepare in bench["training_methods"].TRAINERS.items()
    }
    assert len(losses["dpotool"]) == len(losses["TRL"]) == 3
    np.testing.assert_allclose(losses["dpotool"], losses["TRL"], atol=1e-5)
    assert abs(losses["dpotool"][-1] - np.log(2)) > 1e-4


def train_in_turns(bench: dict[str, ModuleType], trainer: Any) -> list[float]:
    requests: Iterator[dict[str, Any]] = iter([{}, {}, {}])
    answers: list[dict[str, Any]] = []
    bench["turns"].take_turns(trainer, lambda: next(requests, None), lambda **answer: answers.append(answer))
    assert answers[0] == {"ready": True}
    assert all(answer["seconds"] > 0 and answer["peak_mib"] > 0 for answer in answers[1:])
    return [answer["loss"] for answer in answers[1:]]


def test_sweep_reports_what_dpo_ended_with(
    bench: dict[str, ModuleType], workload: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench["sweep_methods"], "LAMBDAS", (0.9, 1.0))
    held_out = str(write_pairs(tmp_path / "held-out.jsonl", 4, seed=1))
    outcomes = {}
    for method, run in bench["sweep_methods"].SWEEPS.items():
        if method == "TRL" and importlib.util.find_spec("trl") is None:
            continue
        outcomes[method] = run(workload, held_out, tmp_path / method, batch_size=4, n_steps=1)
    assert all(outcome["runs"] == 2 for outcome in outcomes.values())
    for side in ("chosen", "rejected"):
        values = [outcome[side] for outcome in outcomes.values()]
        np.testing.assert_allclose(values, values[0], rtol=1e-5)


class FakeWorker:
    """Takes 2 seconds as dpotool, 6 and then 10 as TRL at batch size 1, and 1 second more at any other batch size."""

    def __init__(self, method: str, loss: float = 0.5) -> None:
        self.method, self.loss = method, loss
        self.sizes: list[int] = []

    def ask(self, **request: int) -> dict[str, Any]:
        if self.method == "matrix products":
            return {"square": 200.0, "layers": 100.0}
        self.sizes.append(request.get("batch_size", 1))
        seconds = 2.0 if self.method == "dpotool" else 6.0 + 4.0 * (len(self.sizes) > 4) + (self.sizes[-1] != 1)
        return {"seconds": seconds, "logps": [[-1.0, -2.0]], "peak_mib": 5.0, "operations": 80.0, "loss": self.loss}

    def read(self) -> dict[str, Any]:
        return {"absent": "lm_eval"} if self.method == "lm-eval" else {"ready": True}

    def close(self) -> None:
        pass


@pytest.fixture
def arguments(tmp_path: Path) -> argparse.Namespace:
    options = {"pairs": 12, "rounds": 2, "steps": None, "threads": 1}
    return argparse.Namespace(**options, rows=tmp_path / "rows.jsonl", model=None, data=tmp_path)


def make_cell(bench: dict[str, ModuleType], part: str, methods: tuple[str, ...], name: str = "scoring-x") -> Any:
    return bench["likelihood"].Cell(name, part, "TL;DR", methods, n_pairs=12, rounds=2, batch_size=4, tuning_pairs=4)


def test_scoring_rows_follow_from_timings(
    bench: dict[str, ModuleType],
    workload: Any,
    arguments: argparse.Namespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """TRL's two rounds take 6 and 10 s, dpotool's 2 each: ratios of 3 and 5. 80 operations in 2 s are 40 a second."""
    module = bench["likelihood"]
    monkeypatch.setattr(module, "Worker", lambda task, **_environment: FakeWorker(task["method"]))
    cell = make_cell(bench, "scoring", ("dpotool", "TRL", "lm-eval"))
    ours, trl = module.bench_scoring(cell, workload, arguments)
    assert "lm-eval is left out: lm_eval is not installed" in capsys.readouterr().out
    assert (ours["method"], ours["pairs/s"], ours[module.FASTER], ours["peak MiB"]) == ("dpotool", 6.0, 1.0, 5.0)
    assert ours["of square products"] == pytest.approx(0.2)
    assert ours["of the model's layers"] == pytest.approx(0.4)
    assert (trl["batch"], trl["pairs/s"], trl[module.FASTER]) == (1, 12 / 8.0, 4.0)


def test_shares_of_time_are_of_what_ran(bench: dict[str, ModuleType]) -> None:
    """Nothing but a product of large matrices, and then nothing but attention."""
    square = torch.randn(600, 600)
    heads = torch.randn(1, 4, 400, 32)
    attend = torch.nn.functional.scaled_dot_product_attention
    products, attention = (
        bench["floor"].measure_shares(work) for work in (lambda: square @ square, lambda: attend(heads, heads, heads))
    )
    assert products["linear layers"] > 0.5 and products["attention"] == 0
    assert attention["attention"] > 0.5 and attention["linear layers"] == 0
    assert sum(products.values()) == pytest.approx(1)


def test_values_that_differ_are_not_timed(bench: dict[str, ModuleType]) -> None:
    values = {"dpotool": np.array([[-100.0, -50.0]]), "TRL": np.array([[-100.0, -50.1]])}
    with pytest.raises(AssertionError, match="TRL"):
        bench["likelihood"].check_agreement(values)


def test_losses_that_differ_end_the_run(
    bench: dict[str, ModuleType], workload: Any, arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {"dpotool": 0.5, "TRL": 0.50002}
    monkeypatch.setattr(
        bench["likelihood"], "Worker", lambda task, **_: FakeWorker(task["method"], losses[task["method"]])
    )
    cell = make_cell(bench, "training", ("dpotool", "TRL"), "training-x")
    with pytest.raises(AssertionError, match="losses of step 1 differ"):
        list(bench["likelihood"].bench_training(cell, workload, arguments))
    losses["TRL"] = 0.500005
    ours, trl = bench["likelihood"].bench_training(cell, workload, arguments)
    assert (ours["steps"], ours["pairs/s"], trl[bench["likelihood"].FASTER]) == (3, 2.0, 3.0)


def test_cells_without_a_real_model_say_so(
    bench: dict[str, ModuleType], arguments: argparse.Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    real = [cell for cell in bench["likelihood"].CELLS if cell.data in ("TL;DR", "HH")]
    bench["likelihood"].bench_cells(arguments, real)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{cell.name} is left out: --model is not there" for cell in real]
    assert lines and not arguments.rows.exists()


def test_random_workload_is_made_of_known_words(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    workloads = bench["workloads"]
    model = workloads.write_random_model(tmp_path / "model")
    pairs = workloads.load_pairs(workloads.Workload(model, workloads.write_random_pairs(tmp_path / "pairs.jsonl", 4)))[
        1
    ]
    assert len(pairs) == 4
    for pair in pairs:
        assert 128 <= len(pair.prompt_ids) <= 512
        for ids in (pair.chosen_ids, pair.rejected_ids):
            assert 17 <= len(ids) <= 65 and ids[-1] == 1  # 16 to 64 words and <eos>
            assert min(ids[:-1]) >= 3  # none of them <unk>
    assert len({len(pair.prompt_ids) for pair in pairs}) > 1


def test_the_newest_row_counts(bench: dict[str, ModuleType], arguments: argparse.Namespace) -> None:
    for speed in (1.0, 2.0):
        bench["harness"].append_row(arguments.rows, {"cell": "scoring-hh", "method": "TRL", "pairs/s": speed})
    assert [json.loads(line)["pairs/s"] for line in arguments.rows.read_text().splitlines()] == [1.0, 2.0]
    (row,) = bench["harness"].read_newest_rows(arguments.rows, ("cell", "method"))
    assert row["pairs/s"] == 2.0


def test_the_gpu_benchmark_trains_both_alike(bench: dict[str, ModuleType]) -> None:
    """On a miniature: what `device.py` times are the same steps, and each leaves the model as it found it."""
    need("TRL")
    models, training = bench["device_models"], bench["device_training"]
    model = models.build_model("8B", torch.device("cpu"), is_small=True, dtype=torch.float32)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    setting = training.StepSetting(2, 2, is_mixed=False, recomputes=False)
    pairs = models.draw_pairs("HH", 4, model.config.vocab_size)
    tokenizer = bench["workloads"].build_tokenizer(64)
    bench["device_parts"].hash_no_weights()
    ours, theirs = (
        training.train_and_restore(train, model, tokenizer, pairs, setting).losses
        for train in (training.train_dpotool, training.train_trl)
    )
    assert ours == pytest.approx(theirs, abs=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_trainers_that_follow_each_other_on_one_model_all_train_in_mixed_precision(
    bench: dict[str, ModuleType],
) -> None:
    """accelerate marks a model that it has prepared, and prepares no marked one: the second would be in float32."""
    training, models = bench["device_training"], bench["device_models"]
    model = models.build_model("0.5B", torch.device("cpu"), is_small=True, dtype=torch.float32)
    pairs = models.draw_pairs("HH", 2, model.config.vocab_size)
    tokenizer = bench["workloads"].build_tokenizer(64)
    bench["device_parts"].hash_no_weights()
    types: list[torch.dtype] = []
    layer = next(module for name, module in model.named_modules() if name.endswith("up_proj"))
    layer.register_forward_hook(lambda _module, _inputs, output: types.append(output.dtype))
    setting = training.StepSetting(2, 1, is_mixed=True, recomputes=False)
    for train in (training.train_dpotool, training.train_trl, training.train_dpotool):
        training.train_and_restore(train, model, tokenizer, pairs, setting)
        assert types[-1] == torch.bfloat16, train.__name__


def test_the_gpu_benchmark_begins_with_what_was_not_measured(
    bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = bench["device"]
    monkeypatch.setattr(device, "ROWS", tmp_path / "known.jsonl")
    assert device.list_parts()[:3] == ["tests", "rates", "scoring 8B"]
    found = [{"part": "scoring 8B", "model": "8B"}, {"part": "attention", "left out": "no time"}]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    assert device.merge_rows(tmp_path / "new.jsonl") == found[:1]
    parts = device.list_parts()
    assert parts.index("attention") < parts.index("scoring 8B") < parts.index("study")


def test_what_is_left_out_is_compared_with_chance_pair_by_pair(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    """Against random the chosen answers gain 1 nat with one seed and 3 with the other, so 2 on average.

    Margins are 0.1 nats at random, and 0.15 and -0.05 under the measure: 0.05 less, and half of the pairs rank wrongly.
    """
    columns: dict[str, Any] = {"pair_id": [0, 1, 2, 3], "prompt_id": ["a", "b", "c", "d"]}
    for seed, gain in ((42, 1.0), (1, 3.0)):
        columns |= {f"random|{seed}|chosen": [-2.0] * 4, f"random|{seed}|rejected": [-3.0] * 4}
        measured = {"chosen": [-2.0 + gain] * 4, "rejected": [-3.5 + gain, -1.5 + gain] * 2}
        columns |= {f"driver_score|{seed}|{side}": values for side, values in measured.items()}
    pd.DataFrame(columns).to_csv(tmp_path / "filter-x.csv", index=False)
    rows = bench["filter_study"].tabulate(tmp_path / "filter-x.csv").splitlines()
    names = [name.strip() for name in rows[0].strip("|").split("|")]
    found = dict(zip(names, (cell.strip() for cell in rows[-1].strip("|").split("|")), strict=True))
    assert found["left out by"] == "driver score" and found["by seed"] == "+1.00, +3.00"
    assert found["chosen against random"].startswith("+2.00 [")
    assert found["reward margin against random"].startswith("-0.050 [")
    assert found["accuracy against random, points"].startswith("-50.0 [")

"""Weights spread over two processes (`fully_shard`, gloo) give the numbers of the whole model, and nobody hangs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import make_pairs
from forks import run_launcher
from model_families import build_family

from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.likelihood.processes import is_routed, route_forward, score_tokens
from dpotool.models.loading import resolve_device


@pytest.fixture(scope="module")
def left_by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the two processes of `sharded_worker.py` wrote and said."""
    folder = tmp_path_factory.mktemp("unequal")
    words = ["--standalone", "--nnodes=1", "--nproc-per-node=2"]
    words += [str(Path(__file__).with_name("sharded_worker.py")), str(folder)]
    return folder, run_launcher("torch.distributed.run", words, folder / "said", OMP_NUM_THREADS="1")


@pytest.mark.distributed
@pytest.mark.slow
def test_scores_and_gradients_of_sharded_weights_are_those_of_the_whole_model(left_by_two: tuple[Path, str]) -> None:
    assert left_by_two[1].count("all equal") == 2


@pytest.mark.distributed
@pytest.mark.slow
def test_processes_of_unequal_memory_make_one_plan(left_by_two: tuple[Path, str]) -> None:
    """By itself the first would take all twelve pairs as one batch; the second sixty tokens at a time."""
    expected = compute_pair_logps(build_family("llama"), make_pairs(12), batch_tokens=1)
    for rank in range(2):
        got = np.load(left_by_two[0] / f"{rank}.npz")
        np.testing.assert_allclose(got["scored"], expected.chosen, rtol=1e-12)
        np.testing.assert_allclose(got["products"], expected.chosen, rtol=1e-12)


def test_sharded_weights_that_nobody_prepared_are_refused() -> None:
    import torch

    from dpotool.likelihood.batch import collate_pairs

    model = build_family("llama")
    next(model.parameters()).ds_id = 0  # as DeepSpeed's stage 3 marks them
    batch = collate_pairs(make_pairs(2))
    with pytest.raises(RuntimeError, match="route_forward"):
        score_tokens(model, batch)
    route_forward(model)
    assert is_routed(model)
    torch.testing.assert_close(score_tokens(model, batch), score_tokens(build_family("llama"), batch), rtol=0, atol=0)


def test_each_process_of_a_machine_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # there is none to try
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [str(resolve_device(name)) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:3",
        "cuda:3",
        "cuda:1",
        "cpu",
    ]
    monkeypatch.delenv("LOCAL_RANK")
    assert str(resolve_device("auto")) == "cuda"


def test_a_launcher_that_wants_deepspeed_is_answered_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate raises so where the package is missing."""
    from dpotool.errors import DpotoolError
    from dpotool.models import loading

    def refuse(**_: object) -> None:
        raise ImportError("DeepSpeed is not available => install it")

    assert loading.join_processes("cpu") == 1
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(loading, "PartialState", refuse)
    with pytest.raises(DpotoolError, match=r"launcher's configuration: DeepSpeed is not available .*fsdp2\.yaml"):
        loading.join_processes("cpu")


CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_examples(path: Path) -> None:
    """Where there is no GPU this is all that can be said of most of them."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes > 1
    assert path.name in path.read_text(encoding="utf-8"), "its first lines say how it is used"

"""Fixtures shared by the whole suite: everything offline, on the CPU, with caches of their own."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import functools
import gc
import itertools
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dpotool.data.pairs import TokenizedPair
from dpotool.models.precision import use_fast_float32_on_cpu
from dpotool.runs import manifest
from dpotool.training.demo import ensure_demo_model

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in its background deaf to Ctrl-C, and the commands that tests start and interrupt would
    # inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What collecting imports stays: half a million objects, which garbage collection need not go through again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders by number; `mktemp` would look through those of all tests before it for a number that is free."""
    root = tmp_path_factory.mktemp("caches")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_cache(caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache."""
    cache = next(caches)
    cache.mkdir()
    monkeypatch.setenv("DPOTOOL_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session", autouse=True)
def one_look_at_git() -> Iterator[None]:
    """Every manifest says which commit its folder is at: git is asked once for a folder, and not by each of 1,500."""
    read = functools.cache(manifest.read_git_sha)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "read_git_sha", lambda folder=".": read(Path(folder).resolve()))
        yield


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, made once however many processes share the tests out."""
    own = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPOTOOL_CACHE", str((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "demo-model"))
        return ensure_demo_model()


@pytest.fixture(autouse=True)
def same_arithmetic() -> Iterator[None]:
    """Loading a model may choose torch's float32 library for the whole process; no test leaves that to the next one."""
    kept = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(kept)
    use_fast_float32_on_cpu.cache_clear()


def make_pairs(n: int, *, vocab_size: int = 97, seed: int = 0, longest: int = 12) -> list[TokenizedPair]:
    """Random pairs of uneven lengths; token 2 closes every completion."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, vocab_size) for _ in range(draw.randint(low, high)))

    return [
        TokenizedPair(index, (1, *ids(1, longest)), (*ids(1, longest), 2), (*ids(1, longest), 2), 2.0, 1.0)
        for index in range(n)
    ]

"""What the benchmarks share: the random model, peak memory, the machine's name, rows that outlive an interruption."""

from __future__ import annotations

import ctypes
import gc
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

RANDOM = "random-17M"
DOCS = Path(__file__).parent.parent / "docs" / "performance.md"
Row = dict[str, object]


def load_model(name: str) -> nn.Module:
    """Returns a checkpoint in float32, or the random Llama of 17M parameters."""
    if name != RANDOM:
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    return build_random_model()


def build_random_model() -> LlamaForCausalLM:
    """A Llama of 17M parameters, the same one every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def name_of(model: str) -> str:
    """The last part of a checkpoint's path."""
    return model.rstrip("/").split("/")[-1]


class PeakMemory:
    """The peak of this process's resident memory above what was resident when this was made (Linux)."""

    def __init__(self) -> None:
        release_memory()
        self._before = _read_status("VmRSS")

    def restart(self) -> None:
        """Sets the peak back to what is resident now."""
        release_memory()
        Path("/proc/self/clear_refs").write_text("5")

    def read_mib(self) -> float:
        return (_read_status("VmHWM") - self._before) / 1024


def release_memory() -> None:
    """Hands back to the system what was freed; glibc would keep some of it, and it would count as used."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _read_status(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Writes a row at once: a benchmark that is cut short has not run in vain."""
    print(json.dumps(row), flush=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_newest_rows(path: Path, key: Sequence[str]) -> list[Row]:
    """Returns the newest row of each combination of the key's columns; none where nothing was measured."""
    newest: dict[tuple[object, ...], Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        row = json.loads(line)
        newest[tuple(row.get(column) for column in key)] = row
    return list(newest.values())


def describe_machine() -> str:
    """Names processor and versions, as far as the system tells."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"{models[0] if models else platform.processor()}, {len(models)} cores, {versions}"

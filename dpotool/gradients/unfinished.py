"""Saves the partial sums of mean gradients at intervals, so that a run that is cut off can continue.

A state is as large as the selected weights in float32. It is written completely or not at all, at most once a minute,
so rarely that saving takes a twentieth of the time at most, and only if the disk has room for two of them. A resumed
pass goes on at the next batch, and its sums equal those of an uninterrupted pass bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dpotool.progress import SILENT, Progress
from dpotool.runs.atomic import atomic_path
from dpotool.wording import count

SECONDS_BETWEEN_SAVES = 60.0
LARGEST_SHARE = 0.05
"""The largest share of the time that saving may take."""
_BYTES_PER_SECOND = 2e8
"""Speed of writing that is assumed until a save has been timed."""
_NAMES = {torch.float32: "F32", torch.float64: "F64"}


class UnfinishedPasses:
    """The states of one run's passes, numbered as they begin. Each process saves its part, and no sharded weights.

    Args:
        folder: where the states are saved; `clear` removes it.
        identity: what all passes depend on: the model's weights, their type, and which of them count.
    """

    def __init__(self, folder: Path, identity: str, progress: Progress = SILENT) -> None:
        self.folder = folder
        self.progress = progress
        self._identity = f"{identity}|{torch.__version__}|{PartialState().num_processes}"
        self._number = 0
        self._key = ""
        self._saved_at = time.monotonic()
        self._seconds_of_a_save: float | None = None
        self._has_told = False

    def begin(self, work: Sequence[object], total: dict[str, Tensor]) -> int:
        """Begins the next pass; returns how many of its batches `total` holds now, from an interrupted run.

        Args:
            work: the pass's rows and batches. A state of other work is not used, and a warning says so.
            total: the sums, zero by now.
        """
        self._number += 1
        self._key = hashlib.sha256(f"{self._identity}|{work!r}".encode()).hexdigest()
        path = self._path
        if not path.is_file():
            return 0
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("key") != self._key:
                    self.progress.note(f"{path}: of other weights, pairs or settings, so these gradients begin anew")
                    return 0
                for name, tensor in total.items():
                    tensor.copy_(file.get_tensor(name))
        except (SafetensorError, OSError) as error:
            self.progress.warn(f"{path}: damaged, so these gradients begin anew ({error})")
            for tensor in total.values():
                tensor.zero_()
            return 0
        n_done = int(about["done"])
        summed = count(n_done, "batch was", "batches were")
        self.progress.note(f"mean gradients, pass {self._number}: {summed} summed up before")
        return n_done

    def offer(self, done: int, total: dict[str, Tensor]) -> None:
        """Saves the sums after so many batches, if it is time."""
        n_bytes = count_bytes(total)
        if time.monotonic() - self._saved_at < seconds_between_saves(n_bytes, self._seconds_of_a_save):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.folder).free < 2 * n_bytes:
            if not self._has_told:
                self.progress.warn(f"{self.folder}: no room to save mean gradients; an interruption would lose them")
            self._has_told = True
            return
        start = time.monotonic()
        _write(self._path, total, {"key": self._key, "done": str(done)})
        self._saved_at = time.monotonic()
        self._seconds_of_a_save = self._saved_at - start

    def clear(self) -> None:
        """Removes all states: what they were for is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _path(self) -> Path:
        return self.folder / f"pass-{self._number}-process-{PartialState().process_index}.safetensors"


def seconds_between_saves(n_bytes: int, seconds_of_a_save: float | None = None) -> float:
    """Returns how long a pass goes on before it saves a state of this size; a save's time is expected if unknown."""
    return max(SECONDS_BETWEEN_SAVES, (seconds_of_a_save or n_bytes / _BYTES_PER_SECOND) / LARGEST_SHARE)


def count_bytes(total: dict[str, Tensor]) -> int:
    """Returns the size of one state."""
    return sum(tensor.numel() * tensor.element_size() for tensor in total.values())


def _write(path: Path, total: dict[str, Tensor], about: dict[str, str]) -> None:
    """Writes a safetensors file tensor by tensor: the library's own writer would hold all of them twice."""
    header: dict[str, object] = {"__metadata__": about}
    end = 0
    for name, tensor in total.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in total.values():
            file.write(tensor.detach().cpu().contiguous().numpy().data)

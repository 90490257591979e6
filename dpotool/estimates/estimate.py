"""What scoring would take: pairs, tokens, hits in the store, and time and memory as a short probe measures them."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # comes with accelerate
import torch

from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.budget import resolve_batch_tokens
from dpotool.likelihood.scorer import Scorer

PROBED_BATCHES = 5
PROBE_SECONDS = 30.0
"""No new batch is begun after this long."""
_NO_LIMIT = 10**12


@dataclass(slots=True)
class Estimate:
    """What a command would do, as `--dry-run` prints it."""

    command: str
    n_pairs: dict[str, int] = field(default_factory=dict)
    """By set: test, train, ..."""
    n_tokens: int = 0
    """Of prompts and completions, a prompt counted for each of its two."""
    n_padded_tokens: int = 0
    """Padded tokens of the batches that are still to run."""
    n_cached: dict[str, int] = field(default_factory=dict)
    """By model: pairs that are in the store."""
    batch_tokens: int = 0
    """Budget of a batch; 0 where there is nothing to run."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage; a stage that was not measured is not there."""
    peak_bytes: int = 0
    card_bytes: int = 0
    """What a GPU would need by the formula of `dpotool.likelihood.memory`; 0 where it has no answer."""
    probe: list[str] = field(default_factory=list)
    """What the figures rest on, and what they leave out."""
    probe_seconds: float = 0.0
    """What measuring took while things were still being loaded."""

    def add_scoring(
        self, name: str, scorer: Scorer, pairs: Sequence[TokenizedPair], missing: Sequence[TokenizedPair]
    ) -> ScoringCost | None:
        """Adds the scoring of what the store lacks of these pairs under one model; None where it lacks nothing."""
        self.n_cached[name] = len(pairs) - len(missing)
        if not missing:
            return None
        cost = estimate_scoring(scorer, missing)
        self.seconds[name] = cost.seconds
        return cost

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "dry_run": self.command,
            "n_pairs": self.n_pairs,
            "n_tokens": self.n_tokens,
            "n_padded_tokens": self.n_padded_tokens,
            "n_cached": self.n_cached,
            "batch_tokens": self.batch_tokens,
            "seconds": {**self.seconds, "total": self.total_seconds},
            "peak_bytes": self.peak_bytes,
            "card_bytes": self.card_bytes or None,
            "probe": self.probe,
        }


@dataclass(frozen=True, slots=True)
class ScoringCost:
    """What scoring some pairs under one model would take."""

    n_tokens: int
    n_padded_tokens: int
    batch_tokens: int
    seconds: float
    n_probed: int
    """Batches that were run to measure it."""
    n_batches: int


def estimate_scoring(scorer: Scorer, pairs: Sequence[TokenizedPair]) -> ScoringCost:
    """Estimates the scoring of pairs from a few of its batches: the largest one, and others spread over the work.

    The batches are cut into strata of equal padded tokens, longest pairs first; one batch of each is timed and
    represents its stratum. A first, untimed batch lets caches and kernels warm up.
    """
    budget = resolve_batch_tokens(scorer.batch_tokens, scorer.model)
    rows = scorer.rows
    batches = rows.plan(pairs, budget)
    padded = [rows.collate([pairs[place] for place in batch]).input_ids.numel() for batch in batches]

    def run(number: int) -> None:
        scorer.compute([pairs[place] for place in batches[number]], batch_tokens=_NO_LIMIT)

    seconds, n_probed = time_strata(padded, run)
    return ScoringCost(count_tokens(pairs), sum(padded), budget, seconds, n_probed, len(batches))


def time_strata(work: Sequence[float], run: Callable[[int], None]) -> tuple[float, int]:
    """Estimates the seconds that all items take from a few of them; returns also how many were timed.

    Args:
        work: size of each item, such as padded tokens; time is taken to be proportional to it within a stratum.
        run: runs the item with this number.
    """
    if not work:
        return 0.0, 0
    strata = cut_strata(work, PROBED_BATCHES)
    run(len(work) - 1)
    began = time.perf_counter()
    rates: list[float | None] = []
    for stratum in strata:
        if rates and time.perf_counter() - began > PROBE_SECONDS:
            rates.append(None)
            continue
        # the first stratum by its first item, the largest of all, whose memory is the peak
        number = stratum[0] if not rates else stratum[len(stratum) // 2]
        start = time.perf_counter()
        run(number)
        rates.append((time.perf_counter() - start) / work[number])
    known = [rate for rate in rates if rate is not None]
    mean = sum(known) / len(known)
    seconds = sum(
        (mean if rate is None else rate) * sum(work[number] for number in stratum)
        for rate, stratum in zip(rates, strata, strict=True)
    )
    return seconds, len(known)


def cut_strata(work: Sequence[float], n_strata: int) -> list[list[int]]:
    """Cuts a list into at most so many runs of about equal work; none is empty."""
    total, done = sum(work), 0.0
    strata: list[list[int]] = [[] for _ in range(n_strata)]
    for number, size in enumerate(work):
        strata[min(n_strata - 1, int(n_strata * (done + size / 2) / total))].append(number)
        done += size
    return [stratum for stratum in strata if stratum]


def count_tokens(pairs: Sequence[TokenizedPair]) -> int:
    """Returns the tokens of both sequences of every pair."""
    return sum(2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)


def measure_peak_bytes(device: torch.device) -> int:
    """Returns the peak memory of this process in bytes: on the accelerator, or else on the host.

    Since it began, or since `reset_peak_bytes`.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else 1024 * peak)


def reset_peak_bytes(device: torch.device) -> bool:
    """Resets the peak to the memory in use now; returns False if the system cannot do that."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark of resident memory
    except OSError:
        return False
    return True


def seconds_since_start() -> float:
    """Returns how long this process has been running: what imports and loading took, where nothing else was done."""
    return max(0.0, time.time() - float(psutil.Process().create_time()))

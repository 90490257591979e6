"""Renders conversations by a tokenizer's chat template: a program that came with a model, so it gets a fixed date
stands still, and bounds of time and memory.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from dpotool.errors import DpotoolError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FROZEN_DATE = datetime(2024, 7, 26, 12)  # a clock on a template's wall
"""The day that chat templates print, which is the default of Llama 3.1's template. The same for every run, so that
scores do not change from day to day, nor between policy and reference."""
MAX_SECONDS = 10.0
"""Of processor time for one rendering; templates in use take milliseconds."""
MAX_BYTES = 2**30


class _TookTooLongError(Exception):
    """Raised in the middle of a rendering."""


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Any],
    template_kwargs: Mapping[str, Any] | None = None,
    *,
    add_generation_prompt: bool = False,
    now: datetime = FROZEN_DATE,
) -> str:
    """Returns a conversation as the model reads it.

    Raises:
        DpotoolError: the template does not end in time, or its text grows too large.
        Exception: whatever else code in a template can raise.
    """
    try:
        with _clock_at(now), _bounded():
            rendered: Any = tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **(template_kwargs or {})
            )
    except _TookTooLongError:
        raise _runaway(tokenizer, f"had not ended after {MAX_SECONDS:g} s") from None
    except (MemoryError, OverflowError):
        raise _runaway(tokenizer, f"asked for more than {MAX_BYTES // 2**20} MiB of memory") from None
    return str(rendered)


def _runaway(tokenizer: PreTrainedTokenizerBase, what: str) -> DpotoolError:
    return DpotoolError(
        f"its chat template {what} on one conversation",
        where=tokenizer.name_or_path or "the tokenizer",
        remedy="Look into chat_template.jinja, or chat_template in tokenizer_config.json",
    )


@contextmanager
def _bounded() -> Iterator[None]:
    """Bounds the memory of what runs inside, and, in the main thread, its time: elsewhere no signal can end it."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _TookTooLongError

    kept_limits = resource.getrlimit(resource.RLIMIT_AS)
    kept_handler = None
    try:
        with suppress(ValueError):
            kept_handler = signal.signal(signal.SIGPROF, stop)
            signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
        with suppress(OSError, ValueError):  # no /proc, or less than that is left to this process anyway
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            bound = pages * resource.getpagesize() + MAX_BYTES
            if kept_limits[0] == resource.RLIM_INFINITY or bound < kept_limits[0]:
                resource.setrlimit(resource.RLIMIT_AS, (bound, kept_limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, kept_limits)
        if kept_handler is not None:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, kept_handler)


@contextmanager
def _clock_at(now: datetime) -> Iterator[None]:
    """Fixes the date that transformers gives to chat templates, as there is no setting for it."""
    from transformers.utils import chat_template_utils

    clock: Any = chat_template_utils
    kept = clock.datetime
    clock.datetime = SimpleNamespace(now=lambda: now)
    try:
        yield
    finally:
        clock.datetime = kept

"""Chat templates are programs of others: theirs is neither all the time nor all the memory, and no clock."""

from __future__ import annotations

import resource
import signal
import threading
from datetime import datetime

import pytest
from tiny_models import build_byte_tokenizer

from dpotool.data import templates
from dpotool.data.encoding import PairEncoder
from dpotool.data.pairs import PreferencePair
from dpotool.data.templates import render_chat
from dpotool.errors import DpotoolError

MESSAGES = [{"role": "user", "content": "hi"}]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = (
    "{% set ns = namespace(x='xxxxxxxx') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LOOP, r"its chat template had not ended after 0\.2 s on one conversation"),
        (DOUBLING, "its chat template asked for more than 1024 MiB of memory"),
        ("{% set n = 10 ** 11 %}{{ 'a' * (n + messages | length) }}", "asked for more than 1024 MiB"),
        ("{{ 'a'.ljust(10 ** 30) }}", "asked for more than 1024 MiB"),
    ],
)
def test_a_template_without_an_end_is_ended(template: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_SECONDS", 0.2 if template == LOOP else 30.0)
    limits, handler = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)
    tokenizer = build_byte_tokenizer(chat_template=template)
    with pytest.raises(DpotoolError, match=said):  # it ends the command: this is no row to leave out and go on
        PairEncoder(tokenizer).encode([PreferencePair(0, MESSAGES, MESSAGES, MESSAGES)])
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert signal.getsignal(signal.SIGPROF) == handler
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)


def test_an_ordinary_template_is_not_touched_whichever_thread_it_runs_in() -> None:
    tokenizer = build_byte_tokenizer()
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    found = [render_chat(tokenizer, MESSAGES, add_generation_prompt=True)]
    thread = threading.Thread(target=lambda: found.append(render_chat(tokenizer, MESSAGES, add_generation_prompt=True)))
    thread.start()
    thread.join()
    assert found == [expected, expected]


def test_the_clock_stands_still() -> None:
    tokenizer = build_byte_tokenizer(chat_template="{{ strftime_now('%Y-%m-%d') }}")
    assert render_chat(tokenizer, MESSAGES) == "2024-07-26"
    assert render_chat(tokenizer, MESSAGES, now=datetime(2031, 1, 2)) == "2031-01-02"

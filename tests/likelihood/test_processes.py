"""What several processes computed is brought together whole, or not at all."""

from __future__ import annotations

import pytest

from dpotool.likelihood import processes
from dpotool.likelihood.processes import gather_shares


def gather_with(monkeypatch: pytest.MonkeyPatch, other: dict[int, str]) -> None:
    """Lets a second process have finished something."""
    monkeypatch.setattr(processes, "PartialState", lambda: type("State", (), {"num_processes": 2}))
    monkeypatch.setattr(processes, "gather_object", lambda own: [*own, *other.items()])


def test_places_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    gather_with(monkeypatch, {3: "d", 1: "b"})
    assert list(gather_shares({2: "c", 0: "a"}, 4).items()) == list(enumerate("abcd"))


@pytest.mark.parametrize("other", [{1: "b"}, {1: "b", 2: "c", 3: "d"}], ids=["one missing", "one twice"])
def test_unlike_plans_make_no_shorter_table(monkeypatch: pytest.MonkeyPatch, other: dict[int, str]) -> None:
    """Processes that planned other batches, of four pairs."""
    gather_with(monkeypatch, other)
    with pytest.raises(RuntimeError, match=rf"each of 4 pairs computed exactly once, got {2 + len(other)} results"):
        gather_shares({2: "c", 0: "a"}, 4)


def test_an_interruption_may_leave_some_out() -> None:
    assert list(gather_shares({2: "c", 0: "a"}, None)) == [0, 2]

"""A path is told from a hub id, and a hub that does not answer is asked once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from dpotool import hub
from dpotool.errors import DpotoolError

REACH_HUB = hub.reach_hub  # some tests put another in its place


@pytest.fixture(autouse=True)
def in_a_folder_with_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("mine/first").mkdir(parents=True)
    Path("mine/first/run.yaml").touch()
    Path("Qwen").mkdir()
    REACH_HUB.cache_clear()
    yield
    REACH_HUB.cache_clear()


@pytest.mark.parametrize(
    "name", ["runs/typo", "./typo", "/typo", "~/typo", "a/b/c", "mine/frist", "mine/first/checkpoint-9", "a b", "x:y"]
)
def test_what_can_only_be_a_path_is_refused_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reach_hub", lambda: pytest.fail("the hub was asked"))
    with pytest.raises(DpotoolError, match=r"no such folder\. Check the path; a model on the hub is ORG/NAME"):
        hub.check_name(name)


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "org/model"])
def test_what_may_be_a_hub_id_is_one(name: str) -> None:
    assert not hub.is_meant_as_path(name)


def test_a_folder_that_is_here_needs_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hub, "reach_hub", lambda: bool(asked.append("hub")) or True)
    hub.check_name("Qwen")
    assert asked == []
    hub.check_name("org/model")
    assert asked == ["hub"], "a name that is no folder here is looked for there"


def test_a_hub_that_does_not_answer_is_asked_once_and_set_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Unreachable:
        def head(self, url: str, *, timeout: float) -> None:
            assert timeout < 10
            asked.append(url)
            raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.utils.get_session", Unreachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert not hub.reach_hub() and not hub.reach_hub()
    assert asked == [constants.ENDPOINT]
    assert constants.HF_HUB_OFFLINE

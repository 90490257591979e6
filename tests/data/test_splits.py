"""Which split is read, and how a test split is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpotool.data.splits import check_fraction, choose_split, choose_split_to_cut, cut_test, name_lone_split
from dpotool.errors import DpotoolError

ULTRAFEEDBACK = ("train_prefs", "train_sft", "test_prefs", "test_sft", "train_gen", "test_gen")


@pytest.mark.parametrize(
    ("stem", "split"),
    [("tldr_test", "test"), ("hh-train", "train"), ("validation", "validation"), ("pairs", "all"), ("contest", "all")],
)
def test_a_file_is_named_by_its_stem(stem: str, split: str) -> None:
    assert name_lone_split(stem) == split


@pytest.mark.parametrize(
    ("available", "asked", "default", "chosen"),
    [
        (("train", "test"), None, "test", "test"),
        (("train", "test"), None, "train", "train"),
        (("train", "test"), "train", "test", "train"),
        (("train", "validation"), None, "test", "validation"),
        (("train",), None, "test", "train"),
        (("all",), None, "train", "all"),
        (("all",), "all", "test", "all"),
        (("all",), "train", "test", "all"),
        (("test",), "all", "test", "test"),
        (ULTRAFEEDBACK, None, "test", "test_prefs"),
        (ULTRAFEEDBACK, "train", "test", "train_prefs"),
        (ULTRAFEEDBACK, "test_sft", "test", "test_sft"),
        (("train_1", "eval_1"), "eval", "test", "eval_1"),
    ],
)
def test_choose_split(available: tuple[str, ...], asked: str | None, default: str, chosen: str) -> None:
    assert choose_split(available, asked, default, "pairs") == chosen


@pytest.mark.parametrize(
    ("available", "asked", "message"),
    [
        (("all",), "test", r"no split 'test'; got the split all.*--test-fraction 0.05 to cut"),
        (("train",), "test", r"no split 'test'; got the split train.*--test-fraction"),
        (("test",), "train", r"no split 'train'; got the split test. Leave --split out to read all of it$"),
        (("train", "test"), "dev", r"no split 'dev'; got the splits train, test. Pass --split with one of them$"),
        (("a_1", "a_2"), "a", r"2 splits begin with 'a'; got the splits a_1, a_2"),
        (("harmless", "helpful"), None, r"no split 'test'; got the splits harmless, helpful"),
    ],
)
def test_a_split_that_is_not_there(available: tuple[str, ...], asked: str | None, message: str) -> None:
    with pytest.raises(DpotoolError, match=message):
        choose_split(available, asked, "test", "pairs")


def test_what_has_a_test_split_is_not_cut() -> None:
    with pytest.raises(DpotoolError, match=r"has a test split of its own; got the splits train, test"):
        choose_split_to_cut(("train", "test"), "pairs")
    assert choose_split_to_cut(("train",), "pairs") == "train"
    assert choose_split_to_cut(("test",), "pairs") == "test"


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 5])
def test_a_fraction_must_lie_between_0_and_1(fraction: float) -> None:
    with pytest.raises(DpotoolError, match="--test-fraction is out of range; expected above 0 and below 1"):
        check_fraction(fraction)


def test_the_cut_has_the_asked_size_and_repeats_with_its_seed() -> None:
    groups = [f"prompt {n}" for n in range(1000)]
    cut = cut_test(groups, 0.05, 42, "pairs")
    assert sum(cut) == 50
    assert cut == cut_test(groups, 0.05, 42, "pairs")
    assert cut != cut_test(groups, 0.05, 43, "pairs")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=50), st.floats(0.01, 0.6), st.integers(0, 5))
def test_equal_groups_fall_on_one_side_whatever_their_order(groups: list[int], fraction: float, seed: int) -> None:
    groups = [*groups, 10, 11, 12]  # so that three rows at least differ
    try:
        cut = cut_test(groups, fraction, seed, "pairs")
    except DpotoolError as error:
        assert "leaves nothing to train on" in str(error)  # noqa: PT017
        return
    test = {group for group, is_test in zip(groups, cut, strict=True) if is_test}
    train = {group for group, is_test in zip(groups, cut, strict=True) if not is_test}
    assert test
    assert train
    assert not test & train
    assert cut_test(groups[::-1], fraction, seed, "pairs") == cut[::-1]


def test_one_prompt_cannot_be_cut() -> None:
    with pytest.raises(DpotoolError, match=r"--test-fraction 0.5 leaves nothing to train on; got 1 different prompt"):
        cut_test(["same"] * 10, 0.5, 42, "pairs")

"""Which split of a source is read, and how one is cut where the source has none.

`--split` takes a split's name, or its beginning where only one split (or only its `_prefs` form, as in
UltraFeedback-binarized) begins so: `test` finds `test_prefs`. A single file has one split: `train`, `validation` or
`test` if its name says so (tldr_test.jsonl), otherwise `all`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Sequence

from dpotool.errors import DpotoolError
from dpotool.wording import count

LONE_SPLIT = "all"

_TEST_NAMES = ("test", "validation", "valid", "eval", "dev")
SHARD = re.compile(r"[-_.]?\d{2,}-of-\d{2,}$")
"""What the hub puts behind the name of one file of several."""
_NAMED_SPLIT = re.compile(r"(?:^|[^a-zA-Z])(train|validation|test)$")


def name_lone_split(stem: str) -> str:
    """Returns the split that a file's name says it is, or 'all'."""
    found = _NAMED_SPLIT.search(SHARD.sub("", stem.lower()))
    return found.group(1) if found else LONE_SPLIT


def choose_split(available: Sequence[str], asked: str | None, default: str, data: str) -> str:
    """Returns the name of the split to read: the user's, else the default or its substitute, else the only one.

    Args:
        asked: the user's `--split`, or None.
        default: 'test' for scoring (or else a validation split), 'train' for training.

    Raises:
        DpotoolError: no split matches the name, or several do.
    """
    if asked is None and len(available) == 1:
        return available[0]
    names = (asked,) if asked is not None else _TEST_NAMES if default == "test" else (default,)
    for name in names:
        if found := _match_split(available, name):
            return found
    raise _unknown_split(available, asked or default, data)


def _match_split(available: Sequence[str], asked: str) -> str | None:
    if len(available) == 1 and (asked == LONE_SPLIT or (asked == "train" and available[0] == LONE_SPLIT)):
        return available[0]  # `datasets` calls the one split of a file 'train': so may the user
    for exact in (asked, f"{asked}_prefs"):
        if exact in available:
            return exact
    beginning = [name for name in available if name.startswith(asked)]
    return beginning[0] if len(beginning) == 1 else None


def _unknown_split(available: Sequence[str], asked: str, data: str) -> DpotoolError:
    several = [name for name in available if name.startswith(asked)]
    remedy = "Pass --split with one of them" if len(available) > 1 else "Leave --split out to read all of it"
    if is_test_name(asked) and not any(is_test_name(name) for name in available):
        remedy += ", or pass --test-fraction 0.05 to cut it into train and test"
    return DpotoolError(
        f"{count(len(several), 'split begins', 'splits begin')} with {asked!r}" if several else f"no split {asked!r}",
        where=data,
        got=f"the split{'s' if len(available) > 1 else ''} {', '.join(available)}",
        remedy=remedy,
    )


def is_test_name(split: str) -> bool:
    """True for test, test_prefs, validation and the like."""
    return split.startswith(_TEST_NAMES)


def choose_split_to_cut(available: Sequence[str], data: str) -> str:
    """Returns the split that `--test-fraction` cuts: the only one, or `train`.

    Raises:
        DpotoolError: the source already has a test split.
    """
    if len(available) > 1 and any(is_test_name(name) for name in available):
        raise DpotoolError(
            "has a test split of its own",
            where=data,
            got=f"the splits {', '.join(available)}",
            remedy="Leave --test-fraction out",
        )
    return choose_split(available, None, "train", data)


def check_fraction(fraction: float) -> None:
    """Raises a `DpotoolError` for a fraction that leaves one part empty."""
    if not 0 < fraction < 1:
        raise DpotoolError("--test-fraction is out of range", expected="above 0 and below 1", got=str(fraction))


def cut_test(groups: Sequence[Hashable], fraction: float, seed: int, data: str) -> list[bool]:
    """Returns for each row whether it falls into the test part of a cut.

    Rows with equal group (their prompt) fall on the same side, so that no test prompt was trained on. Groups are taken
    in the order of a hash of seed and group until the test part has at least `fraction` of the rows (at least one row),
    so the cut depends on nothing but the rows and the seed, not on their order.

    Raises:
        DpotoolError: the cut leaves nothing to train on.
    """
    sizes: dict[Hashable, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    target, n_test, test_groups = max(1, round(fraction * len(groups))), 0, set()
    for group in sorted(sizes, key=lambda group: _hash_group(seed, group)):
        if n_test >= target:
            break
        test_groups.add(group)
        n_test += sizes[group]
    if len(test_groups) == len(sizes):
        raise DpotoolError(
            f"--test-fraction {fraction} leaves nothing to train on",
            where=data,
            got=f"{count(len(sizes), 'different prompt')}",
            remedy="Lower it, or name other pairs with --eval-data",
        )
    return [group in test_groups for group in groups]


def _hash_group(seed: int, group: Hashable) -> bytes:
    return hashlib.sha256(f"{seed}\0{group}".encode()).digest()

"""`dpotool cache ls|verify|clear`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import typer

from dpotool.cli.console import Console, format_bytes
from dpotool.cli.verbs import add_verb
from dpotool.errors import DpotoolError
from dpotool.settings.reading import CacheClearConfig, CacheListConfig, CacheVerifyConfig
from dpotool.settings.shared import SubjectSettings
from dpotool.wording import count

if TYPE_CHECKING:
    from dpotool.cache.entries import CacheEntry


_NAME_WIDTH = 29
"""Characters of a name; with the other columns they fill 80."""


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="List, check or delete stored values of pairs and the stored built-in model.")
    add_verb(group, "cache ls", CacheListConfig, epilog="Example: dpotool cache ls --json")(list_cache)
    add_verb(group, "cache verify", CacheVerifyConfig, epilog="Example: dpotool cache verify")(verify_cache)
    add_verb(group, "cache clear", CacheClearConfig, epilog="Example: dpotool cache clear --older-than 30")(clear_cache)
    app.add_typer(group, name="cache", no_args_is_help=True)


def list_cache(config: CacheListConfig, console: Console) -> None:
    """List the models whose values are stored, with the number of pairs, the size and the last use."""
    from dpotool.cache.entries import cache_root, list_entries

    entries = list_entries()
    n_bytes = sum(entry.n_bytes for entry in entries)
    console.say(
        f"The cache in {cache_root()} holds {count(len(entries), 'entry', 'entries')}, {format_bytes(n_bytes)} in all."
    )
    if entries:
        console.table("", *_tabulate(entries, is_full=config.full))
    console.finish({"root": str(cache_root()), "entries": [entry.to_dict() for entry in entries], "n_bytes": n_bytes})


def _tabulate(entries: Sequence[CacheEntry], *, is_full: bool = False) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows, an entry a row; with `is_full` also numeric types, files, kinds and whole names."""
    rows = [
        {
            "model": _name(entry) if is_full else _shorten(_name(entry), entry.is_complete),
            "what": entry.kind if entry.is_complete else f"{entry.kind}, incomplete",
            "fingerprint": entry.fingerprint,
            "types": entry.types,
            "pairs": "-" if entry.n_pairs is None else str(entry.n_pairs),
            "files": str(entry.n_files),
            "size": format_bytes(entry.n_bytes),
            "last used": entry.last_used.astimezone().strftime("%Y-%m-%d %H:%M" if is_full else "%Y-%m-%d"),
        }
        for entry in entries
    ]
    columns = list(rows[0]) if is_full else ["model", "fingerprint", "pairs", "size", "last used"]
    return columns, [[row[column] for column in columns] for row in rows]


def _shorten(name: str, is_complete: bool) -> str:
    """Returns the end of a long name, and whether the entry is incomplete, in the width that a narrow screen has."""
    mark = "" if is_complete else " (incomplete)"
    room = _NAME_WIDTH - len(mark)
    return (name if len(name) <= room else "…" + name[1 - room :]) + mark


def _name(entry: CacheEntry) -> str:
    if not entry.models:
        return "(not recorded)"
    others = len(entry.models) - 1
    return entry.models[-1] + (f" and {count(others, 'other name')}" if others else "")


def verify_cache(config: CacheVerifyConfig, console: Console) -> None:
    """Read every stored value and report damaged files, values that are no numbers and values that disagree."""
    from dpotool.cache.checking import check_store
    from dpotool.cache.clearing import choose_entries
    from dpotool.cache.entries import list_entries

    if config.recompute and config.model is None:
        raise DpotoolError("no model is named", where="--recompute", remedy="Name it with --model")
    # a model that is computed again is found by its weights, whatever name its values are listed under
    model = None if config.recompute else config.model
    entries = [entry for entry in choose_entries(list_entries(), model=model) if entry.n_pairs is not None]
    checks = {entry: check_store(entry) for entry in entries}
    for entry, check in checks.items():
        for name, reason in check.unreadable.items():
            console.warn(f"{check.path / name}: damaged ({reason}). Delete it, and dpotool computes its pairs again")
        if check.n_not_finite:
            console.warn(
                f"{check.path}: "
                f"{count(check.n_not_finite, 'value is not a number', 'values are not numbers')} and therefore not used"
            )
        if check.n_disagreeing:
            remedy = f"dpotool cache clear --model {entry.fingerprint}"
            console.warn(
                f"{check.path}: {count(check.n_disagreeing, 'row differs', 'rows differ')} from another row of the "
                f"same pair, by up to {check.largest_difference:.3g} nats. After `{remedy}` they are computed again"
            )
    n_pairs = sum(check.n_pairs for check in checks.values())
    n_files = sum(check.n_files for check in checks.values())
    n_unsound = sum(not check.is_sound for check in checks.values())
    console.say(
        f"{count(n_files, 'file')} of {count(len(checks), 'model')} were read, with {count(n_pairs, 'pair')} in all."
    )
    console.say(
        f"{n_unsound} of {count(len(checks), 'model')} {'has' if n_unsound == 1 else 'have'} problems."
        if n_unsound
        else "No problem was found."
    )
    recheck = _recompute(config, console) if config.recompute else None
    console.finish({"stores": [check.to_dict() for check in checks.values()], "recompute": recheck})
    if n_unsound or (recheck is not None and recheck["n_disagreeing"]):
        raise typer.Exit(1)


def _recompute(config: CacheVerifyConfig, console: Console) -> dict[str, Any]:
    from dpotool.likelihood.recheck import recheck_store

    names = {field.name for field in fields(SubjectSettings)}
    settings = SubjectSettings(**{name: value for name, value in config.to_dict().items() if name in names})
    assert config.model is not None
    found = recheck_store(config.model, settings, config.recompute, progress=console)
    console.say(
        f"Stored pairs computed again: {found.n_compared} of {found.n_stored}. The largest difference is "
        f"{found.largest_difference:.3g} nats, a typical one {found.typical_difference:.3g}."
    )
    if found.n_disagreeing:
        console.warn(f"{count(found.n_disagreeing, 'pair differs', 'pairs differ')} by more than rounding explains")
    return asdict(found)


def clear_cache(config: CacheClearConfig, console: Console) -> None:
    """Delete stored values, all of them or those that --model and --older-than choose. All can be computed again."""
    from dpotool.cache.clearing import choose_entries, clear_entries, clear_unfinished
    from dpotool.cache.entries import list_entries

    entries = choose_entries(list_entries(), model=config.model, older_than_days=config.older_than)
    if entries and not config.yes:
        console.table("to be deleted", *_tabulate(entries))
        _ask(
            f"Delete {count(len(entries), 'entry', 'entries')}, "
            f"{format_bytes(sum(entry.n_bytes for entry in entries))}?"
        )
    cleared = clear_entries(entries)
    clear_unfinished()
    console.say(
        f"freed {format_bytes(cleared.n_bytes)}: {count(cleared.n_files, 'file')} of "
        f"{count(cleared.n_entries, 'entry', 'entries')}"
    )
    for path in cleared.left:
        console.note(f"{path} stays, because it holds files that are not dpotool's")
    for path in cleared.used:
        console.note(f"{path} stays, because another command is using it")
    console.finish(asdict(cleared))


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise DpotoolError(
            "there is no terminal to confirm it", where="cache clear", remedy="Pass --yes to delete without being asked"
        )
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)

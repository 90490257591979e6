"""Built-in models: names such as `builtin:demo` that are neither a folder nor a hub id, and where their weights are.

`models.loading` resolves such names by this module. How a built-in model is trained is known in a room above this
one, so `dpotool/__init__.py` registers the function that makes it. Imports nothing heavy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from dpotool.errors import DpotoolError
from dpotool.hub import check_name, is_meant_as_path
from dpotool.progress import SILENT, Progress
from dpotool.settings.shared import DEMO


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """How a model that nobody has to bring is come by."""

    make: Callable[[Progress], Path]
    """Returns its folder; on first use the model is made."""
    find: Callable[[], Path | None]
    """Returns its folder, or None where it is not made yet."""
    save_untrained: Callable[[Path], None]
    """Writes what has its shape and its tokenizer into a folder, at once."""


_makers: dict[str, Callable[[], BuiltinModel]] = {}
_stand_ins: ContextVar[Path | None] = ContextVar("stand_ins", default=None)


def register_builtin(name: str, load: Callable[[], BuiltinModel]) -> None:
    """Makes a name known; `load` is called when the model is first wanted, so it may import what it likes."""
    _makers[name] = load


def choose_pairs(model: str, data: str | None) -> str:
    """Returns the data that was named; only for a built-in model do the built-in pairs stand in when none are named.

    Raises:
        DpotoolError: none are named for any other model, or that model is a path where nothing is.
    """
    if data is None and not is_builtin(model):
        if is_meant_as_path(model):
            check_name(model)
        raise DpotoolError(
            "no pairs are named",
            where=model,
            remedy=f"Name them with --data FILE (the built-in ones, which are toys, are --data {DEMO})",
        )
    return DEMO if data is None else data


def is_builtin(name: str) -> bool:
    """Tells whether a name is that of a built-in model."""
    return name in _makers


def locate_model(name: str, progress: Progress = SILENT) -> str:
    """Returns the path or hub id to load: the folder of a built-in model, and any other name unchanged.

    Raises:
        KeyboardInterrupt: the making of a built-in model was interrupted; nothing of it is left.
    """
    if name not in _makers:
        return name
    model = _makers[name]()
    stand_ins = _stand_ins.get()
    if stand_ins is None:
        return str(model.make(progress))
    found = model.find()
    if found is None:
        found = stand_ins / name.replace(":", "-")
        if not found.exists():
            progress.note(f"{name} does not exist yet; making it takes about a minute more")
            model.save_untrained(found)
    return str(found)


@contextmanager
def standing_in() -> Iterator[None]:
    """Replaces a built-in model that was not trained yet by an untrained one, until the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        token = _stand_ins.set(Path(folder))
        try:
            yield
        finally:
            _stand_ins.reset(token)

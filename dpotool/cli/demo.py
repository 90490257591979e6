"""How the command line finds models: builtin:demo is made on first use, every other name is a path or hub id."""

from __future__ import annotations

from collections.abc import Callable

from dpotool.progress import Progress
from dpotool.settings import DEMO


def locate_model(progress: Progress) -> Callable[[str], str]:
    """Returns the function that turns `--model` into a path or hub id."""

    def locate(name: str) -> str:
        if name != DEMO:
            return name
        from dpotool.training.demo import ensure_demo_model

        return str(ensure_demo_model(progress))

    return locate

"""dpotool: measure, explain and undo likelihood displacement in DPO."""

from typing import Any

from dpotool.models.builtin import BuiltinModel, register_builtin

__version__ = "0.1.0"


def _load_demo() -> BuiltinModel:
    from dpotool.training.demo import DEMO_MODEL

    return DEMO_MODEL


register_builtin("builtin:demo", _load_demo)


def __getattr__(name: str) -> Any:
    """Imports what needs torch only when somebody asks for it."""
    if name == "DisplacementCallback":
        from dpotool.measures.callback import DisplacementCallback

        return DisplacementCallback
    raise AttributeError(f"module 'dpotool' has no attribute {name!r}")

"""dpotool: measure, explain and undo likelihood displacement in DPO. docs/python.md says what a notebook can use."""

from typing import Any

from dpotool.api import (
    compare_runs,
    diagnose,
    gradient_products,
    load_pairs,
    loss,
    open_scores,
    plot,
    score,
    train,
    verdict,
    write_report,
)
from dpotool.errors import DpotoolError
from dpotool.models.builtin import BuiltinModel, register_builtin

__version__ = "0.1.0"
__all__ = [
    "DisplacementCallback",
    "DpotoolError",
    "compare_runs",
    "diagnose",
    "gradient_products",
    "load_pairs",
    "loss",
    "open_scores",
    "plot",
    "score",
    "train",
    "verdict",
    "write_report",
]


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

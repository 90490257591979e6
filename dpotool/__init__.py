"""dpotool: measure, explain and undo likelihood displacement in DPO. docs/python.md says what a notebook can use."""

import os
import signal
import sys

_is_command = sys.argv[0].endswith(f"{os.sep}dpotool") or sys.orig_argv[1:3] == ["-m", "dpotool"]
if _is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # In the command, and in no notebook, Ctrl-C during the imports below prints no traceback; then see `interruption`.
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"interrupted\n"), os._exit(130)))

from importlib import import_module  # noqa: E402
from typing import Any  # noqa: E402

from dpotool.api import (  # noqa: E402
    blend,
    compare_runs,
    diagnose,
    generate,
    gradient_products,
    judge,
    load_pairs,
    loss,
    open_scores,
    plot,
    predict,
    run_sweep,
    score,
    train,
    verdict,
    write_report,
)
from dpotool.errors import DpotoolError  # noqa: E402
from dpotool.models.builtin import BuiltinModel, register_builtin  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "DisplacementCallback",
    "DpotoolError",
    "Drawing",
    "LossSpec",
    "Measure",
    "PlotKind",
    "blend",
    "compare_runs",
    "diagnose",
    "generate",
    "gradient_products",
    "judge",
    "load_pairs",
    "loss",
    "open_scores",
    "plot",
    "predict",
    "register_loss",
    "register_measure",
    "register_plot",
    "run_sweep",
    "score",
    "train",
    "verdict",
    "write_report",
]

_LAZY = {
    "DisplacementCallback": "measures.callback",
    "Drawing": "plots.registry",
    "LossSpec": "losses.spec",
    "Measure": "measures.measure",
    "PlotKind": "plots.registry",
    "register_loss": "losses.registry",
    "register_measure": "measures.registry",
    "register_plot": "plots.registry",
}
"""Name -> module that is imported when the name is first used, as it needs torch or pandas."""


def _load_demo() -> BuiltinModel:
    from dpotool.training.demo import DEMO_MODEL

    return DEMO_MODEL


register_builtin("builtin:demo", _load_demo)


def __getattr__(name: str) -> Any:
    """Imports a name of `_LAZY`."""
    if name in _LAZY:
        return getattr(import_module(f"dpotool.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'dpotool' has no attribute {name!r}")

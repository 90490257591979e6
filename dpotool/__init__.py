"""dpotool: measure, explain and undo likelihood displacement in DPO."""

from dpotool.models.builtin import BuiltinModel, register_builtin

__version__ = "0.1.0"


def _load_demo() -> BuiltinModel:
    from dpotool.training.demo import DEMO_MODEL

    return DEMO_MODEL


register_builtin("builtin:demo", _load_demo)

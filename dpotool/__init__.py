"""dpotool: measure, explain and undo likelihood displacement in DPO."""

__version__ = "0.1.0"

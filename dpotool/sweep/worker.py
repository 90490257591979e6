"""Trains one cell in a process that ends when its sweep ends: `python -m dpotool.sweep.worker PID ...`.

The process has a session of its own, so that a Ctrl-C at the terminal reaches the sweep alone, which then asks each
run once to stop. Nothing can ask where the sweep was killed outright: the process notices that its parent is gone and
asks itself, which ends the step, saves a checkpoint and stops.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

from dpotool.interruption import watch_parent


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _, parent, *words = sys.argv
    threading.Thread(target=watch_parent, args=(int(parent), _stop), daemon=True).start()
    sys.argv = ["dpotool", *words]
    runpy.run_module("dpotool", run_name="__main__", alter_sys=True)

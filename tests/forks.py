"""Python processes that find torch and transformers imported: forks of one process that has done nothing else.

A command that a test starts would spend most of its time on those imports. Multiprocessing's fork server has them done
once; dpotool itself is imported anew in every fork.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

CONTEXT = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
if os.name == "posix":
    CONTEXT.set_forkserver_preload(
        ["torch", "transformers.trainer", "transformers.models.llama.modeling_llama", "peft", "datasets", "scipy.stats"]
    )


class Fork:
    """What `subprocess.Popen` is, of a Python command; stdout and stderr go to one file."""

    def __init__(self, words: Sequence[str], output: Path, environment: Mapping[str, str] | None = None) -> None:
        known = dict(os.environ if environment is None else environment)
        self._output = output
        self._process = CONTEXT.Process(target=_become, args=(list(words), known, str(output), str(Path.cwd())))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("a fork", timeout or 0, self.read_output())
        return code

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def read_output(self) -> str:
        """What it has said by now, on stdout and stderr."""
        return self._output.read_text(encoding="utf-8") if self._output.exists() else ""


def run_launcher(module: str, words: Sequence[str], folder: Path, **changes: str) -> str:
    """Runs `python -m MODULE WORDS...`, a launcher of several processes, in this process; returns what they said.

    Whatever it would start is forked instead, with the environment that it gives them.
    """
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    folder.mkdir()
    started: list[Fork] = []

    def popen(_: Any, arguments: tuple[str, ...], environment: dict[str, str]) -> Fork:
        started.append(Fork(arguments, folder / f"{len(started)}.txt", environment))
        return started[-1]

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with (
        mock.patch.dict(os.environ, changes),
        mock.patch.object(sys, "argv", [module, *words]),
        mock.patch.object(subprocess_handler.SubprocessHandler, "_popen", popen),
    ):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except Exception as error:
            raise AssertionError("\n".join(fork.read_output()[-3000:] for fork in started)) from error
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert [fork.wait(60) for fork in started] == [0] * len(started)
    return "".join(fork.read_output() for fork in started)


def _become(words: list[str], environment: dict[str, str], output: str, folder: str) -> None:
    """Does in this process what a Python that was started with these words does."""
    gc.freeze()
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.orig_argv = words
    kind, *rest = [word for word in words[1:] if word != "-u"]
    sys.argv = rest if kind == "-m" else [kind, *rest]
    if kind == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")

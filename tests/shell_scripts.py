"""Runs shell scripts that call `dpotool`, each call inside this process, which has imported torch already.

A stand-in for `dpotool` on the PATH hands its words to this process by a socket and gets exit code and output back; so
a script of four commands costs one second and not thirty.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Listener
from pathlib import Path
from unittest import mock

from dpotool.cli.app import main

STAND_IN = """\
#!{python}
import os, sys
from multiprocessing.connection import Client

with Client(os.environ["DPOTOOL_SOCKET"]) as connection:
    connection.send(sys.argv[1:])
    code, out, err = connection.recv()
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


@dataclass(slots=True)
class Outcome:
    """What a script or command did."""

    code: int
    out: str
    err: str
    calls: list[list[str]] = field(default_factory=list)
    """The words of every `dpotool` call, in order."""


def call_dpotool(words: list[str]) -> Outcome:
    """Calls the command line as a shell would."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["dpotool", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def run_script(words: list[str], folder: Path) -> Outcome:
    """Runs a script in a folder; `python` there is this interpreter."""
    programs = folder / ".programs"
    programs.mkdir(exist_ok=True)
    (programs / "dpotool").write_text(STAND_IN.format(python=sys.executable))
    (programs / "dpotool").chmod(0o755)
    paths = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    results: list[subprocess.CompletedProcess[str]] = []

    def run(address: str) -> None:
        environment = os.environ | {"PATH": os.pathsep.join(paths), "DPOTOOL_SOCKET": address}
        try:
            results.append(subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True))
        finally:
            with Client(address) as connection:
                connection.send(None)

    calls: list[list[str]] = []
    with Listener(family="AF_UNIX") as listener, contextlib.chdir(folder):
        thread = threading.Thread(target=run, args=(listener.address,))
        thread.start()
        while True:
            with listener.accept() as connection:
                call = connection.recv()
                if call is None:
                    break
                calls.append(call)
                outcome = call_dpotool(call)
                connection.send((outcome.code, outcome.out, outcome.err))
        thread.join()
    [result] = results
    return Outcome(result.returncode, result.stdout, result.stderr, calls)

"""One handler for three signals: before there is work a command ends at once, then what was computed is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpotool import interruption

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Whatever started the tests: under nohup they would begin with SIGHUP ignored."""
    before = {number: signal.signal(number, signal.getsignal(number) or signal.SIG_DFL) for number in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_at_work_a_signal_raises(number: signal.Signals) -> None:
    with interruption.catching():
        interruption.begin_work()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert interruption.was_asked_to_stop()


def test_what_must_not_end_halfway_runs_to_its_end() -> None:
    done = []

    def work() -> None:
        with interruption.deferred():
            with interruption.deferred():
                signal.raise_signal(signal.SIGTERM)
            done.append("all of it")
        done.append("not reached")

    with interruption.catching():
        interruption.begin_work()
        with pytest.raises(KeyboardInterrupt):
            work()
    assert done == ["all of it"]


def test_what_is_ignored_stays_ignored_and_handlers_come_back() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interruption.catching():
            interruption.begin_work()
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, kept)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


RUN = """
import sys, time
import dpotool.__main__
print("ready", flush=True)
{work}
time.sleep(30)
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "work", ["", "try:\n    import slow\nexcept BaseException: pass"], ids=["waiting", "importing"]
)
def test_before_there_is_work_a_command_ends_at_once_without_a_traceback(
    tmp_path: Path, number: signal.Signals, work: str
) -> None:
    """In the middle of an import too, whatever that makes of an exception."""
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(30)\n")
    process = subprocess.Popen(
        [sys.executable, "-c", RUN.format(work=work)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, "interrupted\n")


def test_an_interruption_that_python_cannot_raise_comes_again() -> None:
    """In `__del__` Python prints an exception and goes on; a command must stop all the same."""
    code = (
        "import os, signal, time\nfrom dpotool import interruption\n"
        "class Deaf:\n    def __del__(self): signal.raise_signal(signal.SIGINT)\n"
        "with interruption.catching():\n    interruption.begin_work()\n"
        "    try:\n        Deaf()\n        time.sleep(20)\n"
        "    except KeyboardInterrupt: print('stopped')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert (result.stdout, result.stderr) == ("stopped\n", "")


@pytest.mark.parametrize(("program", "code"), [("/usr/bin/dpotool", 130), ("/usr/bin/notebook", -signal.SIGINT)])
def test_ctrl_c_while_the_package_itself_is_imported(program: str, code: int) -> None:
    """Only the command takes the signal over; whoever imports dpotool keeps their own way of being interrupted."""
    script = f"""
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "dpotool.api":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
sys.argv = [{program!r}]
import dpotool
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == code
    assert ("Traceback" in ended.stderr) == (code != 130)

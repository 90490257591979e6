"""One method in a process of its own, which works when it is asked to: methods take turns, and nothing else runs.

    python benchmarks/worker.py '{"part": "scoring", "method": "TRL", ...}'

Requests come in and answers go out as JSON lines; end of input ends the process. What libraries print goes to stderr.
`Worker` is the other end: it starts such a process with the environment that the comparison asks for.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


class Worker:
    """A method's process, seen from outside."""

    def __init__(self, task: Answer, *, threads: int, huge_pages: bool) -> None:
        quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment = {**os.environ, **quiet, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment.pop("THP_MEM_ALLOC_ENABLE", None)
        if huge_pages:
            environment["THP_MEM_ALLOC_ENABLE"] = "1"
        self.method = task["method"]
        self._log = Path(tempfile.mkstemp(suffix=".log")[1])
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            env=environment,
            text=True,
        )

    def read(self) -> Answer:
        """Returns the next answer.

        Raises:
            RuntimeError: the process has ended; the message holds the end of what it printed.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"{self.method} ended:\n" + self._log.read_text()[-3000:])
        return json.loads(line)

    def ask(self, **request: object) -> Answer:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self.read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Channel:
    """The worker's own end: stdin and what was stdout."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever libraries print is no answer

    def send(self, **answer: object) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def receive(self) -> Answer | None:
        line = sys.stdin.readline()
        return json.loads(line) if line else None


def serve_scoring(task: Answer, channel: Channel) -> None:
    """Scores the first pairs with the asked-for batch size, as often as it is asked to."""
    from harness import PeakMemory, load_model
    from scoring_methods import SCORERS
    from workloads import Workload, count_operations, load_pairs

    tokenizer, pairs = load_pairs(Workload(task["model"], task["data"]))
    model = load_model(task["model"])
    score = SCORERS[task["method"]](model, tokenizer, pairs)
    score(1, 1)  # libraries loaded, threads started
    memory = PeakMemory()
    channel.send(ready=True)
    while (request := channel.receive()) is not None:
        n_pairs = request["n_pairs"]
        memory.restart()
        start = time.perf_counter()
        logps = score(n_pairs, request["batch_size"])
        seconds = time.perf_counter() - start
        operations = count_operations(model, pairs[:n_pairs])
        channel.send(seconds=seconds, logps=logps.tolist(), peak_mib=memory.read_mib(), operations=operations)


def serve_products(task: Answer, channel: Channel) -> None:
    """Measures the rate of float32 matrix products: large square ones, and those of the model's own linear layers."""
    import torch
    from harness import load_model
    from torch import nn

    model = load_model(task["model"])
    layers = {tuple(m.weight.shape) for m in model.get_decoder().modules() if isinstance(m, nn.Linear)}
    squares = [(2048, 2048)]
    channel.send(ready=True)

    @torch.no_grad()
    def measure(shapes: list[tuple[int, ...]]) -> float:
        factors = [(torch.randn(2048, columns), torch.randn(rows, columns)) for rows, columns in shapes]
        operations = sum(2 * 2048 * rows * columns for rows, columns in shapes)
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            for left, right in factors:
                nn.functional.linear(left, right)
            seconds.append(time.perf_counter() - start)
        return operations / statistics.median(seconds)

    while channel.receive() is not None:
        channel.send(square=measure(squares), layers=measure(sorted(layers)))


def serve_training(task: Answer, channel: Channel) -> None:
    """Trains, a step each time it is asked to; a step's time runs until the next one could begin."""
    from training_methods import TRAINERS
    from turns import take_turns
    from workloads import Workload

    prepare = TRAINERS[task["method"]]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DPOTOOL_CACHE"] = folder + "/cache"
        workload = Workload(task["model"], task["data"])
        trainer = prepare(workload, folder + "/run", batch_size=task["batch_size"], n_steps=task["n_steps"])
        take_turns(trainer, channel.receive, channel.send)


def serve_sweep(task: Answer, channel: Channel) -> None:
    """Runs a whole sweep when it is asked to."""
    from sweep_methods import SWEEPS
    from workloads import Workload

    run = SWEEPS[task["method"]]
    channel.send(ready=True)
    while channel.receive() is not None:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            workload = Workload(task["model"], task["data"])
            options = {"batch_size": task["batch_size"], "n_steps": task["n_steps"]}
            outcome = run(workload, task["held_out"], Path(folder), **options)
            channel.send(seconds=time.perf_counter() - start, **outcome)


SERVICES: dict[str, Callable[[Answer, Channel], None]] = {
    "scoring": serve_scoring,
    "products": serve_products,
    "training": serve_training,
    "sweep": serve_sweep,
}


def main() -> None:
    task = json.loads(sys.argv[1])
    channel = Channel()
    import torch

    torch.set_num_threads(task["threads"])
    if task["fast_float32"]:
        from dpotool.models.precision import use_fast_float32_on_cpu

        use_fast_float32_on_cpu()
    try:
        SERVICES[task["part"]](task, channel)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("trl", "lm_eval"):
            raise
        channel.send(absent=error.name)


if __name__ == "__main__":
    main()

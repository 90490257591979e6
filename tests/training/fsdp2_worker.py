"""The commands of `test_distributed.py` as accelerate's FSDP2 runs them, on CPUs.

There accelerate itself takes DDP whatever its configuration says: it spreads weights only over processes that it takes
for GPUs' (`AcceleratorState`), so here it is told that they are. Says on stderr how many of the model's parameters were
spread.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import accelerate.accelerator
from accelerate import PartialState
from accelerate.utils import DistributedType
from test_distributed import run_commands
from torch.distributed.tensor import DTensor

join = PartialState.__init__
prepare = accelerate.accelerator.fsdp2_prepare_model


def join_as_gpus_do(self: PartialState, *args: Any, **options: Any) -> None:
    join(self, *args, **options)
    if self.distributed_type is DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


def prepare_and_count(*args: Any) -> Any:
    model = prepare(*args)
    parameters = list(model.parameters())
    n_spread = sum(isinstance(parameter, DTensor) for parameter in parameters)
    sys.stderr.write(f"spread: {n_spread} of {len(parameters)}\n")
    return model


if __name__ == "__main__":
    PartialState.__init__ = join_as_gpus_do  # type: ignore[method-assign]
    accelerate.accelerator.fsdp2_prepare_model = prepare_and_count
    run_commands(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))

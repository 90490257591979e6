#!/usr/bin/env bash
# Before training: what Theorem 2.1 and the gradients say about each pair, and which lambdas they admit.
#
#   examples/03_theory_gap.sh
#   examples/03_theory_gap.sh --model MODEL --data pairs.jsonl    any option of `dpotool theory-gap` may follow
set -euo pipefail
out=${OUT:-runs/example-03}

dpotool theory-gap --lambdas 0.5,0.75,0.9 --limit 40 --output "$out" "$@"
dpotool plot theory "$out"

# The table has a row per pair. Where band_high is below 1, one DPO step on the pair makes its chosen answer less likely.
python - "$out" <<'PYTHON'
import sys
from pathlib import Path

import pandas as pd

[table] = Path(sys.argv[1], "theory").glob("*.parquet")
frame = pd.read_parquet(table).sort_values("band_high")
print(f"{(frame['band_high'] < 1).sum()} of {len(frame)} pairs have their band below 1; the lowest ones:")
print(frame[["pair_id", "grad_cosine", "band_low", "band_high", "entanglement"]].head().to_string(index=False))
PYTHON

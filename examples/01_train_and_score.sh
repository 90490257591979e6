#!/usr/bin/env bash
# Train by DPO and by DPO-Shift from the same start, score both on the test pairs, and draw the distributions.
#
#   examples/01_train_and_score.sh                                     built-in model and pairs
#   examples/01_train_and_score.sh --model MODEL --data pairs.jsonl    any option of `dpotool train` may follow
set -euo pipefail
out=${OUT:-runs/example-01}

dpotool train --loss dpo --output "$out/dpo" "$@"
dpotool train --loss shift --lambda 0.75 --output "$out/shift" "$@"

# A run folder knows its reference and its test pairs, so this needs no more than the two folders.
dpotool score "$out/dpo" "$out/shift"
dpotool plot displacement "$out/dpo" "$out/shift" --output "$out/plots"

#!/usr/bin/env bash
# Train a grid of lambdas and the two linear schedules, table the trade-off, and draw every picture.
# Run it again, with more lambdas if you like: what is finished is kept, only what is missing is trained.
#
#   examples/02_lambda_sweep.sh
#   examples/02_lambda_sweep.sh --model MODEL --data pairs.jsonl    any option of `dpotool sweep` may follow
set -euo pipefail
out=${OUT:-runs/example-02}

dpotool sweep --lambdas 0.5,0.75,1.0 --schedules linear_increase,linear_decrease --output "$out" "$@"
dpotool plot all "$out"
echo "the table for other tools: $out/runs.csv"

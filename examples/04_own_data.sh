#!/usr/bin/env bash
# Your own pairs: one JSON object a line with prompt, chosen, rejected and, if you have them, scores.
# examples/data/support.jsonl is such a file, small and invented. It has no test split, so a quarter is cut off.
#
#   examples/04_own_data.sh
#   examples/04_own_data.sh --model MODEL --batch-size 2    any option of `dpotool train` may follow
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-runs/example-04}

dpotool train --data "$here/data/support.jsonl" --test-fraction 0.25 --batch-size 4 --loss shift --lambda 0.9 \
    --output "$out" "$@"
dpotool score "$out" --tokens --format csv

#!/usr/bin/env bash
# A real model and real pairs on two CPU cores: the study of docs/results.md.
# A few hours: seven trainings of 19 steps, and gradient products of 220 pairs.
#
#   examples/smollm2/run.sh MODEL DATA      MODEL as get_model.py writes it; DATA holds tldr_train.jsonl, tldr_test.jsonl
#                                           and hh_harmless_test.jsonl
set -euo pipefail
model=${1:?"which model? A folder written by get_model.py, or a hub id"}
data=${2:?"which data? A folder with tldr_train.jsonl and tldr_test.jsonl"}
out=${OUT:-runs}

# 320 tokens keep a step small; longer pairs are left out rather than cut, so that every summary has its whole post.
pairs=(--data "$data/tldr_train.jsonl" --max-length 320 --truncation exclude --batch-tokens 2048)
test=(--eval-data "$data/tldr_test.jsonl" --eval-limit 100 --logging-steps 1)

# The paper's first stage: SFT on the chosen summaries. It is the start and the reference of all that follows.
dpotool train --loss sft --model "$model" "${pairs[@]}" --limit 800 "${test[@]}" \
    --batch-size 2 --gradient-accumulation 8 --eval-steps 1000 --output "$out/tldr-sft"

# DPO and DPO-Shift from that start, on the same pairs in the same order.
same=(--model "$out/tldr-sft" "${pairs[@]}" --limit 400 "${test[@]}"
    --batch-size 1 --gradient-accumulation 8 --learning-rate 1e-5)
dpotool train --loss dpo "${same[@]}" --eval-steps 9 --output "$out/tldr-dpo"
dpotool train --loss shift --lambda 0.75 "${same[@]}" --eval-steps 9 --output "$out/tldr-shift-0.75"
dpotool score "$out/tldr-dpo" "$out/tldr-shift-0.75" --batch-tokens 2048
dpotool plot all "$out/tldr-dpo" "$out/tldr-shift-0.75" --output "$out/plots"

# The forecast for the training pairs, and a lambda for each of them: two gradients a pair, and steps on all of them.
dpotool theory-gap --model "$out/tldr-sft" --data "$data/tldr_train.jsonl" --split train --truncation exclude \
    --max-length 320 --limit 600 --batch-tokens 1000 --lambdas 0.5,0.75,0.9,0.95 --top 20 --check 4 \
    --output "$out/tldr-theory-train"

# More of the grid, evaluated at the start and at the end only: other lambdas, a lambda for each pair, schedules.
ends=("${same[@]}" --eval-steps 100)
theory="$out/tldr-theory-train/theory/tldr_train-train.parquet"
adaptive=(--loss shift --lambda-schedule adaptive --theory "$theory")
for lambda in 0.5 0.9; do
    dpotool train --loss shift --lambda $lambda "${ends[@]}" --output "$out/tldr-shift-$lambda"
done
dpotool train "${adaptive[@]}" --adaptive-rule sign --lambda 0.75 "${ends[@]}" --output "$out/tldr-adaptive-sign"
dpotool train "${adaptive[@]}" --adaptive-rule band --lambda-min 0.5 "${ends[@]}" --output "$out/tldr-adaptive-band"
for schedule in linear_increase linear_decrease; do
    dpotool train --loss shift --lambda-schedule $schedule --lambda-min 0.75 "${ends[@]}" --output "$out/tldr-$schedule"
done

# One page of it all.
grid=("$out/tldr-dpo" "$out"/tldr-shift-{0.9,0.75,0.5} "$out"/tldr-adaptive-{sign,band} "$out"/tldr-linear_{increase,decrease})
dpotool score "${grid[@]}"
dpotool report "${grid[@]}" "$out/tldr-theory-train" --pairs 1 --output "$out/tldr-report.html"

# How much of what DPO did could be read from gradients at its start, and from gradients half-way.
dpotool predict "$out/tldr-dpo" --batch-tokens 1000
dpotool predict "$out/tldr-dpo" --batch-tokens 1000 --at middle
dpotool plot prediction "$out/tldr-dpo" --output "$out/plots"

# What the gradients at the start say of the test pairs.
dpotool theory-gap --model "$out/tldr-sft" --data "$data/tldr_test.jsonl" --truncation exclude --max-length 320 \
    --limit 100 --output "$out/tldr-theory"
dpotool plot theory "$out/tldr-theory"

# HH-RLHF transcripts score too; two of the file's rows have an empty reply and are left out, counted.
dpotool score "$out/tldr-sft" --data "$data/hh_harmless_test.jsonl" --limit 30 --skip-invalid --max-length 320 \
    --batch-tokens 2048 --output "$out/hh"

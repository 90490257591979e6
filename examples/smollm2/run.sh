#!/usr/bin/env bash
# A real model and real pairs on two CPU cores: the study of docs/results.md, about an hour.
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
    --batch-size 1 --gradient-accumulation 8 --learning-rate 1e-5 --eval-steps 9)
dpotool train --loss dpo "${same[@]}" --output "$out/tldr-dpo"
dpotool train --loss shift --lambda 0.75 "${same[@]}" --output "$out/tldr-shift-0.75"
dpotool score "$out/tldr-dpo" "$out/tldr-shift-0.75" --batch-tokens 2048
dpotool plot all "$out/tldr-dpo" "$out/tldr-shift-0.75" --output "$out/plots"

# What the gradients at the start say, two backward passes a pair.
dpotool theory-gap --model "$out/tldr-sft" --data "$data/tldr_test.jsonl" --truncation exclude --max-length 320 \
    --limit 100 --output "$out/tldr-theory"
dpotool plot theory "$out/tldr-theory"

# HH-RLHF transcripts score too; two of the file's rows have an empty reply and are left out, counted.
dpotool score "$out/tldr-sft" --data "$data/hh_harmless_test.jsonl" --limit 30 --skip-invalid --max-length 320 \
    --batch-tokens 2048 --output "$out/hh"

#!/usr/bin/env bash
# A real model and real pairs on two CPU cores: SmolLM2-135M-Instruct and TL;DR summaries.
#
#   examples/smollm2/run.sh MODEL DATA      MODEL as get_model.py writes it; DATA holds tldr_train.jsonl, tldr_test.jsonl
set -euo pipefail
model=${1:?"which model? A folder written by get_model.py, or a hub id"}
data=${2:?"which data? A folder with tldr_train.jsonl and tldr_test.jsonl"}
out=${OUT:-runs/smollm2}

# 320 tokens keep a step small; longer pairs are left out rather than cut, so that every summary has its whole post.
pairs=(--data "$data/tldr_train.jsonl" --max-length 320 --truncation exclude)
test=(--eval-data "$data/tldr_test.jsonl" --eval-limit 100)

# The paper's first stage: SFT on the chosen summaries. It is the start and the reference of all that follows.
dpotool train --loss sft --model "$model" "${pairs[@]}" --limit 800 "${test[@]}" \
    --batch-size 8 --gradient-accumulation 2 --eval-steps 1000 --output "$out/sft"

# Before training: what the gradients say, on a few pairs (two backward passes a pair). The SFT run's own reference is
# the model before SFT; that of DPO will be the SFT model itself.
dpotool theory-gap --model "$out/sft" --reference "$out/sft" --data "$data/tldr_test.jsonl" --limit 40 \
    --max-length 320 --truncation exclude

# DPO, and DPO-Shift at two lambdas, from the same start.
dpotool sweep --model "$out/sft" "${pairs[@]}" --limit 800 "${test[@]}" --lambdas 0.75,0.9,1.0 \
    --batch-size 8 --gradient-accumulation 2 --learning-rate 5e-6 --output "$out/sweep"
dpotool plot all "$out/sweep"
dpotool plot theory "$out/sft"

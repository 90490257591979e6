#!/usr/bin/env bash
# SmolLM2 before and after a short DPO on TL;DR: what it answers, judged by chrF, and by SmolLM2 itself on a real server.
# This tests the plumbing on a real model and a real server. It is no evidence on quality: after three steps there is
# hardly a difference, and a model of 135M parameters is no judge. Some minutes on two cores that do nothing else.
#
#   pip install 'transformers[serving]' sacrebleu
#   examples/smollm2/judge.sh MODEL DATA    MODEL as get_model.py writes it; DATA holds tldr_train.jsonl, tldr_test.jsonl
set -euo pipefail
model=${1:?"which model? A folder written by get_model.py, or a hub id"}
data=${2:?"which data? A folder with tldr_train.jsonl and tldr_test.jsonl"}
port=${PORT:-8765}
start=runs/$(basename "$model") # where `generate` writes the answers of a model that is no run
test=(--data "$data/tldr_test.jsonl" --max-length 320 --max-new-tokens 48) # longer posts are left out, and counted

if [ ! -f runs/tldr-dpo/model.safetensors ]; then
    dpotool train --loss dpo --model "$model" --data "$data/tldr_train.jsonl" --max-length 320 --truncation exclude \
        --limit 64 --batch-size 1 --gradient-accumulation 8 --learning-rate 2e-5 \
        --eval-data "$data/tldr_test.jsonl" --eval-limit 20 --output runs/tldr-dpo
fi
dpotool generate "$model" runs/tldr-dpo "${test[@]}" --limit 12
dpotool judge runs/tldr-dpo "$start" --judge chrf

transformers serve "$model" --port "$port" --device cpu > runs/serve.log 2>&1 &
server=$!
trap 'kill $server' EXIT
until curl --silent --fail "http://localhost:$port/health" > /dev/null; do sleep 1; done
judge=(--endpoint "http://localhost:$port/v1" --judge-model "$model" --judge-tokenizer "$model"
    --judge-max-tokens 16 --concurrency 2)
dpotool judge runs/tldr-dpo "$start" "${judge[@]}" --dry-run
dpotool judge runs/tldr-dpo "$start" "${judge[@]}"

# The server's own answers are those that `generate` gives here: chrF sees the same text twice.
dpotool generate --endpoint "http://localhost:$port/v1" --served-model "$model" --temperature 0 --concurrency 2 \
    "${test[@]}" --limit 4 --output runs/served
dpotool judge "$start" runs/served --judge chrf --output runs/same

#!/usr/bin/env bash
# SMC against best-of-n, beam and majorities with the value model of run.sh, at equal tokens, on prompts of their own.
#
#     recipes/real/compare.sh TASK              # after recipes/real/run.sh MODEL TASK
#
# Reads and writes runs/real-TASK (OUT=…). Run again after an interruption: what was sampled is kept.
set -euo pipefail

usage() {
    echo "usage: $0 TASK, for example $0 counting, after recipes/real/run.sh MODEL TASK" >&2
    echo "TASK is one of: counting, gsm8k" >&2
    exit 2
}
[ $# -eq 1 ] || usage
task=$1
here=$(dirname "$0")
source "$here/tasks.sh"
out=${OUT:-runs/real-$task}
if [ ! -f "$out/prm/rmtools.json" ]; then
    echo "$0: error: there is no value model in $out/prm; fix: run recipes/real/run.sh MODEL $task first, with the same OUT" >&2
    exit 2
fi
: "${COMPARED_PROMPTS:=100}" "${N:=8}" # N: a multiple of 4

to=$out/compare
mkdir -p "$to"
file=$(prompts compare "$COMPARED_PROMPTS")
if [ "$file" = "$COMPARED_PROMPTS" ]; then
    file=$to/prompts.jsonl
    stage "prompts" rmtools prompts --task "$task" -n "$COMPARED_PROMPTS" --seed 4 --out "$file"
fi
# A reader of every token makes two tokens of one: 2 N solutions without a value model cost what N cost with one.
for seed in 0 1; do # two runs tell how far an estimate of Z is off
    stage "SMC, N = $N, seed $seed" rmtools sample --model "$out/prm" --prompts "$file" -n "$N" --seed "$seed" \
        --out "$to/smc-$seed.jsonl"
done
stage "beam, $((N / 4)) times 4 candidates" rmtools sample --model "$out/prm" --prompts "$file" --algorithm beam \
    -n $((N / 4)) --pool-size 4 --out "$to/beam.jsonl"
stage "independent, N = $((2 * N))" rmtools sample --model "$out/prm" --prompts "$file" --algorithm best-of-n \
    -n $((2 * N)) --out "$to/independent.jsonl"
if [ ! -f "$to/audit/audit.json" ]; then # of the target that was sampled: a solution is worth what the model says
    stage "audit" rmtools audit --model "$out/prm" --rollouts "$out/rollouts/heldout" --terminal model --no-pilot --out "$to/audit"
fi
"${PYTHON:-python}" "$here/compare.py" "$to" "$to/audit/audit.json" | tee "$to/table.md"

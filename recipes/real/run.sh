#!/usr/bin/env bash
# A reward model for a language model, from nothing: rollouts, training (LoRA), audit.
#
#     recipes/real/run.sh MODEL TASK            # TASK: counting, gsm8k
#
# Writes to runs/real-TASK. Run again after an interruption: finished stages are kept, the others resume. Sizes are
# variables (PROMPTS=64 recipes/real/run.sh …): they are named below. With other sizes name another folder, OUT=….
set -euo pipefail

usage() {
    echo "usage: $0 MODEL TASK, for example $0 models/smollm2 counting" >&2
    echo "MODEL is a folder or hub name of a language model, TASK one of: counting, gsm8k" >&2
    exit 2
}
[ $# -eq 2 ] && [ -n "$1" ] || usage
model=$1 task=$2
here=$(dirname "$0")
source "$here/tasks.sh"
out=${OUT:-runs/real-$task}
mkdir -p "$out"

# Held-out solutions have alternative next steps and completions too: the Bellman error, and what it costs in particles.
: "${PROMPTS:=144}" "${TRAJECTORIES:=8}" "${HELDOUT_PROMPTS:=48}" "${HELDOUT_TRAJECTORIES:=4}" "${CHILDREN:=2}" "${COMPLETIONS:=2}"
: "${TEMPERATURE:=0.7}" "${EPOCHS:=2}"

stage "rollouts for training" rmtools rollout --policy "$model" "${drawn[@]}" --temperature "$TEMPERATURE" \
    --prompts "$(prompts train "$PROMPTS")" --trajectories "$TRAJECTORIES" --seed 1 --out "$out/rollouts/train"
stage "rollouts held out" rmtools rollout --policy "$model" "${drawn[@]}" --temperature "$TEMPERATURE" \
    --prompts "$(prompts heldout "$HELDOUT_PROMPTS")" --trajectories "$HELDOUT_TRAJECTORIES" --children "$CHILDREN" \
    --completions "$COMPLETIONS" --seed 2 --out "$out/rollouts/heldout"

if [ -f "$out/prm/rmtools.json" ]; then
    echo "kept: value model ($out/prm)"
else
    resume=()
    if compgen -G "$out/prm/checkpoint-*" >/dev/null; then resume=(--resume_from_checkpoint last); fi
    # Floor, learning rate, batch and order of the rows are the defaults.
    stage "value model" rmtools train --train_rollouts "$out/rollouts/train" --output_dir "$out/prm" \
        --target mc --divergence bce --num_train_epochs "$EPOCHS" --lr_scheduler_type cosine --warmup_steps 4 \
        --save_strategy steps --save_steps 10 --save_total_limit 1 \
        --report_to none --seed 0 "${resume[@]}"
fi

if [ -f "$out/prm/audit/audit.json" ]; then
    echo "kept: audit ($out/prm/audit)"
else
    # Without --no-pilot it would also run the sampler on these prompts: as long as everything else together on a processor.
    stage "audit" rmtools audit --model "$out/prm" --rollouts "$out/rollouts/heldout" --no-pilot
fi
echo "value model: $out/prm; its audit: $out/prm/audit/audit.html"

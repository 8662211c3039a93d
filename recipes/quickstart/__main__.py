"""From nothing to a trained, audited and sampled reward model: every stage is a command you can run alone.

    python recipes/quickstart --out runs/quickstart

Each stage's command line is printed before it runs. A finished stage is kept: run again after an interruption
and only what is missing is done. Delete a stage's folder to do it, and what follows it, again.
"""

import argparse
import shlex
import sys
from pathlib import Path

from stages import Stage, run_stages

from rmtools.cli.errors import exit_on_user_error
from rmtools.particles.arguments import check_seed

# name | file it leaves | command; {out}, {seed}, {recipes}, {config} are filled in, programs are this environment's.
STAGES = """
policy | policy/gate.json | python {recipes}/train_policy.py --out {out}/policy --attempts 4 --overwrite
rollouts for training | rollouts/train/metadata.json | rmtools rollout --policy {out}/policy --task crossing
    --horizon 8 --prompts 1024 --trajectories 8 --seed 1 --overwrite
    --out {out}/rollouts/train
rollouts held out | rollouts/heldout/metadata.json | rmtools rollout --policy {out}/policy --task crossing
    --horizon 8 --prompts 32 --trajectories 4 --children 8 --seed 2 --overwrite
    --out {out}/rollouts/heldout
rollouts for the audit | rollouts/audit/metadata.json | rmtools rollout --policy {out}/policy --task crossing
    --horizon 8 --prompts 96 --trajectories 24 --children 8 --completions 3 --seed 3 --overwrite
    --out {out}/rollouts/audit
value model | prm/rmtools.json | accelerate launch --config_file {config}
    {recipes}/train_prm.py --config {recipes}/quickstart_prm.yaml --train_rollouts {out}/rollouts/train
    --eval_rollouts {out}/rollouts/heldout --output_dir {out}/prm --seed {seed}
audit | audit/audit.json | rmtools audit --model {out}/prm --rollouts {out}/rollouts/audit --out {out}/audit
prompts | samples/prompts.jsonl | rmtools prompts --task crossing --horizon 8 -n 400 --seed 4
    --overwrite --out {out}/samples/prompts.jsonl
best of 16 | samples/best_of_n.jsonl | rmtools sample --policy {out}/policy --model {out}/prm -n 16
    --prompts {out}/samples/prompts.jsonl --resampling none --out {out}/samples/best_of_n.jsonl
SMC with 16 particles | samples/smc.jsonl | rmtools sample --policy {out}/policy --model {out}/prm -n 16
    --prompts {out}/samples/prompts.jsonl --out {out}/samples/smc.jsonl
verification | verify/verify.json | rmtools verify lm --model {out}/prm --n-prompts 12 --runs 300 --seed 5
    --out {out}/verify
report | summary.json | python {recipes}/quickstart/report.py {out}
"""


def short(path: Path) -> Path:
    """Return the path from here where it lies below, so that the echoed commands are short."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def stages(out: Path, seed: int) -> list[Stage]:
    """Return the stages in order."""
    recipes, programs = short(Path(__file__).resolve().parents[1]), short(Path(sys.executable).parent)
    config = recipes.parent / "accelerate_config.yaml"
    found = []
    for line in STAGES.strip().replace("\n    ", " ").splitlines():
        name, finished, command = line.split(" | ")
        first, *words = shlex.split(command)
        filled = [w.format(out=out, seed=seed, recipes=recipes, config=config) for w in words]
        found.append(Stage(name, out / finished, [str(programs / first), *filled]))
    return found


def main() -> None:
    """Run the stages and say where the report is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--seed", type=int, default=0, help="of the value model's training")
    args = parser.parse_args()
    check_seed(args.seed)
    run_stages(stages(args.out, args.seed), args.out / "stages.json")
    print(
        f"\nreport: {(args.out / 'report.html').resolve()}\nfigures: {(args.out / 'summary.json').resolve()}"
    )


if __name__ == "__main__":
    with exit_on_user_error():
        main()

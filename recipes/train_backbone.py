"""Train a small Llama and its tokenizer from scratch on the solutions of a rollout folder: a backbone for tests.

    rmtools convert --from gsm8k ../shared/data/gsm8k/train.jsonl runs/gsm8k/text
    python recipes/train_backbone.py --rollouts runs/gsm8k/text --out runs/gsm8k/backbone

Where pretrained weights are at hand, use them instead: name them with --model_name_or_path in `rmtools train`.
"""

import argparse
from pathlib import Path

from rmtools.cli.errors import exit_on_user_error, with_dashes
from rmtools.data.rollouts import read_rollouts
from rmtools.files import claim_folder, replacing, write_json
from rmtools.lm.tokenizers import bpe_tokenizer
from rmtools.particles.arguments import check_count, check_positive, check_seed
from rmtools.training.small_models import small_llama, train_language_model

MARK_FILE = "backbone.json"
"""Marks a folder that this recipe wrote: no other is replaced."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rollouts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace a backbone that stands at --out")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    for name in ("steps", "batch", "hidden", "layers", "context"):
        check_count(name, getattr(args, name))
    check_count("vocabulary", args.vocabulary, 300, fix=2048)
    check_positive("learning_rate", args.learning_rate)
    check_seed(args.seed)
    claim_folder(args.out, MARK_FILE, holds="a backbone", overwrite=args.overwrite)
    rows, _ = read_rollouts(args.rollouts)
    prompts, answers = [r.prompt for r in rows], ["".join(r.steps) for r in rows]
    tokenizer = bpe_tokenizer([p + a for p, a in zip(prompts, answers, strict=True)], args.vocabulary)
    with replacing(args.out) as folder:
        train_language_model(
            small_llama(tokenizer, args.hidden, args.layers, args.context, args.seed),
            tokenizer,
            prompts,
            answers,
            folder,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            learning_rate=args.learning_rate,
            seed=args.seed,
            train_sampling_strategy="group_by_length",
            learn_prompts=True,
        )
        write_json(folder / MARK_FILE, {"rollouts": str(args.rollouts), "seed": args.seed})
    print(f"backbone in {args.out}")


if __name__ == "__main__":
    with exit_on_user_error(with_dashes):
        main()

"""Compare candidates for the task of the real model: how often a language model solves each, line by line.

python recipes/real/choose_task.py models/smollm2 > table.md          # half a minute a row on one core

Each candidate has one right solution, so its chance at a temperature is the product of its tokens' chances: one forward
pass a prompt, and no sampling. A chance is a lower bound: another tokenisation of the same text is not counted.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.cli.errors import exit_on_user_error
from rmtools.data.tasks import Counting
from rmtools.data.tasks.counting import KINDS
from rmtools.lm.policy import load_tokenizer

Problem = tuple[str, list[str]]
"""A question, and the lines of its solution."""
TEMPERATURES = (0.5, 0.7, 1.0)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NAMES = ("Tom", "Anna", "Ben", "Lucy", "Sam", "Mia", "Leo", "Emma", "Max", "Zoe", "Jack", "Lily")


def words(rng: np.random.Generator, n: int) -> list[str]:
    return [str(w) for w in rng.choice(KINDS, n, replace=False)]


def counting(steps: int) -> Callable[[np.random.Generator], Problem]:
    task = Counting(steps)

    def draw(rng: np.random.Generator) -> Problem:
        (prompt,), _ = task.prompts(1, rng)
        return prompt.strip(), task.reference(prompt).splitlines()

    return draw


def without_total(rng: np.random.Generator) -> Problem:
    question, lines = counting(4)(rng)
    return question, lines[:-1]


def additions(numbers: list[int]) -> list[str]:
    totals = np.cumsum(numbers)
    return [f"{t - n} + {n} = {t}" for t, n in zip(totals[1:], numbers[1:], strict=True)]


def bare_sums(rng: np.random.Generator) -> Problem:
    numbers = [int(n) for n in rng.integers(1, 6, 5)]
    return f"Add {' + '.join(map(str, numbers))} step by step.", additions(numbers)


def two_digits(rng: np.random.Generator) -> Problem:
    numbers = [int(rng.integers(10, 60)), *(int(n) for n in rng.integers(2, 10, 4))]
    return f"Start with {numbers[0]}. Add {', then '.join(map(str, numbers[1:]))}.", additions(numbers)


def story(rng: np.random.Generator) -> Problem:
    numbers, name, thing = [int(n) for n in rng.integers(1, 6, 4)], rng.choice(NAMES), rng.choice(KINDS)
    told = " ".join(f"{name} gets {n} more." for n in numbers[1:])
    question = f"{name} has {numbers[0]} {thing}s. {told} How many {thing}s does {name} have?"
    return question, additions(numbers)


def weekdays(rng: np.random.Generator) -> Problem:
    start, moves = int(rng.integers(7)), [int(n) for n in rng.integers(1, 4, 4)]
    at = [DAYS[i % 7] for i in np.cumsum([start, *moves])]
    lines = [f"{a} + {n} = {b}" for a, n, b in zip(at, moves, at[1:], strict=False)]
    return f"Start on {at[0]}. Go on {', '.join(map(str, moves))} days.", lines


def numbered(rng: np.random.Generator) -> Problem:
    found = words(rng, 6)
    return f"Number these words: {', '.join(found)}.", [f"{i}. {w}" for i, w in enumerate(found, 1)]


def sort_words(rng: np.random.Generator) -> Problem:
    found = words(rng, 4)
    return f"Sort these words from A to Z: {', '.join(found)}.", sorted(found)


def reverse(rng: np.random.Generator) -> Problem:
    found = words(rng, 4)
    return f"Write these words in reverse order: {', '.join(found)}.", found[::-1]


def look_up(rng: np.random.Generator) -> Problem:
    names, things = [str(n) for n in rng.choice(NAMES, 4, replace=False)], words(rng, 4)
    facts = " ".join(f"{names[i]} has a {things[i]}." for i in rng.permutation(4))
    lines = [f"{n}: {t}" for n, t in zip(names, things, strict=True)]
    return f"{facts} What does each have: {', '.join(names)}?", lines


CANDIDATES = {
    "counting, 4 lines": counting(4),
    "counting, 5 lines": counting(5),
    "counting, no total": without_total,
    "bare sums of 5 digits": bare_sums,
    "running total above 10": two_digits,
    "story with one name": story,
    "weekdays": weekdays,
    "numbering 6 words": numbered,
    "sorting 4 words": sort_words,
    "reversing 4 words": reverse,
    "looking up 4 facts": look_up,
}


class Measure:
    """A model that rates right solutions behind ``shots`` examples, as a chat or raw."""

    def __init__(self, folder: Path, shots: int, n: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.tokenizer = load_tokenizer(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.shots, self.n = shots, n

    def row(self, name: str, chat: bool) -> str:
        """Return the table's row of a candidate."""
        import torch

        draw = CANDIDATES[name]
        examples = [draw(np.random.default_rng([1, i])) for i in range(self.shots)]
        shown = self.text(examples, chat)
        start = self.ids(shown)
        with torch.inference_mode():
            cache = self.model(torch.tensor([start]), use_cache=True).past_key_values
        logs, greedy, tokens = [], [], []
        for i in range(self.n):
            question, lines = draw(np.random.default_rng([0, i]))
            whole = self.text([*examples, (question, lines)], chat).removeprefix(shown)
            before, _, after = whole.rpartition("\n".join(lines))
            asked = self.ids(before)
            parts = [self.ids(f"{line}\n") for line in lines]
            if chat:
                parts[-1] = self.ids(f"{lines[-1]}{after.strip()}")
            target = torch.tensor([t for p in parts for t in p])
            with torch.inference_mode():
                logits = self.model(torch.tensor([asked + target.tolist()]), past_key_values=cache).logits[0]
            cache.crop(-len(asked) - len(target))
            logits = logits[len(asked) - 1 : -1]
            greedy.append(bool((logits.argmax(-1) == target).all()))
            tokens.append(len(target))
            ends = np.cumsum([len(p) for p in parts])[:-1]
            chances = [(logits / t).log_softmax(-1)[range(len(target)), target] for t in TEMPERATURES]
            logs.append([[float(x.sum()) for x in c.tensor_split(ends.tolist())] for c in chances])
        by_line = np.exp(np.asarray(logs))  # (n, temperatures, lines)
        success = by_line.prod(-1).mean(0)
        each_line = " ".join(f"{x:.2f}" for x in by_line[:, TEMPERATURES.index(0.7)].mean(0))
        chances_shown = " | ".join(f"{x:.3f}" for x in success)
        kind = "chat" if chat else "raw"
        return f"| {name} | {kind} | {np.mean(tokens):.0f} | {np.mean(greedy):.2f} | {chances_shown} | {each_line} |"

    def sampled(self, name: str, temperature: float, copies: int = 4) -> str:
        """Return how many of ``copies`` chat solutions of each prompt that `generate` draws are right."""
        import torch
        from transformers import GenerationConfig

        draw = CANDIDATES[name]
        examples = [draw(np.random.default_rng([1, i])) for i in range(self.shots)]
        shown = self.text(examples, True)
        start = self.ids(shown)
        law = GenerationConfig(do_sample=True, temperature=temperature, top_k=0, max_new_tokens=80)
        law.eos_token_id, law.pad_token_id = [self.tokenizer.eos_token_id], self.tokenizer.eos_token_id
        torch.manual_seed(0)
        right = []
        for i in range(self.n):
            question, lines = draw(np.random.default_rng([0, i]))
            whole = self.text([*examples, (question, lines)], True).removeprefix(shown)
            ids = start + self.ids(whole.rpartition("\n".join(lines))[0])
            with torch.inference_mode():
                cache = self.model(torch.tensor([start]), use_cache=True).past_key_values
                cache.batch_repeat_interleave(copies)
                found = self.model.generate(
                    torch.tensor([ids] * copies),
                    attention_mask=torch.ones(copies, len(ids), dtype=torch.long),
                    past_key_values=cache,
                    generation_config=law,
                )
            texts = self.tokenizer.batch_decode(found[:, len(ids) :], skip_special_tokens=True)
            right += [text.split("\n")[: len(lines)] == lines for text in texts]
        return f"{name}, T = {temperature}: {sum(right)} of {len(right)} sampled solutions are right"

    def text(self, problems: list[Problem], chat: bool) -> str:
        """Return questions and their solutions as the model sees them."""
        if not chat:
            return "".join(f"{question}\n" + "\n".join(lines) + "\n\n" for question, lines in problems)
        turns = [
            {"role": role, "content": text}
            for question, lines in problems
            for role, text in (("user", question), ("assistant", "\n".join(lines)))
        ]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False))

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text, without special ones around it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=24, help="prompts of each candidate")
    parser.add_argument("--shots", type=int, default=4, help="examples in front of each prompt")
    parser.add_argument("--only", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument(
        "--sample", type=float, metavar="T", help="also draw 4 solutions a prompt at this temperature"
    )
    parser.add_argument("--format", choices=["chat", "raw"], default="chat")
    args = parser.parse_args()
    measure = Measure(args.model, args.shots, args.prompts)
    print(
        "| candidate | format | tokens | greedy | "
        + " | ".join(f"T = {t}" for t in TEMPERATURES)
        + " | each line, T = 0.7 |"
    )
    print("| --- " * (5 + len(TEMPERATURES)) + "|")
    for name in args.only:
        print(measure.row(name, args.format == "chat"), flush=True)
    for name in args.only if args.sample else ():
        print(measure.sampled(name, args.sample), flush=True)


if __name__ == "__main__":
    with exit_on_user_error():
        main()

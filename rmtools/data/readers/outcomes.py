"""Formats of whole solutions with an outcome: rollouts, gsm8k, gsm8k-solutions, and, as token ids, vgs."""

import functools
import itertools
from typing import TYPE_CHECKING

from rmtools.data.readers.row import (
    Continuation,
    Dropped,
    Field,
    Found,
    Options,
    RowError,
    branched,
    public_format,
    rollout,
    shown,
)
from rmtools.errors import UserError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASSISTANT = "<｜Assistant｜>"
"""Special token of the DeepSeek-R1 chat template: the solution begins behind it."""
RIGHT, UNFINISHED = 1, 2
"""Labels of vgs."""


@public_format("rollouts", prompt=str, correctness=list)
def rollouts(row: Field, options: Options) -> Found:
    """Read several solutions of one prompt with their outcomes; ``steps``, if given, say how they are cut."""
    prompt, outcomes = row["prompt"].text(), row["correctness"].items()
    if not row.has("completions") and not row.has("steps"):
        raise RowError("completions", "is missing, and so is steps")
    steps, texts = (_per_solution(row, name, len(outcomes)) for name in ("steps", "completions"))
    for i, outcome in enumerate(outcomes):
        if steps and steps[i].value is not None:
            cut = steps[i].texts()
        elif texts:
            cut = options.cut(texts[i].text(), "blank-line")
        else:
            raise steps[i].wrong("is null, and there are no completions to cut")
        yield rollout(
            options, prompt, cut, reward=outcome.unit_or_null(), reference=row.reference("reference")
        )
    if not outcomes:
        yield Dropped("prompt without any solution")


@public_format("best-of-n", {"prompt": "question"}, prompt=str, answers=list, label=list)
def best_of_n(row: Field, options: Options) -> Found:
    """Read the solutions of a best-of-N set, ``answers``, with their outcomes, ``label``."""
    return rollouts.reader(row.under({"completions": "answers", "correctness": "label"}), options)


def _per_solution(row: Field, name: str, count: int) -> list[Field]:
    """Return the items of a list with one item per solution; empty if the row has none."""
    found = row[name].items() if row.has(name) else []
    if row.has(name) and len(found) != count:
        raise row[name].wrong(f"has {len(found)} items for {count} of correctness")
    return found


@public_format("gsm8k", question=str, answer=str)
def gsm8k(row: Field, options: Options) -> Found:
    """Read a question of GSM8K (arXiv 2110.14168) with its reference solution, a right one by definition."""
    question, answer = row["question"].text(), row["answer"].text()
    final = _after("####", row["answer"])
    yield rollout(options, question, options.cut(answer, "newline"), reward=1.0, reference=final)


@public_format("gsm8k-solutions", question=str, ground_truth=str)
def gsm8k_solutions(row: Field, options: Options) -> Found:
    """Read a row of GSM8K's model solutions: one trajectory for each model, its outcome ``is_correct``."""
    question, final = row["question"].text(), _after("A:", row["ground_truth"])
    models = [row[name] for name, value in row.value.items() if isinstance(value, dict)]
    if not models:
        raise RowError("is_correct", "is in no field of the row: there is no model's solution")
    for model in models:
        right = model["is_correct"].flag()
        steps = options.cut(model["solution"].text(), "newline")
        yield rollout(options, question, steps, reward=float(right), reference=final)


def _after(mark: str, field: Field) -> str:
    """Return the final answer: what the last line says behind ``mark``."""
    line = field.text().rstrip().rsplit("\n", 1)[-1]
    if not line.startswith(mark) or not line.removeprefix(mark).strip():
        raise field.wrong(f"has no final answer behind {mark} in its last line {shown(line)}")
    return line.removeprefix(mark).strip()


@public_format("vgs", problem=str, roll_in_ids=list, roll_outs_ids=list, labels=list)
def vgs(row: Field, options: Options) -> Found:
    """Read one problem of OpenR1-VM (value-guided search, arXiv 2505.17373): a trajectory for each distinct roll-in.

    A row has n pairs (56 there): ``roll_in_ids[i]`` (the chat prompt and the beginning of a solution by one of several
    models), ``roll_outs_ids[i]`` (its continuation by the small policy) and ``labels[i]``: 0 ended wrong, 1 ended
    right, 2 cut off. The reward is 1 for label 1 and 0 for the others, as its authors train it.

    Pairs with one roll-in are independent continuations of one prefix: the first is the trajectory, the first steps of the
    others are its children there, and their rewards its completions. A step ends where the roll-in ends.
    """
    row["problem"].text()
    heads, tails, labels = _ids(row["roll_in_ids"]), _ids(row["roll_outs_ids"]), row["labels"].items()
    if not len(heads) == len(tails) == len(labels):
        raise row["labels"].wrong(f"has {len(labels)} for {len(heads)} roll-ins and {len(tails)} roll-outs")
    answer = row.reference("processed_answer", "answer")
    decode = functools.partial(_load(options.tokenizer).decode, skip_special_tokens=False)
    opening = str(_load(options.tokenizer).bos_token or "")
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, head in enumerate(heads):
        groups.setdefault(tuple(head.value), []).append(i)
    for ids, members in groups.items():
        prompt, mark, begun = str(decode(list(ids))).partition(ASSISTANT)
        # Joined before decoding: the cut between the two may fall inside a character, which is then left to the roll-out.
        wholes = [str(decode([*ids, *tails[i].value])).partition(ASSISTANT)[2] for i in members]
        same = itertools.takewhile(lambda at: len(set(at)) == 1, zip(begun, *wholes, strict=False))
        begun = "".join(first for first, *_ in same)
        if not mark or not all(whole[len(begun) :].strip() for whole in wholes):
            raise heads[members[0]].wrong(f"has no {ASSISTANT} with a solution behind it: wrong tokenizer?")
        before = options.cut(begun, "blank-line") if begun.strip() else []
        rest = [whole[len(begun) if before else 0 :] for whole in wholes]
        own, *others = [
            Continuation(options.cut(text, "blank-line"), float(labels[i].index(0, UNFINISHED) == RIGHT))
            for i, text in zip(members, rest, strict=True)
        ]
        # The opening special token is left to whoever tokenises the prompt again.
        yield branched(options, prompt.removeprefix(opening) + mark, before, own, others, reference=answer)


def _ids(field: Field) -> list[Field]:
    """Return lists of token ids."""
    found = field.items()
    for ids in found:
        # A row has a million of them.
        if not isinstance(ids.value, list) or not all(isinstance(token, int) for token in ids.value):
            wrong = next(token for token in ids.items() if not isinstance(token.value, int))
            raise wrong.wrong("must be a token id")
    return found


@functools.lru_cache(maxsize=1)
def _load(name: str | None) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    if name is None:
        raise UserError(
            "the format vgs stores token ids, and no tokenizer is named",
            "name its folder, or deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B, with `tokenizer`",
        )
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"the tokenizer {name} cannot be loaded: {reason(error)}", "name its folder"
        ) from error

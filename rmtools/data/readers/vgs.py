"""Roll-ins and roll-outs of value-guided search (arXiv 2505.17373), the data set OpenR1-VM: token ids and outcomes.

A row has one problem and n pairs (56 there): ``roll_in_ids[i]`` (the chat prompt and the beginning of a solution by
one of several models), ``roll_outs_ids[i]`` (its continuation by the small policy) and ``labels[i]``: 0 ended wrong, 1
ended right, 2 cut off. The reward is 1 for label 1 and 0 for the others, as its authors train it.
"""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rmtools.data.readers.outcomes import cut
from rmtools.data.readers.row import (
    Dropped,
    Format,
    Options,
    Row,
    RowError,
    get,
    index,
    items,
    reference,
    rollout,
    text,
)
from rmtools.data.rollouts import Rollout
from rmtools.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASSISTANT = "<｜Assistant｜>"
"""Special token of the DeepSeek-R1 chat template: the solution begins behind it."""
RIGHT, UNFINISHED = 1, 2


def vgs(row: Row, options: Options) -> Iterator[Rollout | Dropped]:
    """Read one problem: a trajectory for each pair of roll-in and roll-out."""
    text(get(row, "problem"), "problem")
    pairs, ends = ids(row, "roll_in_ids"), ids(row, "roll_outs_ids")
    judged = items(get(row, "labels"), "labels")
    if not len(pairs) == len(ends) == len(judged):
        raise RowError("labels", f"has {len(judged)} for {len(pairs)} roll-ins and {len(ends)} roll-outs")
    answer = reference(row.get("processed_answer", row.get("answer")))
    tokenizer = load(options.tokenizer)
    for i, label in enumerate(judged):
        reward = float(index(label, f"labels[{i}]", 0, UNFINISHED) == RIGHT)
        prompt, solution = decode(tokenizer, pairs[i], ends[i], f"roll_in_ids[{i}]")
        yield rollout(options, prompt, cut(solution, options, "blank-line"), reward=reward, reference=answer)


def ids(row: Row, field: str) -> list[Any]:
    """Return lists of token ids."""
    found = items(get(row, field), field)
    for i, x in enumerate(found):
        for k, token in enumerate(items(x, f"{field}[{i}]")):
            if not isinstance(token, int):
                raise RowError(f"{field}[{i}][{k}]", "must be a token id")
    return found


def decode(
    tokenizer: "PreTrainedTokenizerBase", head: list[int], tail: list[int], field: str
) -> tuple[str, str]:
    """Return prompt and solution as text. The opening special token is left to whoever tokenises the prompt again."""
    # Joined before decoding: the cut between the two may fall inside a character.
    whole = str(tokenizer.decode(head + tail, skip_special_tokens=False))
    prompt, mark, solution = whole.partition(ASSISTANT)
    if not mark or not solution.strip():
        raise RowError(field, f"has no {ASSISTANT} with a solution behind it: wrong tokenizer?")
    return prompt.removeprefix(str(tokenizer.bos_token or "")) + mark, solution


@functools.lru_cache(maxsize=1)
def load(name: str | None) -> "PreTrainedTokenizerBase":
    """Load the tokenizer; raises ``UserError`` where none is named or it cannot be loaded."""
    from transformers import AutoTokenizer

    if name is None:
        raise UserError(
            "the format vgs stores token ids, and no tokenizer is named",
            "pass --tokenizer with a folder or deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        )
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the tokenizer {name} cannot be loaded: {str(error).splitlines()[0]}", "name its folder"
        ) from error


FORMATS = {"vgs": Format({"problem": str, "roll_in_ids": list, "roll_outs_ids": list, "labels": list}, vgs)}

"""Between token ids and text: what the adapters share.

A scorer of rmtools is handed token ids; other packages read text, or ids of their own. The functions here take a
batch of ids apart into prompt and steps, and back.
"""

import contextvars
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rmtools.errors import UserError
from rmtools.lm.steps import NONE, EncodedTree, StepTokenizer


def prompt_text(steps: StepTokenizer, ids: Sequence[int]) -> str:
    """Return the text of a prompt given as token ids, without the special tokens that its tokenizer puts in front.

    Raises
    ------
    UserError
        If the text has other token ids: what another package reads would not be this prompt.
    """
    given = [int(i) for i in ids]
    added = list(steps.tokenizer("")["input_ids"])
    bare = given[len(added) :] if added and given[: len(added)] == added else given
    text = steps.step_text(bare)
    if steps.prompt_ids(text) != given:
        raise UserError(
            f"the tokenizer does not give the prompt back: {text[:60]!r} has other token ids",
            "use a tokenizer that decodes to the text it encoded",
        )
    return text


def answer_text(steps: StepTokenizer, ids: Sequence[int]) -> str:
    """Return the text of one step without an end-of-sequence token: it is no part of an answer elsewhere."""
    plain = [int(i) for i in ids]
    return steps.step_text(plain[:-1] if plain and plain[-1] == steps.eos_id else plain)


def tree_parts(tree: EncodedTree) -> tuple[list[int], list[list[int]], list[list[list[int]]]]:
    """Return the token ids of the prompt, of each step, and of each alternative next step by depth."""
    ids, reads = tree.ids.tolist(), tree.reads.tolist()
    steps = [ids[a + 1 : b + 1] for a, b in itertools.pairwise(reads)]
    children: list[list[list[int]]] = []
    last = reads[-1]
    for at in tree.child_reads:
        children.append([])
        for end in at.tolist():
            children[-1].append(ids[last + 1 : end + 1])
            last = end
    return ids[: reads[0] + 1], steps, children


def tree_of_ids(prompt: Sequence[int], steps: Sequence[Sequence[int]]) -> EncodedTree:
    """Return a trajectory without alternatives for one forward pass, from token ids that are not to be made anew."""
    ids = [*prompt, *(i for s in steps for i in s)]
    reads = len(prompt) - 1 + np.cumsum([0, *(len(s) for s in steps)])
    n = len(ids)
    arrays = [np.asarray(x, dtype=np.int32) for x in (ids, range(n), np.zeros(n), range(1, n + 1), reads)]
    return EncodedTree(arrays[0], arrays[1], arrays[2], arrays[3], arrays[4], [NONE] * len(steps))


def outside_loop(function: Callable[[], Any]) -> Any:
    """Call ``function`` where no event loop runs, so that it may start one: in a thread if one runs here."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    # Settings of the other package may live in context variables: a new thread would not see them.
    context = contextvars.copy_context()
    outcome: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            outcome.append((context.run(function), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def not_installed(package: str, extra: str, error: ImportError) -> UserError:
    """Return the error for an optional package that is missing."""
    return UserError(
        f"the adapter needs {package}, which cannot be imported ({error})",
        f"pip install 'rmtools[{extra}]'",
    )

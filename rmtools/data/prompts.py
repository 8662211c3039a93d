r"""Prompts on disk: JSON lines with ``prompt`` and, if a task needs it, the right ``answer``.

A ``prompt`` is taken as it stands. A ``question`` (the files of GSM8K) or ``problem`` (MATH) becomes a prompt by
appending the task's delimiter, so that prompt and steps tokenise apart. Of an ``answer`` with ``####`` (GSM8K) the rest
after it counts. Unknown fields, such as ``prompt_id``, are ignored.

>>> read_prompt({"question": "6 * 7?", "answer": "It is 42.\\n#### 42"}, "test.jsonl, line 1")
Prompt(text='6 * 7?\n', reference='42')
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.data.collect import prompt_id
from rmtools.data.tasks import Referenced, Task
from rmtools.errors import UserError
from rmtools.files import json_lines, read_json_lines
from rmtools.lm.protocol import StepPolicy

QUESTIONS = ("question", "problem")


@dataclass(frozen=True)
class Prompt:
    """A prompt and, if the file gives it, its right answer."""

    text: str
    reference: str | None = None


def load_prompts(path: str | Path, delimiter: str = "\n") -> list[Prompt]:
    r"""Load the prompts of a JSONL file, in order.

    Parameters
    ----------
    path : path
        One object per line, with ``prompt``, ``question`` (GSM8K) or ``problem`` (MATH), and perhaps ``answer``.
    delimiter : str
        Text that ends a step; appended to a question or problem, never to a ``prompt``.

    Returns
    -------
    list of Prompt
        ``rmtools.sample`` and ``rmtools.collect_rollouts`` take it, or a part of it.

    Raises
    ------
    UserError
        If the file is missing or has no prompt, or a line is not an object with a text ``prompt`` (the line's number is
        named).

    Examples
    --------
    >>> import rmtools as rm
    >>> prompts = rm.load_prompts("prompts.jsonl")
    >>> len(prompts), prompts[0].text, prompts[0].reference
    (8, 'r1 . \nc13 . \nc23 . \nc24 . \n', None)
    """
    if not isinstance(path, str | Path):
        raise UserError(
            f"`path` must name a JSONL file, got {type(path).__name__}",
            "prompts in memory need no loading: pass the list itself to rmtools.sample or rmtools.collect_rollouts",
        )
    try:
        lines = read_json_lines(Path(path))
        found = [read_prompt(row, f"{path}, line {number}", delimiter) for number, row in lines]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the prompts file {path} cannot be read: {error}",
            "name a JSONL file with one prompt per line; `rmtools prompts` writes one",
        ) from error
    if not found:
        raise UserError(f"the prompts file {path} is empty", "`rmtools prompts` writes one")
    return found


def read_prompts(path: str | Path, task: Task | None = None) -> list[str]:
    """Return the texts of `load_prompts`; fill the answers into a ``task`` that compares them.

    Raises ``UserError`` as `load_prompts` does, and if a prompt has two answers.
    """
    return fill_references(load_prompts(path, "\n" if task is None else task.delimiter), task, str(path))


def prompt_texts(prompts: Sequence[Any], task: Task | None) -> list[str]:
    """Return the texts of prompts given in Python; fill their answers into a ``task`` that compares them.

    Parameters
    ----------
    prompts : sequence of str, Prompt or dict
        Dictionaries are rows as `load_prompts` reads them.
    task : Task or None

    Raises
    ------
    UserError
        If ``prompts`` is no sequence or empty, an item is none of these, or a prompt has two answers.
    """
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        raise UserError(
            f"`prompts` must be a list of prompts, got {type(prompts).__name__}",
            "pass [text], or rmtools.load_prompts(path) for a file",
        )
    if not prompts:
        raise UserError("`prompts` is empty", "pass at least one")
    delimiter = "\n" if task is None else task.delimiter
    found = []
    for i, given in enumerate(prompts):
        if not isinstance(given, str | dict | Prompt):
            raise UserError(
                f"prompt {i} is no text, got {type(given).__name__}",
                "pass texts, rows with a prompt, or items of rmtools.load_prompts(path)",
            )
        row = {"prompt": given} if isinstance(given, str) else given
        found.append(row if isinstance(row, Prompt) else read_prompt(row, f"prompt {i}", delimiter))
    return fill_references(found, task, "the list of prompts")


def fill_references(prompts: Sequence[Prompt], task: Task | None, source: str) -> list[str]:
    """Return the texts; give the answers to a ``task`` that compares them; raise ``UserError`` if a prompt has two."""
    if isinstance(task, Referenced):
        found: dict[str, str] = {}
        for p in prompts:
            if p.reference is not None and found.setdefault(p.text, p.reference) != p.reference:
                raise UserError(
                    f"{source} has two answers to the prompt {p.text[:40]!r}: {found[p.text]!r} and {p.reference!r}",
                    "keep one of them",
                )
        task.references.update(found)
    return [p.text for p in prompts]


def read_stream(stream: Iterable[str], task: Task | None) -> tuple[list[str], bool]:
    """Return the prompts of standard input, and whether they are plain lines.

    Input that begins with ``{`` is JSON lines, read as a file of prompts; otherwise every line that is not blank is a prompt
    as `typed_prompts` takes it. Raises ``UserError`` as these do.
    """
    name, lines = "standard input", list(stream)
    if "".join(lines).lstrip().startswith("{"):
        delimiter = "\n" if task is None else task.delimiter
        rows = [read_prompt(row, f"{name}, line {n}", delimiter) for n, row in json_lines(lines, name)]
        return fill_references(rows, task, name), False
    return typed_prompts([line.rstrip("\r\n") for line in lines if line.strip()], task), True


def typed_prompts(texts: Sequence[str], task: Task | None) -> list[str]:
    """Return texts as prompts that end with the task's delimiter; raise ``UserError`` if there is none or one is blank."""
    if not texts or not all(text.strip() for text in texts):
        raise UserError("a prompt is blank" if texts else "standard input has no prompt", "give a text")
    delimiter = "\n" if task is None else task.delimiter
    return [text if text.endswith(delimiter) else text + delimiter for text in texts]


def read_prompt(row: Any, where: str, delimiter: str = "\n") -> Prompt:
    """Return the prompt of a row, with ``delimiter`` appended to a question; raise ``UserError`` naming ``where``."""
    values = row if isinstance(row, dict) else {}
    name = next((n for n in ("prompt", *QUESTIONS) if n in values), "prompt")
    text = values.get(name)
    if not isinstance(text, str) or not text:
        raise UserError(
            f'{where} has no text field "prompt" (or {" or ".join(QUESTIONS)})',
            'each line looks like {"prompt": "…"} or {"prompt": "…", "answer": "…"}',
        )
    answer = values.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise UserError(f'{where}: the field "answer" is no text or number', "write it as text")
    return Prompt(
        text if name == "prompt" else text.strip() + delimiter,
        None if answer is None else str(answer).rsplit("####", 1)[-1].strip() or None,
    )


def prompts_text(prompts: Sequence[str]) -> str:
    """Return prompts as JSON lines."""
    rows = [json.dumps({"prompt_id": prompt_id(p), "prompt": p}) for p in prompts]
    return "\n".join(rows) + "\n"


def prompts_from(source: str, task: Task, rng: np.random.Generator) -> tuple[list[str], int]:
    """Return prompts of a file, or drawn from the task if ``source`` is a number, and the number of unsolvable ones."""
    if not source.lstrip("-").isdigit():
        return read_prompts(source, task), 0
    if int(source) < 1:
        raise UserError(f"the number of prompts must be at least 1, got {source}", "ask for 64, say")
    return task.prompts(int(source), rng)


def check_prompts(prompts: Sequence[str], task: Task | None, policy: StepPolicy) -> None:
    """Raise ``UserError``, before any work, if a prompt does not fit the task or leaves the policy no room."""
    policy.check_length([policy.steps.prompt_ids(p) for p in prompts])
    for prompt in prompts:
        if task is not None:
            task.check_prompt(prompt)
        policy.steps.require_known(prompt)

"""Prompts on disk: JSON lines with ``prompt`` and, optionally, ``prompt_id``."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rmtools.data.collect import prompt_id
from rmtools.data.tasks import Task
from rmtools.errors import UserError
from rmtools.files import write_text
from rmtools.lm.policy import Policy


def read_prompts(path: str | Path) -> list[str]:
    """Return the prompts of a JSONL file, in order.

    Raises
    ------
    UserError
        If it is missing or empty, or a line is not an object with a text ``prompt`` (the line's number is named).
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the prompts file {path} cannot be read: {error}",
            "name a JSONL file with a prompt a line; `rmtools prompts` writes one",
        ) from error
    found = [
        parse_line(path, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()
    ]
    if not found:
        raise UserError(
            f"the prompts file {path} is empty",
            "`rmtools prompts --task crossing -n 16 --out FILE` writes one",
        )
    return found


def parse_line(path: str | Path, number: int, line: str) -> str:
    """Return the prompt of one line; raises ``UserError`` naming the line."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {number} is not valid JSON: {error}", "repair or remove the line"
        ) from error
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise UserError(
            f'{path}, line {number} has no text field "prompt"', 'each line looks like {"prompt": "…"}'
        )
    return prompt


def write_prompts(path: str | Path, prompts: Sequence[str]) -> None:
    """Write prompts as JSON lines, in one rename."""
    rows = [json.dumps({"prompt_id": prompt_id(p), "prompt": p}) for p in prompts]
    write_text(Path(path), "\n".join(rows) + "\n")


def prompts_from(source: str, task: Task, rng: np.random.Generator) -> tuple[list[str], int]:
    """Return prompts from a file, or drawn from the task where ``source`` is a number; and how many were unsolvable."""
    if not source.lstrip("-").isdigit():
        return read_prompts(source), 0
    if int(source) < 1:
        raise UserError(f"the number of prompts must be at least 1, got {source}", "--prompts 64, say")
    return task.prompts(int(source), rng)


def check_prompts(prompts: Sequence[str], task: Task, policy: Policy) -> None:
    """Raise ``UserError``, before any work, where a prompt is not the task's or leaves the policy no room."""
    policy.check_length([policy.steps.prompt_ids(p) for p in prompts])
    for prompt in prompts:
        task.reward(prompt, [])

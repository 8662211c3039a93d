"""The contract of `Task` and `ExactTask`: prompts, rewards, forms and labels agree."""

from collections.abc import Mapping, Sequence

import numpy as np

from rmtools.data.tasks.protocol import ExactTask, Task
from rmtools.errors import UserError
from rmtools.testing.laws import require


def check_task(
    task: Task,
    rng: np.random.Generator,
    *,
    prompts: Sequence[str] | None = None,
    n: int = 8,
    solutions: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Check the contract of :class:`rmtools.data.tasks.protocol.Task`.

    Its prompts can be verified and are drawn by the generator alone; rewards are in [0, 1] and the same whenever a solution is
    verified; listed steps end with the delimiter and make well-formed solutions. Of an exact task also: demonstrations are
    well-formed, one of full care earns a reward, what earns 1 has right steps only, and steps that are not listed are not right.
    Which listed steps are right, and whether wrong solutions of other tasks earn too much, is not checked.

    Parameters
    ----------
    task : Task
    rng : np.random.Generator
    prompts : sequence of str, optional
        Default: the task draws them. Needed if its prompts come from a file.
    n : int
        Prompts to draw.
    solutions : mapping of str to sequence of str, optional
        For some prompts a right solution, which is well-formed and earns 1. Otherwise that is not checked of inexact tasks.

    Raises
    ------
    AssertionError
        Names the law, and the prompt or solution.
    """
    require(isinstance(task.name, str) and task.name, f"name is text, got {task.name!r}")
    require(task.delimiter, "the delimiter is not empty")
    require(task.horizon >= 1, f"the horizon is at least 1, got {task.horizon}")
    prompts = _drawn_prompts(task, n, int(rng.integers(2**32))) if prompts is None else prompts
    found = [(p, s) for p in prompts for s in _solutions(task, p, rng)]
    for prompt in prompts:
        try:
            task.check_prompt(prompt)
        except UserError as error:
            raise AssertionError(f"prompts can be verified: {prompt!r} is refused, {error}") from error
    for prompt, right in (solutions or {}).items():
        fine = task.well_formed(right) and task.reward(prompt, right) == 1
        require(fine, f"a right solution is well-formed and earns 1: {right} of {prompt!r}")
        found.append((prompt, list(right)))
    if isinstance(task, ExactTask):
        careful = ((p, task.demonstration(p, 1.0, rng)) for _ in range(20) for p in prompts)
        require(any(task.reward(p, s) > 0 for p, s in careful), "some careful demonstration earns a reward")
    rewards = [task.reward(p, s) for p, s in found]
    for (prompt, steps), reward in zip(found, rewards, strict=True):
        require(0 <= reward <= 1, f"rewards are in [0, 1], got {reward} for {steps} of {prompt!r}")
        require(isinstance(task.well_formed(steps), bool | np.bool_), f"well_formed gives a bool: {steps}")
    again = [task.reward(p, s) for p, s in reversed(found)][::-1]
    for (prompt, steps), one, two in zip(found, rewards, again, strict=True):
        require(one == two, f"the verifier is deterministic: {one}, then {two} for {steps} of {prompt!r}")


def _drawn_prompts(task: Task, n: int, seed: int) -> list[str]:
    """Return prompts of the task; raise ``AssertionError`` if they are not ``n`` texts, drawn by the generator alone."""
    prompts, left_out = task.prompts(n, np.random.default_rng(seed))
    fine = len(prompts) == n and all(isinstance(p, str) and p for p in prompts)
    require(fine, f"prompts(n) gives n texts, got {prompts!r} for {n}")
    require(left_out >= 0, f"prompts(n) also gives a number of prompts left out, got {left_out}")
    again, _ = task.prompts(n, np.random.default_rng(seed))
    require(again == prompts, "two drawings of prompts by generators of one seed differ")
    return prompts


def _solutions(task: Task, prompt: str, rng: np.random.Generator) -> list[list[str]]:
    """Return finished solutions of a prompt, right and wrong; check those that the task itself writes."""
    end = task.delimiter
    found = [[end], [f"no step of any task{end}"], [f"{i}{end}" for i in range(task.horizon)]]
    choices = task.step_choices(prompt, [])
    if choices is not None:
        require(choices, f"step_choices lists every step, got none for {prompt!r}")
        odd = [c for c in choices if not c.endswith(end) or c.count(end) != 1]
        require(not odd, f"a listed step ends with its one delimiter: {odd[:1]}")
        found += [[str(c) for c in rng.choice(choices, size=task.horizon)] for _ in range(4)]
        require(
            all(map(task.well_formed, found[3:])), f"solutions of listed steps are well-formed: {found[3:]}"
        )
    if isinstance(task, ExactTask):
        fine = not any(task.right_steps(prompt, found[1]))
        require(fine, f"a step that is not listed is not right: {found[1]}")
        for care in (0.0, 0.5, 1.0):
            steps = task.demonstration(prompt, care, rng)
            fine = 1 <= len(steps) <= task.horizon and task.well_formed(steps)
            require(fine, f"a demonstration is well-formed and within the horizon: {steps}")
            right = task.right_steps(prompt, steps)
            require(len(right) == len(steps), f"right_steps gives one bool per step: {right} for {steps}")
            fine = all(right) or task.reward(prompt, steps) < 1
            require(fine, f"a solution with reward 1 has right steps only: {right} for {steps} of {prompt!r}")
            found.append(steps)
    return found

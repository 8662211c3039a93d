"""Load a checkpoint with the policy and task it remembers, or those that are named instead."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rmtools.errors import UserError

if TYPE_CHECKING:
    from rmtools.data.tasks import Task
    from rmtools.lm.checkpoint import CheckpointSettings
    from rmtools.lm.precision import Placement
    from rmtools.lm.protocol import Scorer, StepPolicy
    from rmtools.lm.steps import StepSettings, StepTokenizer

    Check = Callable[[Task | None, CheckpointSettings | None, StepTokenizer, int | None], object]

NO_TASK = "none"


@dataclass(frozen=True)
class Loaded:
    """A value model ready to use; ``settings`` are those of a checkpoint, None for a published reward model."""

    value: "Scorer"
    settings: Any
    policy: Any
    task: Any


def load_with(
    outside: "Callable[[StepSettings], Scorer]",
    policy: "str | Callable[..., StepPolicy] | None",
    task: str | None,
    horizon: int | None,
    placement: "Placement",
    check: "Check | None" = None,
) -> Loaded:
    """Return a published reward model, which remembers neither policy nor task, with those that are named.

    ``outside(steps)`` loads it. A function as ``policy`` connects to one: ``policy(steps, law)``. Steps end as the task says;
    without one at blank lines. ``check`` as that of `load`.
    """
    from rmtools.data.tasks import load_task
    from rmtools.lm.formats.load import STEPS
    from rmtools.lm.policy import load_policy
    from rmtools.lm.sampling_law import SamplingLaw
    from rmtools.lm.steps import StepSettings

    if policy is None:
        raise UserError("a published reward model does not remember its policy", "name it with `policy`")
    chosen = None if task in (None, NO_TASK) else load_task(str(task), horizon)
    steps = STEPS if horizon is None else StepSettings(STEPS.delimiter, horizon)
    if chosen is not None:
        steps = StepSettings(chosen.delimiter, chosen.horizon)
    if callable(policy):
        return Loaded(outside(steps), None, policy(steps, SamplingLaw()), chosen)
    early = None if check is None else partial(check, chosen, None)
    source = load_policy(policy, steps, 1.0, placement.device, placement.dtype, early)
    return Loaded(outside(steps), None, source, chosen)


def load(
    model: str | Path,
    policy: "str | Callable[..., StepPolicy] | None",
    task: str | None,
    horizon: int | None,
    values: "Literal['apart', 'shared'] | Callable[[], Scorer]" = "apart",
    placement: "Placement | None" = None,
    task_needed: bool = True,
    check: "Check | None" = None,
) -> Loaded:
    """Load a checkpoint with the policy and task it remembers, or those that are named instead.

    A task that compares answers does not know them yet: ``read_prompts(path, task)`` and ``prompts_from`` read them from the
    prompts file. With ``values`` shared an adapter on the policy's own weights uses these, in memory once; a function connects to
    the server that holds the checkpoint's weights. A function as ``policy`` connects to one:
    ``policy(steps, law, device=device)``.
    Unless ``task_needed``, the task may be None: nothing names one, or `NO_TASK` is named.
    ``check(task, settings, steps, context)`` is called before any weights are read, as that of `load_policy`; not if the policy
    is connected to.

    Raises
    ------
    UserError
        Also if the task has another number of steps than the checkpoint was trained for.
    """
    from rmtools.lm.checkpoint import load_value_model, loadable_settings, require_recorded
    from rmtools.lm.hub import find_model
    from rmtools.lm.policy import load_policy
    from rmtools.lm.precision import Placement

    where = placement or Placement()
    model = find_model(model).pinned
    settings = loadable_settings(model)
    without = not task_needed and (task == NO_TASK or not (task or settings.task))
    chosen = None if without else task_of(model, settings, task, horizon)
    if callable(policy):
        value = (
            values()
            if callable(values)
            else load_value_model(model, device=where.device, dtype=where.dtype)[0]
        )
        served = policy(value.steps, settings.law, device=getattr(value, "device", None))
        return Loaded(value, settings, served, chosen)
    if not policy:
        require_recorded(model, "policy", settings.policy)
    source = load_policy(
        policy or settings.policy,
        settings.steps,
        settings.law,
        where.device,
        where.dtype,
        None if check is None else partial(check, chosen, settings),
    )
    if callable(values):
        return Loaded(values(), settings, source, chosen)
    value, settings = load_value_model(
        model, device=where.device, beside=source if values == "shared" else None, dtype=where.dtype
    )
    return Loaded(value, settings, source, chosen)


def task_of(
    model: str | Path, settings: "CheckpointSettings", task: str | None, horizon: int | None
) -> "Task":
    """Return the task that is named or remembered; raise ``UserError`` if its horizon is not the checkpoint's."""
    from rmtools.data.tasks import load_task

    if not task and not settings.task:
        raise UserError(
            f"the checkpoint {model} does not name its task: its training data did not",
            "name it with `task`, for example answers if prompts have right answers",
        )
    chosen = load_task(task or settings.task, horizon or settings.horizon, settings.steps.delimiter)
    if chosen.horizon != settings.steps.max_steps:
        raise UserError(
            f"the task has {chosen.horizon} steps, the checkpoint {model} was trained for {settings.steps.max_steps}: "
            "solutions would end elsewhere than its values assume",
            f"leave `horizon` out, or pass horizon={settings.steps.max_steps}",
        )
    return chosen

"""Tasks by name."""

from collections.abc import Callable
from typing import TypeVar

from rmtools.data.tasks.answers import AnswerTask
from rmtools.data.tasks.arithmetic import Arithmetic
from rmtools.data.tasks.counting import Counting
from rmtools.data.tasks.crossing import Crossing
from rmtools.data.tasks.custom import CallableTask, load_function
from rmtools.data.tasks.protocol import ExactTask, Task
from rmtools.errors import UserError

T = TypeVar("T")
EXACT: dict[str, Callable[[int], ExactTask]] = {
    "crossing": Crossing,
    "crossing-silent": lambda horizon: Crossing(horizon, silent=True),
    "arithmetic": Arithmetic,
    "arithmetic-silent": lambda horizon: Arithmetic(horizon, silent=True),
}
# Default horizon and delimiter; longer solutions are cut. GSM8K references have at most 12 lines. Solutions of
# MATH are written in paragraphs: an empty line is what policies put between their steps.
ANSWERS = {"gsm8k": (16, "\n"), "math": (32, "\n\n"), "answers": (16, "\n")}
NAMES = (*EXACT, "counting", *ANSWERS)
CHOICES = (*NAMES, "path/to/file.py:function", "module:function")


def load_task(name: str, horizon: int | None = None, delimiter: str | None = None) -> Task:
    """Return the task called ``name``.

    Parameters
    ----------
    name : str
        One of ``CHOICES``; naming your own function runs its file.
    horizon : int, optional
        Steps of a solution; the default is 8 for the exact tasks, 4 for ``counting``, 32 for ``math``, 16 for the others.
    delimiter : str, optional
        Text that closes a step, if the task has a choice; the default is a newline, for ``math`` an empty line.

    Raises
    ------
    UserError
        If there is no such task, or a function cannot be loaded.
    """
    if name in EXACT:
        return load_exact_task(name, horizon, delimiter)
    if name == "counting":
        require_newline(name, delimiter)
        return Counting(_given(horizon, 4))
    if name in ANSWERS:
        usual = ANSWERS[name]
        return AnswerTask({}, name, _given(horizon, usual[0]), _given(delimiter, usual[1]))
    if ":" in name:
        return CallableTask(load_function(name), _given(horizon, 16), _given(delimiter, "\n"), name)
    raise UserError(f"unknown task {name!r}", f"the tasks are: {', '.join(CHOICES)}")


def _given(value: T | None, default: T) -> T:
    """Return ``value``, or ``default`` if it is None."""
    return default if value is None else value


def load_exact_task(name: str, horizon: int | None = None, delimiter: str | None = None) -> ExactTask:
    """Return one of the four exact tasks; arguments and errors as in ``load_task``."""
    if name not in EXACT:
        raise UserError(
            f"{name!r} is no task with an exact check", f"the exact tasks are: {', '.join(EXACT)}"
        )
    require_newline(name, delimiter)
    return EXACT[name](_given(horizon, 8))


def require_newline(name: str, delimiter: str | None) -> None:
    """Raise ``UserError`` if a delimiter is given that the steps of a task do not end with."""
    if delimiter not in (None, "\n"):
        raise UserError(
            f"a step of the task {name} ends with a newline, not {delimiter!r}", "leave the delimiter out"
        )

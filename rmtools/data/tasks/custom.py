r'''Tasks of your own: a function from a finished solution to a reward.

Ten lines in a file, ``palindromes.py``, are a task:

    """Reward the share of steps that read the same backwards."""


    def reward(prompt: str, steps: list[str], reference: str | None) -> float:
        lines = [step.strip() for step in steps]
        return sum(line == line[::-1] for line in lines) / max(len(lines), 1)

and ``rmtools rollout --task palindromes.py:reward --prompts prompts.jsonl --policy …`` uses it (so does
``package.module:function``). The ``answer`` of a row of the prompts file is the ``reference``. Naming a file runs it.
Majorities count final answers as ``extract.py`` finds them; to read them otherwise, set an attribute of the function:
``reward.answer = lambda prompt, steps: steps[-1]``, None if there is no answer.

>>> task = CallableTask(lambda prompt, steps, reference: float(steps[-1] == reference), references={"2+2=\n": "4"})
>>> task.reward("2+2=\n", ["4"])
1.0
'''

import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import ModuleType

import numpy as np

from rmtools.data.tasks.answers import from_a_file
from rmtools.data.tasks.checker import spelled
from rmtools.data.tasks.extract import final_answer
from rmtools.data.tasks.protocol import check_horizon
from rmtools.data.tasks.rendered import RenderedTask
from rmtools.errors import UserError

Judge = Callable[[str, list[str], str | None], float]


@dataclass(frozen=True)
class CallableTask:
    """A task whose verifier is a function.

    Parameters
    ----------
    function : callable
        ``(prompt, steps, reference)`` to a number in [0, 1]; ``reference`` is None if the prompt has none.
    horizon : int
        Steps after which a solution is cut.
    delimiter : str
        Text that closes a step.
    name : str
        As `load_task` takes it.
    references : dict of str to str
        Right answers by prompt; ``rmtools.data.prompts`` adds those of a prompts file.
    """

    function: Judge
    horizon: int = 16
    delimiter: str = "\n"
    name: str = "custom"
    references: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_horizon(self.horizon)

    def prompts(self, n: int, rng: np.random.Generator) -> tuple[list[str], int]:
        """Raise ``UserError``: the prompts come from a file."""
        raise from_a_file(self.name)

    def check_prompt(self, prompt: str) -> None:
        """Accept any prompt: the function decides what it can verify."""

    def reference(self, prompt: str) -> str | None:
        """Return the right answer of a prompt, or None if it is not known."""
        return self.references.get(prompt)

    def well_formed(self, steps: Sequence[str]) -> bool:
        """Return True: the function alone judges a solution."""
        return True

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        """Return what the function returns; raise ``UserError`` if that is no number in [0, 1], or it fails."""
        with _user_code(f"the task {self.name}"):
            found = self.function(prompt, list(steps), self.reference(prompt))
        if not isinstance(found, Real | np.bool_) or not 0 <= found <= 1:
            raise UserError(
                f"the task {self.name} returned {found!r} ({type(found).__name__}) for the prompt {prompt[:40]!r}",
                "return a number in [0, 1]",
            )
        return float(found)

    def answer(self, prompt: str, steps: Sequence[str]) -> str | None:
        """Return the result of the function's ``answer(prompt, steps)`` if it has one, else the final answer.

        Raises
        ------
        UserError
            If it fails, or returns neither text nor None.
        """
        own = getattr(self.function, "answer", None)
        if own is None:
            return spelled(final_answer("".join(steps))) or None
        with _user_code(f"the answer of the task {self.name}"):
            found = own(prompt, list(steps))
        if not isinstance(found, str | None):
            raise UserError(
                f"the answer of the task {self.name} is {found!r} ({type(found).__name__})",
                "return text or None",
            )
        return found

    def step_choices(self, prompt: str, steps: Sequence[str]) -> list[str] | None:
        """Return None: steps are free text."""
        return None


def code_hash(task: object) -> str:
    """Return a short hash of the file of a task's function, "" for built-in tasks."""
    if isinstance(task, RenderedTask):
        task = task.task
    if not isinstance(task, CallableTask):
        return ""
    file = getattr(sys.modules.get(getattr(task.function, "__module__", "")), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""


def load_function(spec: str) -> Judge:
    """Return the function that ``path/to/file.py:function`` or ``module:function`` names; this runs the user's code.

    Raises
    ------
    UserError
        If it cannot be imported (the file and line of the error are named), or is no function.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise UserError(f"{spec!r} names no function", "write path/to/file.py:function or module:function")
    with _user_code(f"the task {spec}"):
        module = _import_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    function = getattr(module, name, None)
    if not callable(function):
        there = [n for n, x in vars(module).items() if callable(x) and not n.startswith("_")]
        raise UserError(
            f"{source} has no function {name!r}", f"name one of its functions: {', '.join(there) or 'none'}"
        )
    return function


def _import_file(path: Path) -> ModuleType:
    """Run a Python file and return it as a module."""
    if not path.is_file():
        raise UserError(
            f"there is no file {path} (from {Path.cwd()})", "name the task as path/to/file.py:function"
        )
    name = f"rmtools_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file", "name the task as path/to/file.py:function")
    # Registered before it runs: dataclasses and pickle look a module up by its name.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _user_code(what: str) -> Iterator[None]:
    """Turn an error of the user's code into one line that names its file and line."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{what} failed{_place(error)}: {type(error).__name__}: {error}", "correct the task's code"
        ) from error


def _place(error: BaseException) -> str:
    """Return the file and line of the user's code at which an error arose, not those of a library it called."""
    if isinstance(error, SyntaxError):
        return f" at {error.filename}, line {error.lineno}"
    paths = sysconfig.get_paths()
    libraries = (paths["stdlib"], paths["purelib"], paths["platlib"], __file__, "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(libraries)]
    return f" at {own[-1].filename}, line {own[-1].lineno}" if own else ""

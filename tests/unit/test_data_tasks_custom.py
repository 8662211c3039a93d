"""Tasks that are a user's function."""

import textwrap

import numpy as np
import pytest

from rmtools.data.tasks import CallableTask, custom, load_task
from rmtools.errors import UserError


def example():
    """The example of the module's docstring."""
    indented = custom.__doc__.split("are a task:\n\n")[1].split("\n\nand ")[0]
    return textwrap.dedent(indented) + "\n"


@pytest.fixture
def file(tmp_path):
    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_the_example(file):
    text = example()
    assert len(text.splitlines()) <= 10
    task = load_task(f"{file(text)}:reward", 4)
    assert (task.horizon, task.delimiter) == (4, "\n")
    assert task.reward("p", ["anna\n", "bob\n", "no\n", "\n"]) == 0.75
    assert task.reward("p", []) == 0
    assert task.name == f"{file(text)}:reward"


def test_the_function_is_given_the_reference_and_a_list():
    seen = []
    task = CallableTask(lambda *given: seen.append(given) or 0.5, references={"a": "1"})
    assert task.reward("a", ("x", "y")) == task.reward("b", ()) == 0.5
    assert seen == [("a", ["x", "y"], "1"), ("b", [], None)]
    assert task.step_choices("a", []) is None
    assert task.well_formed(["anything"])
    with pytest.raises(UserError, match="prompts"):
        task.prompts(3, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"horizon.*at least 1"):
        CallableTask(lambda *_: 1.0, horizon=0)


@pytest.mark.parametrize(
    "good", [0, 1, 0.5, True, np.float64(0.5), np.float32(1), np.int64(1), np.bool_(True)]
)
def test_numbers_that_are_accepted(good):
    assert CallableTask(lambda *_: good).reward("a", []) == float(good)


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan"), None, "1", [1.0], np.ones(1)])
def test_numbers_that_are_refused(bad):
    with pytest.raises(
        UserError, match=r"the task custom returned .* for the prompt 'a'; fix: return a number"
    ):
        CallableTask(lambda *_: bad).reward("a", [])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "import does_not_exist\n\ndef reward(p, s, r): return 1.0\n",
            r"mine.py, line 1: ModuleNotFoundError",
        ),
        ("x = 1\nx = = 2\n", r"mine.py, line 2: SyntaxError"),
        ("\n\n1 / 0\n", r"mine.py, line 3: ZeroDivisionError: division by zero; fix: correct"),
        ("raise SystemExit(3)\n", r"mine.py, line 1: SystemExit: 3"),
        ("def other(p, s, r): return 1.0\n", r"no function 'reward'; fix: name one of its functions: other"),
        ("reward = 3\n", r"no function 'reward'; fix: name one of its functions: none"),
    ],
)
def test_files_that_cannot_be_used(file, text, why):
    with pytest.raises(UserError, match=why):
        load_task(f"{file(text)}:reward")


def test_errors_of_the_function_name_its_line(file):
    path = file("def reward(prompt, steps, reference):\n    return steps[7]\n")
    task = load_task(f"{path}:reward")
    with pytest.raises(UserError, match=r"mine.py, line 2: IndexError: list index out of range"):
        task.reward("a", [])


def test_errors_inside_a_library_name_the_line_that_called_it(file):
    path = file("import json\n\ndef reward(*_):\n    return json.loads('{')\n")
    with pytest.raises(UserError, match=r"mine.py, line 4: JSONDecodeError"):
        load_task(f"{path}:reward").reward("a", [])


def test_modules(monkeypatch, file):
    path = file(example(), "palindromes_task.py")
    monkeypatch.syspath_prepend(path.parent)
    assert load_task("palindromes_task:reward").reward("p", ["anna\n"]) == 1
    with pytest.raises(
        UserError, match="no_such_module:reward failed: ModuleNotFoundError: No module named 'no_such_module'"
    ):
        load_task("no_such_module:reward")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (":reward", "names no function"),
        ("mine.py:", "names no function"),
        ("missing.py:reward", "there is no file missing.py"),
        ("mine.py", "the tasks are: crossing, .*path/to/file.py:function"),
    ],
)
def test_names_that_lead_nowhere(name, why):
    with pytest.raises(UserError, match=why):
        load_task(name)


def test_a_dataclass_in_the_file(file):
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass A:\n    x: int\n\n"
    path = file(text + "def reward(p, s, r): return float(A(1).x)")
    task = load_task(f"{path}:reward")
    assert task.reward("a", []) == 1


def test_answers_of_a_function(file):
    """Final answers, or what the function says an answer is."""
    lines = "def reward(prompt, steps, reference):\n    return 1.0\n"
    task = load_task(f"{file(lines)}:reward")
    assert task.answer("p", ["#### 0.50"]) == "1/2"
    assert task.answer("p", ["nothing"]) is None
    for own, expected in (("steps[-1]", "b"), ("None", None)):
        task = load_task(f"{file(lines + f'reward.answer = lambda prompt, steps: {own}', 'own.py')}:reward")
        assert task.answer("p", ["a", "b"]) == expected
    for own, words in (("3", "return text or None"), ("1 / 0", "own.py, line 3: ZeroDivisionError")):
        task = load_task(f"{file(lines + f'reward.answer = lambda prompt, steps: {own}', 'own.py')}:reward")
        with pytest.raises(UserError, match=words):
            task.answer("p", ["a"])

r"""Final answers: where they stand in a text, and whether they are right."""

import os
import signal
import subprocess
import threading
from fractions import Fraction

import numpy as np
import pytest

from rmtools.data.tasks import AnswerChecker, AnswerTask, checker, final_answer
from rmtools.data.tasks.checker import quick_verdict, spelled
from rmtools.data.tasks.extract import number
from rmtools.errors import UserError


@pytest.fixture(scope="module")
def answers():
    return AnswerChecker()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48/2 = <<48/2=24>>24\n#### 72", "72"),
        ("#### 1\n#### 72", "72"),
        ("####\n72", "72"),
        ("#### 42\n\nQuestion: Tom has 3 and 5. How many?\n3 + 5 = 8\n#### 8", "42"),
        ("6 * 7 = 42\n#### 42\nThe answer is 7, or \\boxed{8}", "42"),
        ("#### $1,024\nQ: 2?\nA: 2", "$1,024"),
        ("#### Step 1: add\n3 + 5 = 8\n#### 8\nanswer is 9", "8"),
        ("#### 41\n\n  #### 42\nand 43", "42"),
        ("so 5 + 3 = 8\nA: 18", "18"),
        ("A: 18<eos>", "18"),
        ("A: 18</s>", "18"),
        ("A: 18<|im_end|>\n", "18"),
        ("A: $1,024.50", "$1,024.50"),
        ("**A:** 18", "18"),
        ("plan A: 18", "18"),  # no mark: the last number
        ("The answer is 18.", "18"),
        ("The answer is 18. It took 3 days", "18"),
        ("The answer is **18**.", "18"),
        ("The answer is: 18 dollars", "18 dollars"),
        ("Answer: 3.5", "3.5"),
        ("the final answer is $\\boxed{\\frac{1}{2}}$. I hope it is correct.", "\\frac{1}{2}"),
        ("The answer is that she makes $18 every day", "$18"),
        ("The answer is 5 + 3 = 8 apples", "5 + 3 = 8 apples"),
        ("The answer is that 5 and 3 are 5 + 3 = 8 apples", "8"),
        ("The answer is yes", "yes"),
        ("The answer is sqrt(2)", "sqrt(2)"),
        ("The answer is 2 million dollars", "2 million dollars"),
        ("The answer is 2 and a half", "2 and a half"),
        ("The answer is x^2 + 1", "x^2 + 1"),
        ("\\boxed{1} or rather \\boxed{ 2 }", "2"),
        ("\\boxed{\\text{a}}} and the answer is 5", "\\text{a}"),
        ("\\boxed{44}, so the answer is correct", "44"),
        ("\\boxed{7", ""),
        ("it is \\boxed{12}, and again \\boxed{1", ""),
        ("The answer is 5: \\boxed{\\frac{1}{2}", ""),
        ("\\boxed{7\n#### 8", "8"),
        ("\\fbox{7}", "7"),
        ("She has 3 - 5 = -2 left", "-2"),
        ("5-3", "3"),
        ("half, 1/2", "1/2"),
        ("<<1+1=2>>", ""),
        ("nothing", ""),
        ("", ""),
        ("what is the answer is", ""),
    ],
)
def test_final_answers(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        ("-3", -3),
        ("−3", -3),
        ("-$3", -3),
        ("$-3", -3),
        ("+3", 3),
        ("72.", 72),
        ("1,234,567.50", Fraction("1234567.5")),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("-6/4", Fraction(-3, 2)),
        ("$18", 18),
        ("\\$18", 18),
        ("$18$", 18),
        ("€18", 18),
        ("20%", 20),
        ("20\\%", 20),
        ("20 percent", 20),
        ("18 dollars per day", 18),
        ("5 + 3 = 8", 8),
        ("70{,}000", 70000),
        ("70\\,000", 70000),
        ("x = 5", None),  # says of which unknown
        ("2x", None),
        ("2 x", None),
        ("2pi", None),
        ("2 pi", None),
        ("3 or 5", None),
        ("2 million", None),
        ("1,23", None),
        ("1/0", None),
        ("1e5", None),
        ("9**9", None),
        ("(1, 2)", None),
        ("<= 5", None),
        ("", None),
        ("$", None),
        ("1" * 1001, None),
    ],
)
def test_numbers(text, value):
    found = number(text)
    assert (None if found is None else found.value) == value


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [
        ("18", "18", True),
        ("18", "18.00", True),
        ("18", "$18", True),
        ("18", "18 dollars", True),
        ("18", "\\text{18 dollars}", True),
        ("70000", "70,000", True),
        ("18", "18.5", False),
        ("0.3333333333333333333333", "0.3333333333333333333334", False),
        ("50%", "50", True),
        ("50%", "0.5", True),
        ("50%", "5%", False),
        ("\\frac{1}{2}", "1/2", True),
        ("\\frac{1}{2}", "0.5", True),
        ("\\frac{1}{2}", "\\dfrac{1}{2}", True),
        ("\\frac{1}{2}", "2", False),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)", True),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(\\pi/2, 3)", False),
        ("p - q", "-q + p", True),
        ("x^2 + 2x + 1", "(x + 1)^2", True),
        ("2\\sqrt{2}", "\\sqrt{8}", True),
        ("5", "x = 5", True),
        ("(-\\infty, 2]", "x \\le 2", False),
        ("x \\le 2", "(-\\infty, 2]", True),  # the reference comes first: not symmetric
        ("\\text{Evelyn}", "Evelyn", True),
        ("\\text{(C)}", "C", True),
        ("2", "2x", False),
        ("2", "2\\pi", False),
        ("5", "five", False),
        ("5", "", False),
        ("5", "}", False),
        ("5", "{{", False),
        ("5", "\\boxed{", False),
    ],
)
def test_verdicts(answers, reference, answer, right):
    assert answers.right(reference, answer) is right


def test_numbers_need_no_algebra(monkeypatch):
    def refused(limit):
        raise AssertionError("a process was started")

    monkeypatch.setattr(checker, "_Worker", refused)
    found = AnswerChecker()
    assert found.right("1,000", "$1000.0 dollars")
    assert found.right("\\frac{1}{2}", "\\dfrac{ 1 }{2}")
    assert not found.right("18", "19")
    assert not found.right("x+1", "y" * 1001)
    assert quick_verdict("50%", "0.5") is None


def test_nothing_is_executed(answers, tmp_path):
    for text in (
        f"__import__('os').system('touch {tmp_path}/made')",
        f"\\text{{__import__('os').system('touch {tmp_path}/made')}}",
        f"exec(open('{tmp_path}/made', 'w'))",
    ):
        assert not answers.right("5", text)
    assert not list(tmp_path.iterdir())
    # The grammar for plain expressions would have evaluated this.
    assert not answers.right("5", "9**9**9**9")


SLOW = "9^{9^{9^{9}}}"


class Impatient(AnswerChecker):
    """Gives a slow answer a second and the others a minute, which a busy machine may need."""

    def _ask(self, reference, answer):
        self.limit = 1.0 if answer == SLOW else 60.0
        return super()._ask(reference, answer)


def test_a_slow_answer_is_wrong_within_the_limit_and_the_next_is_checked():
    found = Impatient()
    assert found.right("\\frac{1}{2}", "1/2")  # the process is up
    assert not found.right("5", SLOW)
    assert not found.right("5", SLOW)  # known
    assert found.timeouts == 1
    assert found.right("x + 1", "1 + x")
    assert found.timeouts == 1


def test_the_limit_holds_in_other_threads():
    found, verdicts = Impatient(), {}
    assert found.right("a + b", "b + a")

    def ask(answer):
        verdicts[answer] = found.right("x + 1", answer)

    threads = [threading.Thread(target=ask, args=(a,)) for a in (SLOW, "1 + x", "\\frac{2x+2}{2}", "x")]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert verdicts == {SLOW: False, "1 + x": True, "\\frac{2x+2}{2}": True, "x": False}
    assert found.timeouts == 1


@pytest.mark.parametrize(
    "text",
    [
        "9" * 100_000,
        "(" * 100_000,
        " " * 100_000,
        "\n" * 100_000,
        "answer " * 15_000,
        "answer is " * 10_000,
        "\\boxed{" * 15_000,
        "<<" * 50_000,
        "<a>" * 33_000,
        "#### " * 20_000,
        "A:\n" * 30_000,
        "1," * 50_000,
        "1" + ",111" * 25_000 + "1",
        "The answer is " + "x" * 100_000,
    ],
)
def test_no_long_text_is_read_for_ever(answers, text):
    """A pattern that backtracks takes hours; the alarm counts CPU time, so that a busy machine does not set it off."""

    def hangs(*_):
        raise TimeoutError("still reading")

    before = signal.signal(signal.SIGVTALRM, hangs)
    signal.setitimer(signal.ITIMER_VIRTUAL, 20)
    try:
        assert not answers.right("x", final_answer(text))
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def test_a_killed_process_is_replaced():
    found = AnswerChecker()
    assert found.right("x + 1", "1 + x")
    os.kill(found._worker.process.pid, signal.SIGKILL)
    found._worker.process.wait()
    assert not found.right("x + 2", "2 + x")  # lost with it, counted
    assert found.timeouts == 1
    assert found.right("x + 3", "3 + x")


def test_the_process_goes_with_the_checker():
    found = AnswerChecker()
    assert found.right("x + 1", "1 + x")
    process = found._worker.process
    del found
    assert process.poll() is not None


def test_an_interrupt_leaves_no_late_answer_behind(monkeypatch):
    found = AnswerChecker()
    assert found.right("x + 1", "1 + x")

    def interrupted(limit):
        raise KeyboardInterrupt

    monkeypatch.setattr(found._worker, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        found.right("x + 2", "2 + x")
    assert not found.right("x + 3", "x")
    assert found.right("x + 2", "2 + x")


def test_math_verify_that_is_missing(monkeypatch, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text('print("\\"No module named \'math_verify\'\\"")')
    monkeypatch.setattr(checker, "SCRIPT", script)
    with pytest.raises(
        UserError, match=r"cannot be started: No module named 'math_verify'; fix: pip install"
    ):
        AnswerChecker().right("x", "y")
    script.write_text("")
    with pytest.raises(UserError, match="its process ended"):
        AnswerChecker().right("x", "y")


@pytest.mark.parametrize("limit", [0, -1, float("inf"), float("nan")])
def test_limits_are_checked(limit):
    with pytest.raises(UserError, match="limit"):
        AnswerChecker(limit)


def test_the_task():
    task = AnswerTask({"6*7=\n": "42"}, name="gsm8k")
    assert task.reward("6*7=\n", ["6*7 = <<6*7=42>>42\n", "#### 42<eos>"]) == 1
    assert task.reward("6*7=\n", ["6*7 = <<6*7=42>>42\n", "#### 41<eos>"]) == 0
    assert task.reward("6*7=\n", []) == 0
    assert task.well_formed(["so\n", "#### 41"])
    assert not task.well_formed(["so 42\n"])
    assert task.step_choices("6*7=\n", []) is None
    assert (task.reference("6*7=\n"), task.reference("6*8=\n")) == ("42", None)
    with pytest.raises(UserError, match=r"'6\*8=.*gsm8k"):
        task.reward("6*8=\n", ["#### 48"])
    with pytest.raises(UserError, match="JSONL"):
        task.prompts(3, np.random.default_rng(0))


def test_the_worker_ends_with_its_input():
    worker = checker._Worker(5.0)
    assert worker.ask(["x", "x"], 30) is True
    assert worker.ask(["x", "y"], 30) is False
    worker.process.stdin.close()
    assert worker.process.wait(10) == 0
    assert isinstance(worker.process, subprocess.Popen)


@pytest.mark.parametrize(
    ("alike", "other"),
    [
        (["0.5", "1/2", ".50", r"\frac{1}{2}", r"$\tfrac12$", r"\dfrac{2}{4}"], "5"),
        (["1,024", "1024 dollars", "$1024.00"], "1024%"),
        (["-3", "−3", r"-\frac{6}{2}"], "3"),
        ([r"\frac{x}{2}", r"\dfrac{x}{2}", r"\frac {x} {2}"], r"\frac{x}{3}"),
        (["x+1", "x + 1", r"\left x+1 \right"], "1 + x"),
    ],
)
def test_answers_that_are_the_same_at_sight_are_spelled_alike(alike, other):
    (one,) = {spelled(a) for a in alike}
    assert spelled(other) != one
    assert spelled(one) == one


def test_the_answer_of_a_solution():
    task = AnswerTask({})
    assert task.answer("p", ["so it is\n", "#### 1,000"]) == task.answer("p", [r"\boxed{1000}"]) == "1000"
    assert task.answer("p", ["I do not know"]) is None

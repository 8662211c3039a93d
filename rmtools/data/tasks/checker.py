"""Compare answers: exact numbers here, everything else with math-verify in a separate process.

A process can be killed; math-verify's time limits are alarms, which work in the main thread only and do not stop every
computation. Answers are parsed, never evaluated.

>>> AnswerChecker().right("70,000", "$70000.00"), AnswerChecker().right("12", "13")
(True, False)
"""

import json
import math
import re
import subprocess
import sys
import threading
import weakref
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from rmtools.data.tasks.extract import LONGEST, number
from rmtools.errors import UserError

SCRIPT = Path(__file__).with_name("math_worker.py")
START_LIMIT = 120.0
REMEMBERED = 100_000
# Spelling that carries no meaning in LaTeX.
SPELLING = re.compile(r"\s+|\\left(?![a-z])|\\right(?![a-z])|\\[,!;: ]|(?<=\\)[dt](?=frac)|\$")
# Of whole numbers, after SPELLING.
FRACTION = re.compile(r"(-?)\\frac(?:\{(\d+)\}|(\d))(?:\{0*([1-9]\d*)\}|([1-9]))")


class AnswerChecker:
    """Compare answers with references, each within a time limit; usable from any thread.

    Parameters
    ----------
    limit : float
        Seconds that math-verify may take for one answer; a slower answer is wrong.

    Attributes
    ----------
    timeouts : int
        Answers that exceeded the time or the memory, or broke the process.
    """

    def __init__(self, limit: float = 5.0) -> None:
        if not 0 < limit < math.inf:
            raise UserError(f"limit must be a positive number of seconds, got {limit}", "limit=5, say")
        self.limit = limit
        self.timeouts = 0
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._known: dict[tuple[str, str], bool] = {}

    def right(self, reference: str, answer: str) -> bool:
        """Return whether ``answer`` equals ``reference``; an empty or overlong one (1,000 characters) does not.

        Raises
        ------
        UserError
            If math-verify is needed and cannot be started.
        """
        if not answer or len(answer) > LONGEST:
            return False
        verdict = quick_verdict(reference, answer)
        if verdict is not None:
            return verdict
        key = reference, answer
        with self._lock:
            if key not in self._known:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[key] = self._ask(reference, answer)
            return self._known[key]

    def _ask(self, reference: str, answer: str) -> bool:
        if self._worker is None or not self._worker.running:
            self._worker = _Worker(self.limit)
        verdict = self._worker.ask([reference, answer], self.limit)
        self.timeouts += verdict is None
        return bool(verdict)


def quick_verdict(reference: str, answer: str) -> bool | None:
    r"""Return the verdict if it needs no algebra (numbers, or the same spelling), else None.

    >>> quick_verdict("1/2", "0.50"), quick_verdict("50%", "0.5"), quick_verdict(r"\frac12", r"\dfrac12")
    (True, None, True)
    """
    if SPELLING.sub("", reference) == SPELLING.sub("", answer):
        return True
    due, found = number(reference), number(answer)
    if due is None or found is None:
        return None
    if due.value == found.value:
        return True
    # 50% may be written 0.5: the algebra knows.
    return False if due.percent == found.percent else None


def spelled(answer: str) -> str:
    r"""Return the canonical spelling of an answer: the same for equal numbers and for LaTeX that reads alike.

    Answers that only algebra shows to be equal (``2x`` and ``x + x``) are spelled differently.

    >>> spelled("0.50"), spelled(r"$\tfrac{1}{2}$"), spelled("50%"), spelled(r"\frac{x}{2}"), spelled("1,024 dollars")
    ('1/2', '1/2', '50%', '\\frac{x}{2}', '1024')
    """
    plain = SPELLING.sub("", answer)
    parts = FRACTION.fullmatch(plain)
    found = number(f"{parts[1]}{parts[2] or parts[3]}/{parts[4] or parts[5]}" if parts else answer)
    return plain if found is None else f"{found.value}{'%' if found.percent else ''}"


class _Worker:
    """A running ``math_worker.py``, killed with this object."""

    def __init__(self, limit: float) -> None:
        alarm = str(math.ceil(limit) + 10)
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT), alarm],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self._stop = weakref.finalize(self, _stop, self.process)
        said = self._read(START_LIMIT)
        if said != "ready":
            self._stop()
            raise UserError(
                f"math-verify cannot be started: {said or 'its process ended'}",
                'pip install "math-verify[antlr4_13_2]>=0.9"',
            )

    @property
    def running(self) -> bool:
        """Whether the process can be asked."""
        return self._stop.alive

    def ask(self, question: list[str], limit: float) -> bool | None:
        """Return the verdict; None, with the process killed, if it takes longer than ``limit`` seconds."""
        answer: bool | None = None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")  # type: ignore[union-attr]
            answer = self._read(limit)
        except BrokenPipeError:
            pass
        finally:
            # Also when interrupted: a late answer must not be read as the next one's.
            if answer is None:
                self._stop()
        return answer

    def _read(self, limit: float) -> Any:
        """Return the next line of the process; None if it ends or is silent for ``limit`` seconds."""
        out = self.process.stdout
        line = out.readline() if wait([out], limit) else b""  # type: ignore[union-attr, list-item]
        return json.loads(line) if line else None


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process and close its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        pipe.close()  # type: ignore[union-attr]

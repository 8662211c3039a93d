r"""Tasks: prompts, a verifier for their solutions, and the number of steps of a solution.

``crossing`` and ``arithmetic`` check every step exactly, and exist in a ``-silent`` variant whose failures are
not written into the text; ``counting`` does in words, for a small language model; ``gsm8k``, ``math`` and ``answers``
compare a final answer; your own function is a task too (``custom.py``).

>>> load_task("crossing", 2).reward("r2 . \nc13 . \nc02 . \n", ["s r2 \n", "d r1 \n"])
1.0
"""

from rmtools.data.tasks.answers import AnswerTask
from rmtools.data.tasks.arithmetic import Arithmetic
from rmtools.data.tasks.checker import AnswerChecker
from rmtools.data.tasks.counting import Counting
from rmtools.data.tasks.crossing import Crossing
from rmtools.data.tasks.custom import CallableTask
from rmtools.data.tasks.extract import final_answer
from rmtools.data.tasks.load import load_exact_task, load_task
from rmtools.data.tasks.protocol import Answering, ExactTask, Referenced, Task, Verifier
from rmtools.data.tasks.rendered import RenderedTask, rendered_task

__all__ = [
    "AnswerChecker",
    "AnswerTask",
    "Answering",
    "Arithmetic",
    "CallableTask",
    "Counting",
    "Crossing",
    "ExactTask",
    "Referenced",
    "RenderedTask",
    "Task",
    "Verifier",
    "final_answer",
    "load_exact_task",
    "load_task",
    "rendered_task",
]

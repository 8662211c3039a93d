r"""Prompts on disk: JSON lines with ``prompt`` or ``messages`` and, if a task needs it, the right ``answer``.

A ``prompt`` is taken as it stands; ``messages``, or a list as ``prompt``, are the turns of a chat. A ``question`` (the files
of GSM8K) or ``problem`` (MATH) becomes a prompt by appending the task's delimiter, so that prompt and steps tokenise apart.
Of an ``answer`` with ``####`` (GSM8K) the rest after it counts. Other fields, such as ``prompt_id``, are ignored.

>>> read_prompt({"question": "6 * 7?", "answer": "It is 42.\\n#### 42"}, "test.jsonl, line 1")
Prompt(text='6 * 7?\n', reference='42', turns=())
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rmtools.data.collect import prompt_id
from rmtools.data.messages import read_turns
from rmtools.data.readers.file_rows import kind_of
from rmtools.data.readers.files import read_rows
from rmtools.data.readers.hub import hub_rows, is_hub_name
from rmtools.data.rollouts import Rollout, Rollouts
from rmtools.data.tasks import Referenced, Task, rendered_task
from rmtools.data.tasks.extract import BOXED, marked_answer, visible
from rmtools.errors import UserError
from rmtools.files import json_lines, read_json_lines
from rmtools.lm.policy import require_room
from rmtools.lm.prompt_format import RAW, AskedFormat, Kind, PromptFormat, PromptRenderer, Turn
from rmtools.lm.protocol import StepPolicy
from rmtools.lm.steps import StepTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTIONS = ("question", "problem")
SOLUTIONS = ("solution", "answer")


@dataclass(frozen=True)
class Prompt:
    """A prompt as it is given: `enter_prompts` renders it.

    Attributes
    ----------
    text : str
        The question, which a task reads: of chat messages what the user says last.
    reference : str or None
        The right answer, if the file gives it.
    turns : tuple of (str, str)
        Role and text of chat messages; () for a prompt given as text.
    """

    text: str
    reference: str | None = None
    turns: tuple[Turn, ...] = ()


def load_prompts(path: str | Path, delimiter: str = "\n") -> list[Prompt]:
    r"""Load the prompts of a file, in order.

    Parameters
    ----------
    path : path
        JSON lines, or another file of rows (docs/formats.md: JSON, CSV, parquet, Arrow, compressed), or a data set of the hub
        (``owner/name/configuration:split``). A row has ``prompt``, ``messages`` (a
        chat), ``question`` (GSM8K) or ``problem`` (MATH), and perhaps its right ``answer``; verl's ``reward_model`` and what
        MATH's ``solution`` has boxed are answers, too.
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
            f"`path` must name a file of prompts, got {type(path).__name__}",
            "prompts in memory need no loading: pass the list itself to rmtools.sample or rmtools.collect_rollouts",
        )
    try:
        if is_hub_name(path):
            rows = hub_rows(path)
        elif kind_of(Path(path)) and Path(path).suffix != ".jsonl":
            rows = read_rows(Path(path))
        else:
            rows = ((f"{path}, line {number}", row) for number, row in read_json_lines(Path(path)))
        found = [read_prompt(row, place, delimiter) for place, row in rows]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the prompts file {path} cannot be read: {error}",
            "name a file with a prompt per line (JSON lines) or row; `rmtools prompts` writes one",
        ) from error
    if not found:
        raise UserError(f"the prompts file {path} is empty", "`rmtools prompts` writes one")
    return found


T = TypeVar("T", bound=Task | None)


def enter_prompts(
    prompts: Sequence[Prompt],
    task: T,
    asked: AskedFormat,
    tokenizer: "PreTrainedTokenizerBase",
    recorded: PromptFormat | None = None,
    auto: Kind | None = None,
    source: str = "the list of prompts",
) -> tuple[list[str], T, PromptFormat]:
    """Render prompts, once: what is behind this sees text.

    Parameters
    ----------
    prompts, task
    asked : AskedFormat
    tokenizer : transformers.PreTrainedTokenizerBase
        The policy's.
    recorded : PromptFormat, optional
        The checkpoint's; without one the prompts are in the format that is asked for, and ``auto`` is the default of texts.
    auto : {"raw", "chat"}, optional
    source : str
        Names the prompts in errors.

    Returns
    -------
    texts : list of str
    task
        Holds the answers of the prompts (if it compares answers) and is asked about their questions.
    form : PromptFormat

    Raises
    ------
    UserError
        If the format is not the checkpoint's, a prompt has no such form (`PromptRenderer.render`), or two answers.
    """
    turns = any(p.turns for p in prompts)
    if recorded is None:
        form = asked.resolve(tokenizer, turns=turns, auto=auto)
    else:
        form = asked.as_recorded(recorded, tokenizer, turns=turns)
    renderer = PromptRenderer(form, tokenizer)
    texts = [renderer.render(p.text, p.turns, f"{source}: prompt {i}") for i, p in enumerate(prompts)]
    if task is None:
        return texts, task, form
    if isinstance(task, Referenced):
        task.references.update(_references(prompts, source))
    rendered: Any = rendered_task(task, {text: p.text for text, p in zip(texts, prompts, strict=True)})
    return texts, rendered, form


def render_rows(rows: Rollouts, form: PromptFormat, tokenizer: "PreTrainedTokenizerBase | None") -> Rollouts:
    """Return rows with their prompts rendered, as which ``question`` stays, and the format in the metadata.

    Raises ``UserError`` if a prompt has no such form.
    """
    if form == RAW and not rows.turns:
        return rows
    renderer = PromptRenderer(form, tokenizer)
    prompts = dict.fromkeys(r.prompt for r in rows)
    texts = {
        q: renderer.render(q, rows.turns.get(q, ()), f"prompt {i} of the rows") for i, q in enumerate(prompts)
    }
    found = [
        r if texts[r.prompt] == r.prompt else replace(r, prompt=texts[r.prompt], question=r.prompt)
        for r in rows
    ]
    return replace(rows, rows=found, metadata=replace(rows.metadata, prompt_format=form), turns={})


def rows_in_format(rows: Rollouts, asked: AskedFormat, tokenizer: "PreTrainedTokenizerBase") -> Rollouts:
    """Return rows as they are if their format is known; otherwise rendered as ``asked`` for, by default raw.

    Raises ``UserError`` if another format than the known one is asked for, or a prompt has no such form.
    """
    if not rows.metadata.format_known:
        form = asked.resolve(tokenizer, auto="raw", turns=bool(rows.turns))
        return render_rows(rows, form, tokenizer)
    require_agreement(rows, asked)
    return rows


def require_agreement(rows: Rollouts, asked: AskedFormat) -> None:
    """Raise ``UserError`` if another format is asked for than the one that rows are known to have."""
    if rows.metadata.format_known and not asked.agrees(rows.metadata.prompt_format):
        raise UserError(
            f"the prompts of the rollouts are rendered already, in the format {rows.metadata.prompt_format}",
            "leave `prompt_format`, `system` and `few_shot` out, or make rollouts in the other format",
        )


def task_of_rows(task: Task, rows: Iterable[Rollout]) -> Task:
    """Return a task that is asked about the questions of rollouts."""
    return rendered_task(task, {r.prompt: r.question or r.prompt for r in rows})


def _references(prompts: Sequence[Prompt], source: str) -> dict[str, str]:
    """Return the right answers by question; raise ``UserError`` if a question has two."""
    found: dict[str, str] = {}
    for p in prompts:
        if p.reference is not None and found.setdefault(p.text, p.reference) != p.reference:
            raise UserError(
                f"{source} has two answers to the prompt {p.text[:40]!r}: {found[p.text]!r} and {p.reference!r}",
                "keep one of them",
            )
    return found


def given_prompts(prompts: Sequence[Any], delimiter: str) -> list[Prompt]:
    """Return prompts given in Python: texts, `Prompt` objects, or rows as `load_prompts` reads them.

    Raises ``UserError`` if ``prompts`` is no sequence or empty, or an item is none of these.
    """
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        raise UserError(
            f"`prompts` must be a list of prompts, got {type(prompts).__name__}",
            "pass [text], rmtools.load_prompts(path) for a file, or table.to_dict('records') of a pandas table",
        )
    if not prompts:
        raise UserError("`prompts` is empty", "pass at least one")
    found = []
    for i, given in enumerate(prompts):
        if not isinstance(given, str | dict | Prompt):
            raise UserError(
                f"prompt {i} is no text, got {type(given).__name__}",
                "pass texts, rows with a prompt, or items of rmtools.load_prompts(path)",
            )
        row = {"prompt": given} if isinstance(given, str) else given
        found.append(row if isinstance(row, Prompt) else read_prompt(row, f"prompt {i}", delimiter))
    return found


def read_stream(stream: Iterable[str], delimiter: str) -> tuple[list[Prompt], bool]:
    """Return the prompts of standard input, and whether they are plain lines.

    Input that begins with ``{`` is JSON lines, read as a file of prompts; otherwise every line that is not blank is a prompt
    as `typed_prompts` takes it. Raises ``UserError`` as these do.
    """
    name, lines = "standard input", list(stream)
    if "".join(lines).lstrip().startswith("{"):
        return [read_prompt(row, f"{name}, line {n}", delimiter) for n, row in json_lines(lines, name)], False
    return typed_prompts([line.rstrip("\r\n") for line in lines if line.strip()], delimiter), True


def typed_prompts(texts: Sequence[str], delimiter: str) -> list[Prompt]:
    """Return texts as prompts that end with ``delimiter``; raise ``UserError`` if there is none or one is blank."""
    if not texts or not all(text.strip() for text in texts):
        raise UserError("a prompt is blank" if texts else "standard input has no prompt", "give a text")
    return [Prompt(text if text.endswith(delimiter) else text + delimiter) for text in texts]


def read_prompt(row: Any, where: str, delimiter: str = "\n") -> Prompt:
    """Return the prompt of a row, with ``delimiter`` appended to a question; raise ``UserError`` naming ``where``."""
    values = row if isinstance(row, dict) else {}
    reference = _reference(values, where)
    name, given = _first_field(values, ("messages", "prompt", *QUESTIONS))
    if name == "messages" or (name == "prompt" and isinstance(given, list)):
        turns = read_turns(given, f"{where}, field {name}")
        return Prompt(turns[-1][1].strip() + delimiter, reference, turns)
    if not isinstance(given, str) or not given:
        raise UserError(
            f'{where} has no text field "prompt" (or {" or ".join(QUESTIONS)}), and no "messages"',
            'each line looks like {"prompt": "…"} or {"prompt": "…", "answer": "…"}',
        )
    return Prompt(given if name == "prompt" else given.strip() + delimiter, reference)


def _reference(values: dict[str, Any], where: str) -> str | None:
    """Return the right answer of a row: ``answer``, verl's ``ground_truth``, or what MATH's ``solution`` has boxed."""
    name, answer = "answer", values.get("answer")
    if answer is None and isinstance(values.get("reward_model"), dict):
        name, answer = "reward_model.ground_truth", values["reward_model"].get("ground_truth")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise UserError(f'{where}: the field "{name}" is no text or number', "write it as text")
    if answer is not None:
        return str(answer).rsplit("####", 1)[-1].strip() or None
    solution = values.get("solution")
    boxed = isinstance(solution, str) and BOXED.search(solution)
    return marked_answer(visible(str(solution))) if boxed else None


def _first_field(values: dict[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    """Return the first of the fields that a row has and that is not null, with its value."""
    name = next((n for n in names if values.get(n) is not None), "")
    return name, values.get(name)


def asked_format(
    prompt_format: str = "auto",
    system: str | None = None,
    few_shot: "str | Path | Sequence[Any] | None" = None,
    delimiter: str = "\n",
) -> AskedFormat:
    """Return the format that a user asks for, with the examples read; ``delimiter`` closes their questions.

    ``few_shot`` is a JSONL file, or a list of such rows or of (prompt, solution) pairs. Raises ``UserError`` if the format
    is unknown or an example is wrong.
    """
    return AskedFormat(prompt_format, system, _read_examples(few_shot, delimiter))  # type: ignore[arg-type]


def _read_examples(
    given: "str | Path | Sequence[Any] | None", delimiter: str
) -> tuple[tuple[str, str], ...] | None:
    if given is None:
        return None
    try:
        if isinstance(given, str | Path):
            rows = [(f"{given}, line {number}", row) for number, row in read_json_lines(Path(given))]
        else:
            rows = [(f"example {i} of `few_shot`", row) for i, row in enumerate(given)]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the few-shot file {given} cannot be read: {error}",
            'name a JSONL file with lines like {"question": "…", "solution": "…"}',
        ) from error
    found = []
    for where, row in rows:
        if isinstance(row, tuple | list) and len(row) == 2:
            row = {"prompt": row[0], "solution": row[1]}
        values = row if isinstance(row, dict) else {}
        name, question = _first_field(values, ("prompt", *QUESTIONS))
        _, solution = _first_field(values, SOLUTIONS)
        if not all(isinstance(text, str) and text.strip() for text in (question, solution)):
            raise UserError(
                f"{where} is no example: it needs a text prompt (or {' or '.join(QUESTIONS)}) and a text "
                f"{' or '.join(SOLUTIONS)}",
                'write {"question": "…", "solution": "…"}',
            )
        found.append((question if name == "prompt" else question.strip() + delimiter, solution))
    if not found:
        raise UserError(f"`few_shot` {given} has no example", "leave it out, or give at least one")
    return tuple(found)


def prompts_text(prompts: Sequence[str]) -> str:
    """Return prompts as JSON lines."""
    rows = [json.dumps({"prompt_id": prompt_id(p), "prompt": p}) for p in prompts]
    return "\n".join(rows) + "\n"


def require_prompts(source: str) -> None:
    """Raise ``UserError`` if ``source`` is neither a file nor a number of at least 1: before models are loaded."""
    if source.lstrip("-").isdigit():
        if int(source) < 1:
            raise UserError(f"the number of prompts must be at least 1, got {source}", "ask for 64, say")
    elif not Path(source).exists() and not is_hub_name(source):
        raise UserError(
            f"the prompts file {source} cannot be read: there is no such file",
            "name a file with a prompt per line (JSON lines) or row; `rmtools prompts` writes one",
        )


def prompts_from(source: str, task: Task, rng: np.random.Generator) -> tuple[list[Prompt], int]:
    """Return prompts of a file, or drawn from the task if ``source`` is a number, and the number of unsolvable ones."""
    require_prompts(source)
    if not source.lstrip("-").isdigit():
        return load_prompts(source, task.delimiter), 0
    return drawn_prompts(int(source), task, rng)


def drawn_prompts(n: int, task: Task, rng: np.random.Generator) -> tuple[list[Prompt], int]:
    """Return ``n`` prompts drawn from the task, and the number of unsolvable ones that were left out."""
    texts, removed = task.prompts(n, rng)
    return [Prompt(text) for text in texts], removed


def check_prompts(prompts: Sequence[str], task: Task | None, policy: StepPolicy) -> None:
    """Raise ``UserError``, before any work, if a prompt does not fit the task or leaves the policy no room."""
    policy.check_length([policy.steps.prompt_ids(p) for p in prompts])
    _check_texts(prompts, task, policy.steps)


def prompts_check(
    source: str, task: Task, asked: AskedFormat, recorded: PromptFormat | None = None
) -> Callable[[StepTokenizer, int | None], None]:
    """Return the ``check`` of `load_policy` for prompts of a file or drawn from the task: it raises what they would later."""

    def check(steps: StepTokenizer, context: int | None) -> None:
        some = "1" if source.isdigit() else source  # one that is drawn is like another
        given, _ = prompts_from(some, task, np.random.default_rng(0))
        texts, judge, _ = enter_prompts(given, task, asked, steps.tokenizer, recorded, source=source)
        check_before_loading(texts, judge, steps, context)

    return check


def check_before_loading(
    prompts: Sequence[str], task: Task | None, steps: StepTokenizer, context: int | None
) -> None:
    """Raise ``UserError`` if `check_prompts` would for a policy with this tokenizer and ``context`` (most tokens it takes)."""
    require_room([steps.prompt_ids(p) for p in prompts], context)
    _check_texts(prompts, task, steps)


def _check_texts(prompts: Sequence[str], task: Task | None, steps: StepTokenizer) -> None:
    for prompt in prompts:
        if task is not None:
            task.check_prompt(prompt)
        steps.require_known(prompt)

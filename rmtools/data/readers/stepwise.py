"""Formats with a label per step: trl, rlhflow, processbench, prmbench; with a tag behind each step: math-shepherd, er-prm."""

import re

from rmtools.data.readers.row import (
    SIGNS,
    Field,
    Found,
    Options,
    RowError,
    public_format,
    rollout,
    shown,
)

TAG = "ки"
"""Closes a step in math-shepherd, openrlhf, er-prm and math-aps."""
OPENR_TAG = "\n\n\n\n\n"
"""Closes a step in later files of math-aps."""
ROLES = {"human": "user", "gpt": "assistant"}
"""Roles of conversations that are written as ``from`` and ``value``."""


@public_format("trl", prompt=str, completions=list, labels=list)
def trl(row: Field, options: Options) -> Found:
    """Read a row of trl's stepwise supervision: prompt, completions, labels (hard, soft or null)."""
    prompt, steps = row["prompt"].text(), row["completions"].texts()
    yield rollout(options, prompt, steps, labels=row["labels"].labels(len(steps)))


def _given_steps(row: Field, options: Options) -> Found:
    """Read a prompt, its steps (or a text to cut into steps) and labels, a reward, or both."""
    prompt, given = row["prompt"].text(), row["steps"]
    whole = isinstance(given.value, str)
    steps = options.cut(given.text(), "newline") if whole else given.texts()
    if not row.has("labels") and not row.has("reward"):
        raise RowError("labels", "is missing, and so is reward")
    yield rollout(
        options,
        prompt,
        steps,
        reward=row["reward"].unit() if row.has("reward") else None,
        labels=row["labels"].labels(len(steps)) if row.has("labels") else None,
        reference=row.reference("reference"),
    )


QUESTIONS = ({"prompt": "question"}, {"prompt": "problem"})
labelled_steps = public_format("steps", *QUESTIONS, prompt=str, steps=(list, str), labels=list)(_given_steps)
judged_steps = public_format(
    "judged-steps", *QUESTIONS, prompt=str, steps=(list, str), reward=(bool, int, float)
)(_given_steps)
versaprm = public_format("versaprm", question=str, chain_of_thoughts=list, labels=list)(
    lambda row, options: _given_steps(
        row.under({"prompt": "question", "steps": "chain_of_thoughts"}), options
    )
)


@public_format("rlhflow", {"conversations": "messages"}, conversations=(list, dict))
def rlhflow(row: Field, options: Options) -> Found:
    """Read a conversation of RLHFlow: a user turn is a step (the first: question and step), the answer + or -.

    Turns are {role, content} or {from, value}.
    """
    turns = row["conversations"].records()
    if not turns or len(turns) % 2:
        raise row["conversations"].wrong(
            f"has {len(turns)} turns: it must alternate user (step) and assistant (+ or -)"
        )
    said = []
    for turn, role in zip(turns, ("user", "assistant") * (len(turns) // 2), strict=True):
        named, text = ("from", "value") if turn.has("from") else ("role", "content")
        given = turn[named]
        if ROLES.get(given.value, given.value) != role:
            raise given.wrong(f"must be {role}, got {shown(given.value)}")
        said.append(turn[text])
        if role == "assistant" and said[-1].text().strip() not in SIGNS:
            raise said[-1].wrong(f"must be + or -, got {shown(said[-1].value)}")
    texts = [x.text() for x in said]
    question, first = split_question(said[0], texts[0], options)
    labels = [SIGNS[sign.strip()] for sign in texts[1::2]]
    yield rollout(options, question, [first, *texts[2::2]], labels=labels)


@public_format("processbench", problem=str, steps=list, final_answer_correct=bool, label=int)
def processbench(row: Field, options: Options) -> Found:
    """Read a row of ProcessBench (arXiv 2412.06559): steps after the first wrong one are not judged there."""
    steps = row["steps"].texts()
    first = row["label"].index(-1, len(steps) - 1)
    right = row["final_answer_correct"].flag()
    labels: list[float | None] = [1.0] * len(steps)
    if first >= 0:
        labels = [1.0] * first + [0.0] + [None] * (len(steps) - first - 1)
    yield rollout(options, row["problem"].text(), steps, reward=float(right), labels=labels)


@public_format("prmbench", modified_question=str, modified_process=list, error_steps=list)
def prmbench(row: Field, options: Options) -> Found:
    """Read the modified process of a row of PRMBench (arXiv 2501.03124); its error steps are counted from 1."""
    question, steps = row["modified_question"].text(), row["modified_process"].texts()
    wrong = {x.index(1, len(steps)) for x in row["error_steps"].items()}
    yield rollout(options, question, steps, labels=[float(t not in wrong) for t in range(1, len(steps) + 1)])


@public_format("math-shepherd", input=str, label=(str, list))
def math_shepherd(row: Field, options: Options) -> Found:
    """Read a row of Math-Shepherd (arXiv 2312.08935): ``label`` is ``input`` with a sign in place of each tag.

    OpenRLHF takes such rows with a list of labels, too.
    """
    if isinstance(row["label"].value, list):
        return _tagged(row, "input", "label", options)
    return _marked(row, options)


def _marked(row: Field, options: Options) -> Found:
    pieces = row["input"].text().split(TAG)
    signs = _signs(pieces, row["label"])
    question, steps = _tagged_steps(pieces, row["input"], options)
    yield rollout(options, question, steps, labels=_padded(signs, steps))


@public_format("openrlhf", input=str, value=list)
def openrlhf(row: Field, options: Options) -> Found:
    """Read a row of OpenRLHF's process rewards: ``value`` has a label, + or - or soft, for each tag in ``input``."""
    return _tagged(row, "input", "value", options)


@public_format("er-prm", text=str, value=list)
def er_prm(row: Field, options: Options) -> Found:
    """Read a row of ER-PRM (arXiv 2412.11006): ``value`` has a label, soft or + or -, for each tag in ``text``."""
    return _tagged(row, "text", "value", options)


def _tagged(row: Field, text: str, value: str, options: Options) -> Found:
    """Read a text of question and steps, a tag behind each, and a label for each tag."""
    pieces = row[text].text().split(TAG)
    question, steps = _tagged_steps(pieces, row[text], options)
    labels = row[value].labels(min(len(steps), len(pieces) - 1))
    yield rollout(options, question, steps, labels=_padded(labels, steps))


@public_format("math-aps", {"label": "labels"}, question=str, process=str, label=list)
def math_aps(row: Field, options: Options) -> Found:
    """Read a row of MATH-APS, or of openr's training (arXiv 2410.09671): a tag closes each step of ``process``.

    A single label belongs to the prefix, and so to its last step; otherwise each tag has one.
    """
    question, text, given = row["question"].text(), row["process"], row["label"]
    pieces = text.text().split(TAG if TAG in text.text() else OPENR_TAG)
    steps, n_tags = _stripped(pieces, text), max(len(pieces) - 1, 1)
    alone = len(given.items()) == 1
    before: list[float | None] = [None] * (n_tags - 1) if alone else []
    labels = before + given.labels(1 if alone else n_tags)
    yield rollout(options, question, steps, labels=_padded(labels, steps))


def split_question(field: Field, joined: str, options: Options) -> tuple[str, str]:
    """Return question and first step: the step begins at the last match of ``options.first_step``.

    ``joined`` holds the question and one step, so an earlier match is part of the question.

    >>> split_question(Field(None, "text"), "How much is 1 + 1? Step 1: It is 2.", Options())
    ('How much is 1 + 1?', 'Step 1: It is 2.')

    Raises
    ------
    RowError
        If there is no match, or nothing before or in it: the two cannot be told apart, and are not guessed.
    """
    found = max(re.finditer(options.first_step, joined), key=re.Match.start, default=None)
    if found is None or not joined[: found.start()].strip() or not joined[found.start() :].strip():
        raise field.wrong(
            f"does not show where the first step begins: no {options.first_step!r} after a question "
            "(another pattern is `first_step`)"
        )
    return joined[: found.start()].rstrip(), joined[found.start() :]


def _tagged_steps(pieces: list[str], field: Field, options: Options) -> tuple[str, list[str]]:
    """Return question and steps, without tags and the white space around them.

    Text behind the last tag is one more step: nobody judged it, but the policy wrote it.
    """
    if len(pieces) == 1:
        raise field.wrong(f"has no step tag {TAG}")
    question, first = split_question(field, pieces[0], options)
    return question, _stripped([first, *pieces[1:]], field)


def _stripped(pieces: list[str], field: Field) -> list[str]:
    """Return steps without the white space around them, and without a blank one behind the last tag."""
    steps = [s.strip() for s in pieces]
    if not steps[-1]:
        steps.pop()
    if not all(steps):
        raise field.wrong(f"step {steps.index('') + 1} is empty")
    return steps


def _signs(pieces: list[str], field: Field) -> list[float | None]:
    """Return the signs that the label has in place of the tags between ``pieces``."""
    marked, at, n_tags = field.text(), 0, len(pieces) - 1
    found: list[float | None] = []
    for t, piece in enumerate(pieces):
        if not marked.startswith(piece.rstrip() if t == n_tags else piece, at):
            raise field.wrong(f"differs from input {'before' if t == 0 else 'after'} tag {max(t, 1)}")
        at += len(piece)
        if t < n_tags:
            if marked[at : at + 1] not in SIGNS:
                raise field.wrong(f"has no + or - where input has tag {t + 1} of {n_tags}")
            found.append(SIGNS[marked[at]])
            at += 1
    if marked[at:].strip():
        raise field.wrong(f"goes on after the last of input's {n_tags} tags")
    return found


def _padded(found: list[float | None], steps: list[str]) -> list[float | None]:
    """Return one label per step: a step behind the last tag has none."""
    return found + [None] * (len(steps) - len(found))

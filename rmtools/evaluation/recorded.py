r"""Recorded samples: several solutions of each problem, each right or wrong, perhaps with a verifier's scores.

Three layouts: a JSON object (or JSON lines) of records with ``traces`` (docs/formats.md, Recorded samples), rows with
``answers`` and their ``label``, and the records that `rmtools sample` writes.
Answers are read from the texts as the task ``answers`` reads them.

>>> import json, pathlib, tempfile
>>> file = pathlib.Path(tempfile.mkdtemp()) / "recorded.json"
>>> trace = {"text": "So 4.\n#### 4", "correct": True, "prm_score": 0.75}
>>> _ = file.write_text(json.dumps({"records": [{"problem_id": "a", "traces": [trace]}]}))
>>> found = read_recorded(file)
>>> found.problems[0].solutions[0].answer, found.problems[0].solutions[0].scores
('4', {'recorded': 0.75})
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.codec import VERSION
from rmtools.data.readers.files import read_rows
from rmtools.data.readers.row import Field, RowError, shown, split_for_tokenizer
from rmtools.data.rollouts import Rollout, RolloutMetadata, Rollouts
from rmtools.data.segment import segment
from rmtools.data.tasks.checker import AnswerChecker, spelled
from rmtools.data.tasks.extract import final_answer
from rmtools.errors import UserError
from rmtools.sampling.sample_prompts import SCHEMA_VERSION

AGGREGATIONS = ("last", "min", "product", "mean")
"""How scores of steps become one of the solution."""
QUESTIONS = ("problem", "prompt", "question")
LAYOUTS = (
    'a JSON object {"records": [{"problem_id": …, "traces": [{"text": …, "correct": …, "prm_score": …}, …]}, …]} or such '
    'records as JSON lines; rows {"prompt": …, "answers": […], "label": […]}; '
    "or the file that `rmtools sample --algorithm best-of-n` writes"
)


@dataclass(frozen=True)
class Solution:
    """One sample.

    Attributes
    ----------
    steps : tuple of str
        Joined they are the text.
    right : float
        In [0, 1].
    answer : str or None
        Canonical final answer; None does not vote.
    scores : mapping
        The verifier's score of the whole solution, in [0, 1], by aggregation (`AGGREGATIONS`, or "recorded" if the file does
        not say which); {} without any.
    tokens : float or None
        Generated.
    """

    steps: tuple[str, ...]
    right: float
    answer: str | None
    scores: Mapping[str, float] = field(default_factory=dict)
    tokens: float | None = None


@dataclass(frozen=True)
class ProblemSamples:
    """The independent solutions of one problem; ``prompt`` is what models see, None if the file does not say."""

    problem_id: str
    prompt: str | None
    solutions: tuple[Solution, ...]


@dataclass(frozen=True)
class RecordedSamples:
    """Problems with their solutions.

    ``verifier`` made the scores and ``policy`` the solutions ("" if unknown); ``value_tokens``, ``flops`` and ``seconds`` are
    sums over all problems, None if the file does not say; ``rendered``: prompts are texts that a model saw.
    """

    problems: tuple[ProblemSamples, ...]
    source: str
    verifier: str = ""
    policy: str = ""
    value_tokens: float | None = None
    flops: float | None = None
    seconds: float | None = None
    rendered: bool = False

    @property
    def aggregations(self) -> tuple[str, ...]:
        """The aggregations that every solution has a score of."""
        every = [set(s.scores) for p in self.problems for s in p.solutions]
        common = set.intersection(*every)
        return tuple(a for a in (*AGGREGATIONS, "recorded") if a in common)


def aggregate(steps: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return the scores of a solution from those of its steps (T,), in [0, 1], by aggregation.

    >>> aggregate([0.5, 0.75])
    {'last': 0.75, 'min': 0.5, 'product': 0.375, 'mean': 0.625}
    """
    p = np.asarray(steps, dtype=np.float64)
    return {
        "last": float(p[-1]),
        "min": float(p.min()),
        "product": float(p.prod()),
        "mean": math.fsum(p) / len(p),
    }


def read_recorded(path: str | Path) -> RecordedSamples:
    """Read recorded samples.

    Raises
    ------
    UserError
        If the file cannot be read, is empty or of another layout, or a record is wrong: record and sample are named.
    """
    rows = list(read_rows(Path(path)))
    meta: Mapping[str, Any] = {}
    if len(rows) == 1 and isinstance(rows[0][1], dict) and isinstance(rows[0][1].get("records"), list):
        whole = rows[0][1]
        meta = whole["meta"] if isinstance(whole.get("meta"), dict) else {}
        rows = [(f"{path}, record {i}", row) for i, row in enumerate(whole["records"])]
    if not rows:
        raise UserError(f"{path} holds no recorded samples", f"write {LAYOUTS}")
    first = rows[0][1] if isinstance(rows[0][1], dict) else {}
    if "traces" in first:
        return _traces(rows, meta, str(path))
    if {"answers", "label"} <= first.keys():
        return _traces(((place, _as_traces(row)) for place, row in rows), meta, str(path))
    if "samples" in first and "sampler" in first:
        return from_records([row for _, row in rows], str(path))
    fields = f"the fields {', '.join(first)}" if first else f"{shown(rows[0][1])}"
    raise UserError(f"{path} holds no recorded samples: its first row has {fields}", f"write {LAYOUTS}")


def _traces(rows: Iterable[tuple[str, Any]], meta: Mapping[str, Any], source: str) -> RecordedSamples:
    how = meta.get("prm_aggregate")
    name = how if how in AGGREGATIONS else "recorded"
    checker = AnswerChecker()
    found: list[ProblemSamples] = []
    for place, row in rows:
        try:
            found.append(_problem(Field(row), len(found), name, checker))
        except RowError as error:
            raise UserError(
                f"{place}{error}", "repair the record; docs/formats.md, Recorded samples, has the fields"
            ) from None
    _require_problems(found, source)
    policy = meta.get("model") or meta.get("policy") or ""
    return RecordedSamples(tuple(found), source, str(meta.get("prm") or ""), str(policy))


def _as_traces(row: Any) -> Any:
    """Return a row of a best-of-N set, ``answers`` with their ``label``, as a record with traces."""
    answers, labels = (row.get("answers"), row.get("label")) if isinstance(row, dict) else (None, None)
    if not isinstance(answers, list) or not isinstance(labels, list) or len(answers) != len(labels):
        return row
    traces = [{"text": text, "correct": label} for text, label in zip(answers, labels, strict=True)]
    return {**row, "traces": traces}


def _problem(row: Field, number: int, name: str, checker: AnswerChecker) -> ProblemSamples:
    ident = str(row["problem_id"].value) if row.has("problem_id") else f"record {number}"
    question = next((row[n].text() for n in QUESTIONS if row.has(n)), None)
    reference = row.reference("gold", "answer", "reference")
    traces = row["traces"].items()
    if not traces:
        raise row["traces"].wrong(f"problem {ident} has no sample")
    return ProblemSamples(
        ident, question, tuple(_solution(t, ident, reference, name, checker) for t in traces)
    )


def _solution(trace: Field, ident: str, reference: str | None, name: str, checker: AnswerChecker) -> Solution:
    steps = trace["steps"].texts() if trace.has("steps") else segment(trace["text"].text(), "blank-line")
    text = "".join(steps)
    written = str(trace["answer"].value) if trace.has("answer") else final_answer(text)
    if trace.has("correct"):
        right = trace["correct"].unit()
    elif reference is not None:
        right = float(checker.right(reference, written))
    else:
        why = f"is missing, and problem {ident} has no right answer (gold) to judge by"
        raise RowError(f"{trace.place}.correct", why)
    scores: dict[str, float] = {}
    if trace.has("step_scores"):
        given = [x.unit() for x in trace["step_scores"].items()]
        if not given or (trace.has("steps") and len(given) != len(steps)):
            of = f"{len(steps)} steps" if trace.has("steps") else "a solution"
            raise trace["step_scores"].wrong(f"has {len(given)} scores for {of} of problem {ident}")
        scores = aggregate(given)
    elif trace.has("prm_score"):
        scores = {name: trace["prm_score"].unit()}
    tokens = trace["tokens"].value if trace.has("tokens") else None
    if tokens is not None and not (isinstance(tokens, int | float) and tokens >= 0):
        raise trace["tokens"].wrong(f"must be a number of tokens, got {shown(tokens)}")
    return Solution(
        tuple(steps), right, spelled(written) or None, scores, None if tokens is None else float(tokens)
    )


def from_records(records: Sequence[Mapping[str, Any]], source: str) -> RecordedSamples:
    """Return the samples of records that `rmtools sample` writes, scored by the final values (aggregation "last").

    Raises
    ------
    UserError
        If solutions of a prompt are not independent (they were resampled), or nothing says which are right.
    """
    found = []
    for i, record in enumerate(records):
        where = f"{source}, record {i}"
        if (
            not isinstance(record, Mapping)
            or not record.get("samples")
            or record.get(VERSION) != SCHEMA_VERSION
        ):
            raise UserError(
                f"{where} is no record of this release with samples", "sample again with `rmtools sample`"
            )
        _require_independent(record["sampler"], where)
        judged = record.get("terminal") == "verifier"  # final values are then the rewards themselves
        found.append(
            ProblemSamples(f"prompt {i}", record["prompt"], _sampled(record["samples"], where, judged))
        )
    _require_problems(found, source)
    costs = [{"policy_tokens": r.get("generated_tokens"), **(r.get("cost") or {})} for r in records]

    def total(name: str) -> float | None:
        each = [c.get(name) for c in costs]
        return None if None in each else float(sum(each))  # type: ignore[arg-type]

    provenance = records[0].get("provenance") or {}
    generated = total("policy_tokens")
    if generated is not None:
        found = [_with_tokens(p, c["policy_tokens"]) for p, c in zip(found, costs, strict=True)]
    return RecordedSamples(
        tuple(found), source, str(provenance.get("model") or ""), str(provenance.get("policy") or ""),
        total("value_tokens"), total("flops"), total("seconds"), rendered=True,
    )  # fmt: skip


def _with_tokens(problem: ProblemSamples, tokens: float) -> ProblemSamples:
    """Return the problem with its tokens shared equally among its solutions: records have their sum."""
    share = tokens / len(problem.solutions)
    return replace(problem, solutions=tuple(replace(s, tokens=share) for s in problem.solutions))


def _sampled(samples: Sequence[Mapping[str, Any]], where: str, judged: bool) -> tuple[Solution, ...]:
    if any(s.get("reward") is None for s in samples):
        raise UserError(
            f"{where} does not say which samples are right: they were not verified",
            "sample with a task, `task` answers and prompts that have an answer, say",
        )
    return tuple(
        Solution(
            tuple(s["steps"]),
            float(s["reward"]),
            s.get("answer"),
            {} if judged else {"last": _value(s)},
        )
        for s in samples
    )


def _value(sample: Mapping[str, Any]) -> float:
    """Return the final value of a sample, 0 if its weight is zero."""
    known = sample["log_value"] is not None and sample["log_weight"] is not None
    return math.exp(min(sample["log_value"], 0.0)) if known else 0.0


def _require_independent(sampler: Mapping[str, Any], where: str) -> None:
    """Raise ``UserError`` unless the sampler draws independent solutions: any n of them are then like n drawn alone."""
    chained = sampler.get("mh_steps") or sampler.get("sweeps")
    never = sampler.get("resampling") == "none" or sampler.get("ess_threshold") == 0
    if chained or not never or sampler.get("pool_size", 1) != 1:
        raise UserError(
            f"{where}: its solutions are not independent (algorithm {sampler.get('algorithm')}, resampling "
            f"{sampler.get('resampling')}), and best-of-n chooses among independent ones",
            "sample with `rmtools sample --algorithm best-of-n`",
        )


def _require_problems(problems: Sequence[ProblemSamples], source: str) -> None:
    """Raise ``UserError`` if some solutions have scores and others have not: the first without is named."""
    with_scores = {name for p in problems for s in p.solutions for name in s.scores}
    for p in problems:
        for i, s in enumerate(p.solutions):
            if missing := with_scores - s.scores.keys():
                have = "prm_score" if missing & {"recorded"} or len(missing) == 1 else "step_scores"
                raise UserError(
                    f"{source}: sample {i} of problem {p.problem_id} has no {have}, and others have one",
                    "add it, or leave all out and score the samples with `model`",
                )


def rows_to_score(samples: RecordedSamples, delimiter: str) -> Rollouts:
    """Return every solution as a row, in order, for a model to score.

    Prompts of a recording that are questions get the ``delimiter``; those that a model saw stay.

    Raises
    ------
    UserError
        If the recording does not have the problems: the first that lacks its text is named.
    """
    rows = []
    for p in samples.problems:
        if p.prompt is None:
            raise UserError(
                f"{samples.source} does not say what problem {p.problem_id} is: a model cannot score its solutions",
                f"add the field problem (or {', '.join(QUESTIONS[1:])}) to every record",
            )
        for s in p.solutions:
            pieces = [p.prompt, *s.steps]
            first, *rest = pieces if samples.rendered else split_for_tokenizer(pieces, delimiter)
            rows.append(Rollout(p.problem_id, first, rest, s.right))
    return Rollouts(rows, RolloutMetadata.unknown(rows), samples.source)


def with_scores(samples: RecordedSamples, p: Sequence[np.ndarray], verifier: str) -> RecordedSamples:
    """Return the samples with scores from the probabilities (T + 1,) of a model at each row of `rows_to_score`.

    A solution that the model could not read (an empty array) has score 0.
    """
    values, problems = iter(p), []
    for problem in samples.problems:
        new = []
        for s in problem.solutions:
            steps = next(values)[1:]
            new.append(
                replace(s, scores=aggregate(steps) if len(steps) else dict.fromkeys(AGGREGATIONS, 0.0))
            )
        problems.append(replace(problem, solutions=tuple(new)))
    return replace(samples, problems=tuple(problems), verifier=verifier)


def root_values(samples: RecordedSamples, p: Sequence[np.ndarray]) -> np.ndarray:
    """Return (P,) the probability of each problem's prompt, NaN where no solution of it could be read."""
    values, found = iter(p), []
    for problem in samples.problems:
        own = [x[0] for x in itertools.islice(values, len(problem.solutions)) if len(x)]
        found.append(float(own[0]) if own else math.nan)
    return np.asarray(found)

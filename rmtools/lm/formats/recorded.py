r"""Recorded scores as a value model: prefixes and the p of their steps, from a file.

Two kinds of files. JSON lines, one prefix each: ``{"prompt": …, "steps": […], "scores": […]}``, a score for every step. Or one
JSON object whose ``records`` have the key ``ID:HASH``, ID that of the problem, HASH the first 16 digits of the SHA-256 of
the steps joined by U+001F; the IDs of questions are then those of ``problems`` (``id``, ``prompt``), in the same file or in the
file beside it whose name ends in ``-steps`` instead of ``-prm``.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.files import read_json, read_json_lines
from rmtools.lm.formats.conventions import RECORDED, Convention
from rmtools.lm.formats.reading import FIRST_STEPS, Reading
from rmtools.lm.protocol import TreeValues, ValueState
from rmtools.lm.retokenise import prompt_text
from rmtools.lm.steps import EncodedTree, StepSettings, StepTokenizer
from rmtools.particles.tilt import Tilt

JOINED = "\x1f"
KNOWN = Convention(RECORDED, "recorded", "depends", "recorded scores of another model")
HOW = (
    'JSON lines {"prompt": …, "steps": […], "scores": […]}, or a JSON object with "records" by '
    '"ID:first 16 digits of the SHA-256 of the joined steps"'
)


def prefix_key(problem: str, steps: Sequence[str]) -> str:
    """Return the key of a prefix: the problem's ID and a hash of its steps."""
    return f"{problem}:{hashlib.sha256(JOINED.join(steps).encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Recording:
    """The scores of a file: by `prefix_key` the p of every step, and the ID of every question."""

    scores: Mapping[str, Sequence[float]]
    problems: Mapping[str, str]
    name: str

    @classmethod
    def load(cls, file: str | Path) -> "Recording":
        """Read a file; raise ``UserError`` if it cannot be read, or a score is no probability."""
        path = Path(file)
        if not path.is_file():
            raise UserError(f"there are no recorded scores at {file}: it is no file", f"name a file: {HOW}")
        if path.suffix == ".jsonl":
            return cls._of_lines(path)
        found = read_json(path, "the recorded scores")
        records = found.get("records") if isinstance(found, dict) else None
        if not isinstance(records, dict):
            raise UserError(f"{file} holds no recorded scores", f"write {HOW}")
        beside = path.with_name(path.name.replace("-prm", "-steps"))
        problems = found.get("problems") or (
            read_json(beside, "the problems").get("problems", [])
            if beside != path and beside.is_file()
            else []
        )
        scores = {str(key): _probabilities(given, f"{file}: {key}") for key, given in records.items()}
        return cls(scores, {str(p["prompt"]).strip(): str(p["id"]) for p in problems}, str(file))

    @classmethod
    def _of_lines(cls, path: Path) -> "Recording":
        scores: dict[str, Sequence[float]] = {}
        for n, row in read_json_lines(path):
            if not isinstance(row, dict) or not {"prompt", "steps", "scores"} <= row.keys():
                raise UserError(f"{path}: line {n} lacks prompt, steps or scores", f"write {HOW}")
            steps = [str(s).strip() for s in row["steps"]]
            given = _probabilities(row["scores"], f"{path}: line {n}")
            if len(given) != len(steps):
                raise UserError(
                    f"{path}: line {n} has {len(given)} scores for {len(steps)} steps",
                    "write a score for every step",
                )
            for t in range(len(steps)):
                scores[prefix_key(str(row["prompt"]).strip(), steps[: t + 1])] = given[: t + 1]
        return cls(scores, {}, str(path))

    def at(self, question: str, steps: Sequence[str]) -> np.ndarray:
        """Return log p (T,) of the steps of a prefix; raise ``UserError``, which names it, if it was not recorded."""
        key = prefix_key(self.problems.get(question, question), steps)
        found = self.scores.get(key)
        if found is None:
            shown = " … ".join(s if len(s) < 60 else f"{s[:57]}..." for s in steps) or "no steps"
            raise UserError(
                f"{self.name} has no score of the prefix {question[:60]!r} with {len(steps)} steps ({shown!r}), key {key}",
                "record it too, or leave the rows with it out",
            )
        if len(found) != len(steps):
            raise UserError(
                f"{self.name} has {len(found)} scores of a prefix of {len(steps)} steps, key {key}",
                "record a score for every step",
            )
        with np.errstate(divide="ignore"):
            return np.log(np.asarray(found, dtype=np.float64))


def _probabilities(given: Any, where: str) -> Sequence[float]:
    values = given if isinstance(given, list) else [given]
    if not all(isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 1 for p in values):
        raise UserError(f"{where}: the scores {str(given)[:60]} are not all in [0, 1]", f"write {HOW}")
    return [float(p) for p in values]


@dataclass(frozen=True)
class RecordedState:
    """The ``ValueState`` of a `RecordedPRM`: the question and the steps of each prefix."""

    prefixes: tuple[tuple[str, tuple[str, ...]], ...]

    def select(self, rows: Tensor) -> "RecordedState":
        """Return the prefixes ``rows`` (B',)."""
        return RecordedState(tuple(self.prefixes[i] for i in rows.tolist()))

    def join(self, other: "RecordedState") -> "RecordedState":
        """Return these prefixes followed by those of ``other``."""
        return RecordedState(self.prefixes + other.prefixes)


class RecordedPRM:
    """Recorded scores as a `Scorer`: it has values at the recorded prefixes, and an error that names any other.

    Parameters
    ----------
    recording : Recording
    settings : StepSettings
        Where the policy's steps end.
    reading : Reading
        Floor, root value, aggregate.
    """

    is_probability = True
    prompt_format = None
    solution_tokens = None
    told_by = "it was named"
    convention = KNOWN

    def __init__(self, recording: Recording, settings: StepSettings, reading: Reading) -> None:
        from rmtools.lm.tokenizers import bpe_tokenizer

        self.recording = recording
        self.reading = reading
        self.name = recording.name
        self.tilt = Tilt(reading.floor)
        self.first_steps = reading.root_value == FIRST_STEPS
        # Byte by byte: any text comes back as it was.
        self.steps = StepTokenizer(bpe_tokenizer([], 259), settings)
        self.question_of: Callable[[str], str] = lambda prompt: prompt

    def reading_of(self, steps: StepTokenizer) -> "RecordedPRM":
        """Return this as a scorer of what a policy with ``steps`` writes."""
        other = copy.copy(self)
        other.steps = steps
        return other

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Return the recorded values of every prefix and child of every tree; raise ``UserError`` for one without a score."""
        found = []
        for tree in trees:
            prompt, steps, children = tree.parts()
            question, own = self._question(prompt), [self._text(s) for s in steps]
            log_value = [
                self.reading.root,
                *(self.log_value(question, own[: t + 1]) for t in range(len(own))),
            ]
            branches = [
                np.asarray(
                    [self.log_value(question, [*own[:t], self._text(c)]) for c in at], dtype=np.float64
                )
                for t, at in enumerate(children)
            ]
            found.append(TreeValues(np.asarray(log_value), branches))
            if progress is not None:
                progress(1)
        return found

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Return the root value for each prompt, and the state."""
        state = RecordedState(tuple((self._question(p), ()) for p in prompts))
        return torch.full((len(prompts),), self.reading.root, dtype=torch.float64), state

    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Return the log values (B,) nats after a new step ``tokens`` (B, L; -1 = no token), and the state."""
        assert isinstance(state, RecordedState)
        values, after = [], []
        for (question, steps), row in zip(state.prefixes, tokens.tolist(), strict=True):
            ids = [i for i in row if i >= 0]
            longer = (*steps, self._text(ids)) if ids else steps
            values.append(self.log_value(question, longer) if ids else float("nan"))
            after.append((question, longer))
        found = torch.tensor(values, dtype=torch.float64, device=tokens.device)
        return found, replace(state, prefixes=tuple(after))

    def log_value(self, question: str, steps: Sequence[str], *, tilted: bool = True) -> float:
        """Return the log value after ``steps``, nats; the log of p itself if not ``tilted``."""
        return float(self.reading.log_values(self.recording.at(question, steps), tilted=tilted)[-1])

    def _question(self, ids: Sequence[int]) -> str:
        return self.question_of(prompt_text(self.steps, ids)).strip()

    def _text(self, ids: Sequence[int]) -> str:
        kept = list(ids)
        while kept and kept[-1] in self.steps.end_ids:
            kept.pop()
        return self.steps.step_text(kept).strip() if kept else ""

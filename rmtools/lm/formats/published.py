"""A published PRM as a scorer: texts in, values out, whatever the tokens of the policy.

What the policy wrote is read as text and rendered as the PRM's convention says; the PRM keeps its own caches.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.formats.conventions import Convention
from rmtools.lm.formats.reading import FIRST_STEPS, Reading
from rmtools.lm.formats.rendering import Rendering
from rmtools.lm.implicit import ImplicitValue
from rmtools.lm.protocol import TreeValues, ValueState
from rmtools.lm.retokenise import prompt_text
from rmtools.lm.steps import EncodedTree, StepTokenizer
from rmtools.lm.tree_scoring import padded
from rmtools.lm.value import ValueModel, tree_values
from rmtools.particles.tilt import Tilt

BROKEN_CHARACTER = "\ufffd"
# As many label masses are kept: enough for a median.
MOST_MASSES = 100_000


class StepProbabilities(ValueModel):
    """The log of p at the last token of every row, nats, without a tilt.

    ``masses`` are the probabilities that both label tokens had together where a tree's values are read, those of its branches
    alone if ``branches_only``; ``last_masses`` those of the rows that were read last.
    """

    def __init__(self, model: Any, steps: StepTokenizer, name: str, branches_only: bool = False) -> None:
        super().__init__(model, steps, Tilt(0.5), name)
        self.branches_only = branches_only
        self.masses: list[float] = []
        self.last_masses: Tensor | None = None

    def _log_values(self, logits: Tensor) -> np.ndarray:
        """Return (B, L, 1 or 2): log p, and the log of the labels' mass."""
        mass = _log_mass(logits)
        found = torch.stack([_log_p(logits), *([] if mass is None else [mass])], dim=-1)
        return found.cpu().numpy().astype(np.float64)

    def _read(self, logits: Tensor) -> Tensor:
        mass = _log_mass(logits)
        self.last_masses = None if mass is None else mass.exp().cpu()
        return _log_p(logits)

    def _tree_values(self, values: np.ndarray, tree: EncodedTree, index: int) -> TreeValues:
        if values.shape[-1] == 2:
            own = [] if self.branches_only else [tree.reads[1:]]
            for at in (*own, *tree.child_reads):
                self.note(np.exp(values[at, 1]).tolist())
        return tree_values(values[:, 0], tree, index)

    def note(self, masses: list[float]) -> None:
        """Keep masses for `PublishedPRM.label_mass`."""
        if len(self.masses) < MOST_MASSES:
            self.masses += masses


def _log_p(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits[..., :2].float(), dim=-1)[..., 1]


def _log_mass(logits: Tensor) -> Tensor | None:
    if logits.shape[-1] < 3:
        return None
    return torch.logsumexp(logits[..., :2].float(), -1) - logits[..., 2].float()


class VerbatimPRM(ValueModel):
    """A published PRM that reads the policy's own text: prompts as they were rendered, steps with their delimiters."""

    first_steps = False
    source = ""

    def __init__(
        self,
        model: Any,
        steps: StepTokenizer,
        reading: Reading,
        name: str,
        convention: Convention,
        told_by: str,
    ) -> None:
        super().__init__(model, steps, Tilt(reading.floor), name)
        self.reading = reading
        self.convention = convention
        self.told_by = told_by


class ScaledRatio:
    """An `ImplicitValue` times ``beta``: log V = beta (log pi_a - log pi_ref), nats."""

    def __init__(self, ratio: ImplicitValue, beta: float) -> None:
        self.ratio = ratio
        self.beta = beta
        self.steps = ratio.steps
        self.name = ratio.name

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Score every prefix and child of every tree."""
        return [
            TreeValues(self.beta * v.log_value, [self.beta * at for at in v.children])
            for v in self.ratio.score(trees, progress)
        ]

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Return log values (B,) nats of prompts, and the state."""
        return self.ratio.start(prompts)

    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Return log values (B,) nats after a step (B, L; -1 = no token), and the state."""
        values, state = self.ratio.advance(state, tokens)
        return self.beta * values, state


@dataclass(frozen=True)
class PublishedState:
    """The ``ValueState`` of a `PublishedPRM`: B prefixes.

    Attributes
    ----------
    inner : ValueState
        What the PRM has read, readings dropped.
    question : Tensor
        (B,) index into ``questions``.
    depth : Tensor
        (B,) steps so far.
    total : Tensor
        (B,) what the aggregate has made of their log p, float64.
    questions : tuple of str
    """

    inner: ValueState
    question: Tensor
    depth: Tensor
    total: Tensor
    questions: tuple[str, ...]

    def select(self, rows: Tensor) -> "PublishedState":
        """Return the prefixes ``rows`` (B',)."""
        at = rows.to(self.depth.device)
        return replace(
            self,
            inner=self.inner.select(rows),
            question=self.question[at],
            depth=self.depth[at],
            total=self.total[at],
        )

    def join(self, other: "PublishedState") -> "PublishedState":
        """Return these prefixes followed by those of ``other``."""
        return PublishedState(
            self.inner.join(other.inner),
            torch.cat([self.question, other.question + len(self.questions)]),
            torch.cat([self.depth, other.depth]),
            torch.cat([self.total, other.total]),
            (*self.questions, *other.questions),
        )


class PublishedPRM:
    """A published PRM as a `Scorer`, for any policy.

    Parameters
    ----------
    inner : StepProbabilities or ScaledRatio
        The model over its own token ids.
    rendering : Rendering
        How texts become these ids.
    reading : Reading
        Floor, root value, aggregate.
    name : str
        For messages and provenance.
    told_by : str
        What tells its format.

    Attributes
    ----------
    steps : StepTokenizer
        What texts are read with: the PRM's own tokenizer, or the policy's.
    first_steps : bool
        Whether the value of a prompt alone is to be the mean over the first steps: `score` gives the value of p = 1/2 there.
    source : str
        What finds the same files again: folder, or hub name with commit.
    question_of : callable
        Returns the question of a prompt; by default the prompt itself. Set it where prompts are rendered.
    """

    prompt_format = None
    solution_tokens = None
    source = ""

    def __init__(
        self,
        inner: "StepProbabilities | ScaledRatio",
        rendering: Rendering,
        reading: Reading,
        name: str,
        told_by: str = "it was named",
    ) -> None:
        self.inner = inner
        self.rendering = rendering
        self.reading = reading
        self.name = name
        self.told_by = told_by
        self.steps = rendering.steps
        self.tilt = Tilt(reading.floor)
        self.is_probability = isinstance(inner, StepProbabilities)
        self.first_steps = not self.convention.root and reading.root_value == FIRST_STEPS
        self.question_of: Callable[[str], str] = lambda prompt: prompt

    @property
    def convention(self) -> Convention:
        """How the PRM is read."""
        return self.rendering.convention

    @property
    def model(self) -> Any:
        """The model in memory; of a ratio that in the numerator."""
        return (
            self.inner.model if isinstance(self.inner, StepProbabilities) else self.inner.ratio.target.model
        )

    def reading_of(self, steps: StepTokenizer) -> "PublishedPRM":
        """Return this PRM as a scorer of what a policy with ``steps`` writes: its text is rendered again."""
        if steps is self.steps:
            return self
        other = copy.copy(self)
        other.steps = steps
        return other

    def label_mass(self) -> tuple[float, float] | None:
        """Return the median and the smallest probability of both labels together, where any were read."""
        masses = self.inner.masses if isinstance(self.inner, StepProbabilities) else []
        return (float(np.median(masses)), float(min(masses))) if masses else None

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Score every prefix and child of every tree, given in the ids of ``steps``.

        Raises ``UserError`` where the boundary of a step does not survive in its text, and ``NaNValueError``.
        """
        found = self.inner.score([self._rendered(t) for t in trees], progress)
        return [self._aggregated(v) for v in found]

    def _rendered(self, tree: EncodedTree) -> EncodedTree:
        prompt, steps, children = tree.parts()
        question = self._question(prompt)
        texts = [self._text(s) for s in steps]
        own = [self.rendering.step(question, s, k) for k, s in enumerate(texts)]
        others = [
            [self.rendering.step(question, self._text(c), k) for c in at] for k, at in enumerate(children)
        ]
        if tail := self.rendering.verdict:
            others = [[s + tail, *(c + tail for c in at)] for s, at in zip(own, others, strict=True)]
        return EncodedTree.of(self.rendering.prompt(question), own, others)

    def _aggregated(self, values: TreeValues) -> TreeValues:
        """Return the values of prefixes from those of steps."""
        if not self.is_probability:
            return values
        own, children = values.log_value.copy(), values.children
        if self.rendering.verdict:
            own[1:] = [at[0] for at in children]
            children = [at[1:] for at in children]
        log_value = np.concatenate([[self._root(float(own[0]))], self.reading.log_values(own[1:])])
        branches, total = [], self.reading.start
        for t, at in enumerate(children):
            branches.append(self.reading.log_value(self.reading.added(total, at), t + 1))
            total = self.reading.added(total, own[t + 1])
        return TreeValues(log_value, branches)

    def _root(self, log_p: float) -> float:
        """Return the log value of a prompt alone, of which the model itself says ``log_p``."""
        own = self.convention.root
        return float(self.reading.log_value(log_p, 1)) if own else self.reading.root

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Return the log values (B,) nats of prompts given as ids of ``steps``, and the state."""
        questions = [self._question(list(p)) for p in prompts]
        values, inner = self.inner.start([self.rendering.prompt(q) for q in questions])
        log_p = values.double().cpu().tolist()
        roots = [self._root(v) for v in log_p] if self.is_probability else log_p
        at = torch.arange(len(prompts))
        total = torch.full((len(prompts),), self.reading.start, dtype=torch.float64)
        state = PublishedState(inner, at, torch.zeros_like(at), total, tuple(questions))
        return torch.tensor(roots, dtype=torch.float64, device=values.device), state

    @torch.inference_mode()
    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Return the log values (B,) nats after a new step ``tokens`` (B, L; ids of ``steps``, -1 = no token), and the state.

        A row without a new token gets NaN: its value is unchanged.
        """
        assert isinstance(state, PublishedState)
        rows = [[i for i in row if i >= 0] for row in tokens.tolist()]
        new = torch.tensor([bool(row) for row in rows])
        if not bool(new.any()):
            return torch.full((len(rows),), torch.nan, dtype=torch.float64, device=tokens.device), state
        ids = [
            self.rendering.step(state.questions[q], self._text(row), k) if row else []
            for row, q, k in zip(rows, state.question.tolist(), state.depth.tolist(), strict=True)
        ]
        found, inner = self.inner.advance(state.inner, padded(ids, -1, tokens.device))
        if tail := self.rendering.verdict:  # on a cache of its own: the next step does not see it
            ends = padded([tail if row else [] for row in rows], -1, tokens.device)
            found, _ = self.inner.advance(inner, ends)
        if isinstance(self.inner, StepProbabilities) and self.inner.last_masses is not None:
            self.inner.note(self.inner.last_masses[new].tolist())
        log_p = found.double().cpu()
        total = torch.where(new, self.reading.added(state.total, log_p), state.total)
        depth = state.depth + new.long()
        after = replace(state, inner=inner, depth=depth, total=total)
        if not self.is_probability:
            return found, after
        values = torch.from_numpy(self.reading.log_value(total.numpy(), depth.clamp(min=1).numpy()))
        return torch.where(new, values, torch.nan).to(tokens.device), after

    def _question(self, ids: Sequence[int]) -> str:
        return self.question_of(prompt_text(self.steps, ids)).strip()

    def _text(self, ids: Sequence[int]) -> str:
        """Return the text of a step as the PRM reads it, without what ends a solution and the white space around it."""
        kept = list(ids)
        while kept and kept[-1] in self.steps.end_ids:
            kept.pop()
        text = self.steps.step_text(kept) if kept else ""
        if text[:1] == BROKEN_CHARACTER or text[-1:] == BROKEN_CHARACTER:
            raise UserError(
                f"a step begins or ends within a character ({text[-40:]!r}): in the text that {self.name} reads it would have "
                "another end",
                "let steps end on a delimiter, or use a PRM with the policy's tokenizer",
            )
        tag = self.convention.tag.strip()
        if tag and tag in text:
            raise UserError(
                f"a step holds {tag!r}, the tag at which {self.name} is read: it would be another end of a step "
                f"({text[-60:]!r})",
                "leave such solutions out, or use a PRM with another tag",
            )
        return text.strip()

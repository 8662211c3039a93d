"""Encode rollouts for the trainer: token ids, log potentials, and what the target of each prefix needs.

Identical alternatives of a prefix are encoded once and counted. One that ended is not encoded: its value is its
potential. One that equals the trajectory's own next step is read there.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rmtools.data.encoding import encode_row, is_own_step, keeps_ids_of
from rmtools.data.rollouts import Child, Rollout
from rmtools.errors import UserError
from rmtools.lm.steps import EncodedTree, StepTokenizer
from rmtools.particles.tilt import Tilt
from rmtools.training.targets import BOOTSTRAPPED

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A trajectory as the trainer sees it; values in nats.

    Attributes
    ----------
    tree : EncodedTree
        Tokens of the trajectory and of its distinct unfinished alternatives.
    log_potential : float
        Log potential of the outcome, NaN without one.
    complete : bool
        False if the last steps were cut: the last prefix is then not the end.
    child_reads, child_log_potential, child_log_count : list of np.ndarray
        Per depth (empty for a row without alternatives): where a distinct alternative is read (-1: it ended), its
        log potential (NaN: it is unfinished), and log of how often it was drawn.
    completion_log_potential : list of np.ndarray
        Per depth, of the extra completions.
    log_label : np.ndarray
        (T,) log values of the given labels, NaN for a step without label.
    counts : bool
        False for a row that only fills a batch: it has no loss.
    """

    tree: EncodedTree
    log_potential: float
    complete: bool
    child_reads: list[np.ndarray]
    child_log_potential: list[np.ndarray]
    child_log_count: list[np.ndarray]
    completion_log_potential: list[np.ndarray]
    log_label: np.ndarray
    counts: bool = True

    @property
    def length(self) -> int:
        """Number of steps kept."""
        return len(self.tree.reads) - 1


def example(
    row: Rollout, steps: StepTokenizer, tilt: Tilt, keep: int | None = None, *, emitted: bool = False
) -> Example:
    """Encode a rollout, or its first ``keep`` steps; ``emitted`` as for `encode_row`."""
    kept = len(row.steps) if keep is None else keep
    counted = [list(Counter(at).items()) for at in row.children[:kept]]  # in order of first appearance
    own = [[is_own_step(row, t, c, emitted=emitted) for c, _ in at] for t, at in enumerate(counted)]
    unfinished = [
        [c for (c, _), same in zip(at, is_own, strict=True) if not c.ended and not same]
        for at, is_own in zip(counted, own, strict=True)
    ]
    tree = encode_row(row, steps, unfinished, keep=kept, emitted=emitted)
    return Example(
        tree=tree,
        log_potential=float(_log_potential([row.reward], tilt)[0]),
        complete=kept == len(row.steps),
        child_reads=[_child_reads(tree, t, at, own[t]) for t, at in enumerate(counted)],
        child_log_potential=[
            _log_potential([c.reward if c.ended else None for c, _ in at], tilt) for at in counted
        ],
        child_log_count=[np.log([n for _, n in at]) for at in counted],
        completion_log_potential=[_log_potential(at, tilt) for at in row.completions[: kept + 1]],
        log_label=_log_potential((row.labels or [None] * kept)[:kept], tilt),
    )


def _child_reads(
    tree: EncodedTree, t: int, at: Sequence[tuple[Child, int]], own: Sequence[bool]
) -> np.ndarray:
    encoded, here = iter(tree.child_reads[t].tolist()), int(tree.reads[t + 1])
    found = [-1 if c.ended else here if same else next(encoded) for (c, _), same in zip(at, own, strict=True)]
    return np.asarray(found, dtype=np.int64)


def _log_potential(rewards: Sequence[float | None], tilt: Tilt) -> np.ndarray:
    """Return log potentials, NaN without reward."""
    known = np.asarray([math.nan if r is None else r for r in rewards], dtype=np.float64)
    return np.where(np.isnan(known), math.nan, tilt.log_potential(np.nan_to_num(known)))


@dataclass
class Prepared:
    """The examples of a dataset, and the rows that were cut or left out.

    Attributes
    ----------
    examples : list of Example
    shortened : int
        Rows that lost their last steps to ``max_length``: bootstrapped targets do not see their outcome.
    dropped : list of str
        Names of rows without any prefix to train on, with the reason.
    """

    examples: list[Example]
    shortened: int
    dropped: list[str]


def prepare(
    rows: Sequence[Rollout], steps: StepTokenizer, tilt: Tilt, target: str, max_length: int | None
) -> Prepared:
    """Encode every row; cut those longer than ``max_length`` tokens at the end of a step.

    Raises ``UserError`` if a row lacks what ``target`` needs (row and field named), or no row is left.
    """
    _require_fields(rows, target)
    found, emitted = Prepared([], 0, []), keeps_ids_of(rows, steps)
    for i, row in enumerate(rows):
        keep = _steps_that_fit(row, steps, max_length, emitted)
        why = _unusable(row, keep, target)
        if why:
            found.dropped.append(f"{_name(i, row)}: {why}")
            continue
        found.shortened += keep < len(row.steps)
        found.examples.append(example(row, steps, tilt, keep, emitted=emitted))
    if not found.examples:
        raise UserError(
            f"no row is left to train on: {found.dropped[0]}",
            "raise max_length, or give rows that have targets",
        )
    if target in BOOTSTRAPPED:
        _require_outcomes(found.examples, max_length)
    _require_known(found.examples, steps)
    inexact = sum(not e.tree.exact for e in found.examples)
    if inexact:
        logger.warning(
            "%d of %d rows: a step ends within a token; its value is read there",
            inexact,
            len(found.examples),
        )
    if found.shortened or found.dropped:
        lost = (
            f", and with them the outcome that target {target} learns from" if target in BOOTSTRAPPED else ""
        )
        first = f", first {found.dropped[0]}" if found.dropped else ""
        logger.warning(
            f"max_length {max_length}: {found.shortened} of {len(rows)} rows lost their last steps{lost}; "
            f"{len(found.dropped)} left out{first}"
        )
    return found


def _require_known(examples: Sequence[Example], steps: StepTokenizer) -> None:
    """Log how many tokens are unknown to the tokenizer; raise ``UserError`` if most of them are."""
    unknown = steps.tokenizer.unk_token_id
    found = sum(int((e.tree.ids == unknown).sum()) for e in examples)
    total = sum(len(e.tree.ids) for e in examples)
    if found > total // 2:
        raise UserError(
            f"the tokenizer does not know {found} of the {total} tokens of the training rows: its vocabulary is for "
            "other texts",
            "use the model that belongs to these texts",
        )
    if found:
        logger.warning("the tokenizer does not know %d of the %d tokens of the training rows", found, total)


def _require_outcomes(examples: Sequence[Example], max_length: int | None) -> None:
    """Raise ``UserError`` if no outcome is left for a bootstrapped target: values would chase themselves."""
    ended = any((reads == -1).any() for e in examples for reads in e.child_reads)
    if not ended and not any(e.complete for e in examples):
        raise UserError(
            f"max_length {max_length} cuts the last step of every row, and no alternative step ends a solution: not one "
            "outcome is left, and the target would consist of the model's own values",
            "raise max_length, or train with target mc, which needs no last step",
        )


def _name(index: int, row: Rollout) -> str:
    begin = row.prompt if len(row.prompt) <= 40 else f"{row.prompt[:40]}…"
    return f"row {index} (prompt {row.prompt_id}, {begin!r})"


def _require_fields(rows: Sequence[Rollout], target: str) -> None:
    """Raise ``UserError`` if a row lacks what ``target`` needs."""
    field, need, fix = "reward", "the outcome", "train with target labels, or give rollouts with rewards"
    if target == "labels":
        field, need, fix = (
            "labels",
            "a label per step",
            "train with target mc or td, or give rows with labels",
        )
    for i, row in enumerate(rows):
        if getattr(row, field) is None:
            raise UserError(f"{_name(i, row)}, field {field}: is null, target {target} needs {need}", fix)


def _steps_that_fit(row: Rollout, steps: StepTokenizer, max_length: int | None, emitted: bool) -> int:
    """Return how many steps fit into ``max_length`` tokens, -1 if the prompt alone does not."""
    if max_length is None:
        return len(row.steps)
    ends = encode_row(row, steps, emitted=emitted).reads + 1
    return int(np.searchsorted(ends, max_length, side="right")) - 1


def within(rows: Sequence[Rollout], steps: StepTokenizer, max_length: int | None) -> list[Rollout]:
    """Return the rows of at most ``max_length`` tokens; raise ``UserError`` if there are rows and none fits.

    A cut solution has no outcome, and held-out metrics need outcomes.
    """
    emitted = keeps_ids_of(rows, steps)
    kept = [r for r in rows if _steps_that_fit(r, steps, max_length, emitted) == len(r.steps)]
    if rows and not kept:
        raise UserError(
            f"all {len(rows)} held-out rows are longer than {max_length} tokens",
            "raise max_length, or hold out shorter rows",
        )
    if len(kept) < len(rows):
        left = len(rows) - len(kept)
        logger.warning("max_length %s: %d of %d held-out rows left out", max_length, left, len(rows))
    return kept


def _unusable(row: Rollout, keep: int, target: str) -> str:
    """Return why the row's first ``keep`` steps give no example, or an empty string."""
    if keep < 0:
        return "its prompt alone is longer than max_length"
    if target == "labels" and all(x is None for x in (row.labels or [])[:keep]):
        return (
            "no labelled step is left within max_length" if keep < len(row.steps) else "has no labelled step"
        )
    if keep == 0 and target != "mc":
        return "not one step fits into max_length"
    return ""

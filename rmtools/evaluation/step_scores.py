"""The probability of a value model at the prompt and behind every step of given solutions, and what reading them cost."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rmtools.data.encoding import encode_row, keeps_ids_of
from rmtools.data.prompts import render_rows
from rmtools.data.rollouts import Rollout, Rollouts
from rmtools.errors import UserError
from rmtools.lm.prompt_format import PromptFormat, require_same_format
from rmtools.lm.protocol import Scorer
from rmtools.lm.scorer_checks import require_scores, require_tree_values
from rmtools.sampling.records import weights_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """What a verifier took.

    Attributes
    ----------
    solutions : int
    tokens : float
        Read, prompts included, each solution by itself.
    parameters : int or None
        Weights of the model; None if they are not in this process.
    flops : float or None
        2 per weight and token, attention not counted.
    seconds : float
    """

    solutions: int
    tokens: float
    parameters: int | None
    flops: float | None
    seconds: float


@dataclass(frozen=True)
class StepScores:
    """Probabilities of rows: ``p`` has an array (T + 1,) for each, at the prompt (NaN if it has none) and behind each step.

    ``too_long`` are the rows that the model's context cannot hold: their arrays are empty.
    """

    p: list[np.ndarray]
    too_long: tuple[int, ...]
    cost: Cost


def rows_as_trained(rows: Rollouts, scorer: Scorer) -> Rollouts:
    """Return rows with their prompts as the model reads them.

    Those of a checkpoint are rendered in its format, unless they are known to be; a published model that renders questions
    itself gets the questions, where these are known.

    Raises ``UserError`` if they are rendered in another format.
    """
    form: PromptFormat | None = getattr(scorer, "prompt_format", None)
    if form is None:
        own = hasattr(scorer, "question_of")
        return replace(rows, rows=[replace(r, prompt=r.question or r.prompt) for r in rows]) if own else rows
    if rows.metadata.format_known:
        require_same_format(rows.metadata.prompt_format, form, "the rollouts'")
        return rows
    return render_rows(rows, form, scorer.steps.tokenizer)


def score_steps(
    rows: Sequence[Rollout], scorer: Scorer, progress: Callable[[int], object] | None = None
) -> StepScores:
    """Return the probabilities of a model behind every step.

    Parameters
    ----------
    rows : sequence of Rollout
        Their rewards and branches are not read.
    scorer : Scorer
    progress : callable, optional
        Called with the number of rows done.

    Raises
    ------
    UserError
        If values of the model are no probabilities, or its tokenizer does not know the prompts.
    """
    if not scorer.is_probability:
        raise UserError(
            f"the values of {scorer.name} are no probabilities, and an evaluation compares them with a threshold or outcomes",
            "evaluate a model whose values are probabilities",
        )
    for prompt in dict.fromkeys(row.prompt for row in rows):
        scorer.steps.require_known(prompt)
    emitted, began = keeps_ids_of(rows, scorer.steps), time.monotonic()
    trees = [encode_row(row, scorer.steps, emitted=emitted) for row in rows]
    most = context_of(scorer)
    fits = [i for i, tree in enumerate(trees) if most is None or len(tree.ids) <= most]
    if progress is not None and len(fits) < len(trees):
        progress(len(trees) - len(fits))
    if not fits:
        raise UserError(
            f"no solution fits into the {most} tokens of {scorer.name}", "use a model with more context"
        )
    found = scorer.score([trees[i] for i in fits], progress=progress)
    require_scores(scorer, found, len(fits))
    p = [np.zeros(0) for _ in rows]
    for i, values in zip(fits, found, strict=True):
        require_tree_values(scorer.name, values, len(rows[i].steps), [0] * len(values.children))
        p[i] = np.exp(scorer.tilt.log_probability(np.asarray(values.log_value, dtype=np.float64)))
        if getattr(scorer, "first_steps", False):  # a published model that does not value a prompt alone
            p[i][0] = math.nan
    tokens, weights = float(sum(len(trees[i].ids) for i in fits)), weights_of(scorer)
    flops = None if weights is None else 2.0 * weights * tokens
    cost = Cost(len(fits), tokens, weights, flops, round(time.monotonic() - began, 3))
    left_out = tuple(sorted({*range(len(rows))} - {*fits}))
    if left_out:
        logger.warning(
            "%d of %d solutions are longer than the %d tokens that %s takes",
            len(left_out),
            len(rows),
            most,
            scorer.name,
        )
    return StepScores(p, left_out, cost)


def context_of(scorer: Scorer) -> int | None:
    """Return the most tokens that a model takes; None if it does not say."""
    config = getattr(getattr(scorer, "model", None), "config", None)
    if config is None:
        return None
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "max_position_embeddings", None)
    return int(found) if isinstance(found, int) and found > 0 else None

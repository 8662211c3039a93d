"""Where a model is inconsistent: by prompt, by value, and the worst prefixes as text."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rmtools.auditing.cost import CostEstimates, particles
from rmtools.stats.bootstrap import Estimator, Interval, weighted_mean
from rmtools.stats.prefix_errors import PrefixErrors
from rmtools.stats.sigma2 import n_for_cv, n_for_tv, sigma2

if TYPE_CHECKING:
    from rmtools.data.rollouts import Rollout
    from rmtools.data.scoring import ScoredRollouts

VALUE_BINS, WORST, CHILDREN_SHOWN = 5, 8, 6


@dataclass(frozen=True)
class PromptAudit:
    """One prompt: mean reward, mean potential Z, V(s_0); means of b (nats) and of b^2 over its prefixes, NaN without children.

    Intervals are over its trajectories: wide with few.
    """

    prompt_id: str
    prompt: str
    n_trajectories: int
    n_prefixes: int
    success: float
    z: float
    root_value: float
    signed_mean: float
    mean_square_corrected: float
    sigma2: Interval | None
    n_for_cv: Interval | None
    n_for_tv: Interval | None


def by_prompt(
    rows: "Sequence[Rollout]",
    scored: "ScoredRollouts",
    errors: PrefixErrors,
    z: np.ndarray,
    estimates: CostEstimates,
    delta_cv: float,
    delta_tv: float,
) -> tuple[PromptAudit, ...]:
    """Return the figures of every prompt, in the order of ``scored.prompt``."""
    owner, n = scored.prefix_prompt, len(z)
    prefixes = np.bincount(owner, minlength=n)
    use = errors.resolved
    count = np.bincount(owner[use], minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        signed = np.bincount(owner[use], errors.log_error[use], n) / count
        square = np.bincount(owner[use], errors.log_error_square[use], n) / count
        success = np.bincount(scored.prompt, scored.reward, n) / np.bincount(scored.prompt, minlength=n)
    first = {g: i for i, g in reversed(list(enumerate(scored.prompt.tolist())))}
    found = []
    for g in range(n):
        row = rows[first[g]]
        cost = sigma2(estimates.parts[g]).estimate if estimates.parts else None
        sd = estimates.influences[g].sd if estimates.influences else None
        found.append(
            PromptAudit(
                row.prompt_id,
                row.prompt,
                int((scored.prompt == g).sum()),
                int(prefixes[g]),
                float(success[g]),
                float(z[g]),
                float(np.exp(scored.log_value[first[g]][0])),
                float(signed[g]),
                float(square[g]),
                cost,
                particles(cost, n_for_cv, delta_cv),
                particles(sd, n_for_tv, delta_tv),
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class ValueBin:
    """Prefixes whose value lies in [low, high]: mean b (nats) and mean (rho - 1)^2, intervals over prompts."""

    low: float
    high: float
    n_prefixes: int
    signed_mean: Interval
    squared_ratio_error: Interval


def by_value(
    log_value: np.ndarray, errors: PrefixErrors, prompt: np.ndarray
) -> Estimator[tuple[ValueBin, ...]]:
    """Return bins of about equal mass of the value at the prefix; fewer where values coincide."""
    edges = np.unique(np.quantile(log_value, np.linspace(0, 1, VALUE_BINS + 1)[1:-1], method="inverted_cdf"))
    place = np.searchsorted(edges, log_value, side="left")
    bins = [place == k for k in np.unique(place)]
    problems = {
        f"{k} {name}": weighted_mean(values, prompt, inside)
        for k, inside in enumerate(bins)
        for name, values in (("signed", errors.log_error), ("square", errors.squared_error))
    }

    def result(found: Mapping[str, Interval]) -> tuple[ValueBin, ...]:
        return tuple(
            ValueBin(
                float(np.exp(log_value[inside].min())),
                float(np.exp(log_value[inside].max())),
                int(inside.sum()),
                found[f"{k} signed"],
                found[f"{k} square"],
            )
            for k, inside in enumerate(bins)
        )

    return Estimator(problems, result)


@dataclass(frozen=True)
class ShownChild:
    """A next step, its value, and how often it was drawn."""

    text: str
    value: float
    drawn: int
    ended: bool


@dataclass(frozen=True)
class WorstPrefix:
    """A prefix whose value disagrees with its next steps, as a person reads it.

    ``ratio`` is the mean value of the next steps over V(s), ``log_error`` b in nats with its standard error (0 if the next
    steps were enumerated); ``children`` are the most frequent of ``n_children`` drawn.
    """

    prompt_id: str
    prompt: str
    steps: tuple[str, ...]
    value: float
    ratio: float
    log_error: float
    standard_error: float
    children: tuple[ShownChild, ...]
    n_children: int


def worst_prefixes(
    rows: "Sequence[Rollout]", scored: "ScoredRollouts", errors: PrefixErrors, exact: np.ndarray | None
) -> tuple[WorstPrefix, ...]:
    """Return the distinct prefixes with the largest absolute b.

    Enumerated b if available, else sampled b moved two standard errors towards zero: the largest of many estimates are
    mostly noise.
    """
    if exact is not None:
        b, noise = exact, np.zeros(len(exact))
    else:
        # Identical children give no estimate of the noise: chance values would fill the list.
        b, noise = np.where(errors.identical, np.nan, errors.log_error), np.sqrt(errors.log_error_noise)
    size = np.where(np.isfinite(b), np.maximum(np.abs(b) - 2 * noise, 0.0), -1.0)
    found: list[WorstPrefix] = []
    seen: set[tuple[str, str]] = set()
    for i in np.argsort(-size, kind="stable"):
        if len(found) == WORST or size[i] <= 0:
            break
        row, depth = rows[scored.prefix_trajectory[i]], int(scored.prefix_depth[i])
        name = (row.prompt_id, "".join(row.steps[:depth]))
        if name not in seen:
            seen.add(name)
            found.append(_shown(row, depth, scored, int(i), float(b[i]), float(noise[i])))
    return tuple(found)


def _shown(
    row: "Rollout", depth: int, scored: "ScoredRollouts", i: int, b: float, noise: float
) -> WorstPrefix:
    own_ends = depth + 1 == len(row.steps)
    drawn = [
        (row.steps[depth], own_ends),
        *((c.text, c.ended) for c in (row.children or [[]] * (depth + 1))[depth]),
    ]
    values = np.exp(scored.child_log_value[i, : len(drawn)]).tolist()
    groups = Counter((text, ended, value) for (text, ended), value in zip(drawn, values, strict=True))
    common = sorted(groups.items(), key=lambda kv: (-kv[1], -kv[0][2]))[:CHILDREN_SHOWN]
    return WorstPrefix(
        row.prompt_id,
        row.prompt,
        tuple(row.steps[:depth]),
        float(np.exp(scored.prefix_log_value[i])),
        float(np.exp(b)),
        b,
        noise,
        tuple(ShownChild(text, value, n, ended) for (text, ended, value), n in common),
        len(drawn),
    )

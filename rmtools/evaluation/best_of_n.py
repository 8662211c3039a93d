"""Best-of-n, majority and weighted majority on samples of each problem, as n grows; what the verifier costs beside them.

The figure at n is the expectation over n of a problem's samples drawn without replacement: exact for best-of-n and for "one of
them is right", over all subsets or `SUBSETS` random ones for the majorities. Ties are split evenly.

>>> import numpy as np
>>> score, right = np.array([0.9, 0.5, 0.1]), np.array([0.0, 1.0, 1.0])
>>> [round(best_of(score, right, n), 4) for n in (1, 2, 3)]
[0.6667, 0.3333, 0.0]
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rmtools.errors import UserError
from rmtools.evaluation.recorded import ProblemSamples, RecordedSamples
from rmtools.evaluation.shares import differences, first_mean, share_intervals
from rmtools.evaluation.step_scores import Cost
from rmtools.stats.bootstrap import Interval

SUBSETS = 256
QUANTILE = 0.9
"""The chance of a right solution among N that instance-adaptive scaling asks for."""


@dataclass(frozen=True)
class Point:
    """A share at ``n`` samples per problem, with its 95% interval over problems."""

    n: int
    estimate: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Share:
    """A share of problems at the largest n, with its 95% interval over problems, and the curve over n."""

    estimate: float
    low: float | None
    high: float | None
    curve: tuple[Point, ...]


@dataclass(frozen=True)
class Choice:
    """What choosing by scores of one aggregation gives: the best sample, and the answer of the largest sum of scores."""

    best_of_n: Share
    weighted_majority: Share


@dataclass(frozen=True)
class CurvePoint:
    """Every method at ``n`` samples per problem, and what a problem takes: tokens, FLOPs; None where unknown."""

    n: int
    methods: dict[str, Interval]
    generated_tokens: float | None
    verifier_tokens: float | None
    flops: float | None


@dataclass(frozen=True)
class Adaptive:
    """Instance-adaptive scaling: N = ceil(log(1 - q) / log(1 - p)) samples of a problem, at most those there are.

    Attributes
    ----------
    p_from : str
        "root value" (what the model says of the problem) or "hindsight" (the share of its samples that are right).
    q : float
        The chance of a right sample asked for.
    mean_n : float
    capped : int
        Problems for which N is more than the samples there are, those with p = 0 among them.
    best_of_n, oracle : Interval
    fixed_n : int
        The mean N rounded: as many for every problem.
    fixed_best_of_n : Interval
    """

    p_from: str
    q: float
    mean_n: float
    capped: int
    best_of_n: Interval | None
    oracle: Interval
    fixed_n: int
    fixed_best_of_n: Interval | None


@dataclass(frozen=True)
class BestOfN:
    """Best-of-n on samples of many problems; ``evaluate.json`` is this.

    Attributes
    ----------
    best_of_n : Share or None
        By the scores of ``aggregate``; None without a verifier.
    pass_at_1, oracle, majority : Share
        One sample; one of n is right; the most frequent answer.
    aggregations : dict
        By how scores of steps became one.
    gains : dict of Interval
        Best-of-n (and weighted majority) at n minus others, on the same problems.
    curve : tuple of CurvePoint
    cost : Cost or None
        Of the verifier, all samples; None if the recording does not say.
    """

    source: str
    verifier: str
    policy: str
    aggregate: str
    n: int
    n_problems: int
    n_samples: int
    best_of_n: Share | None
    pass_at_1: Share
    oracle: Share
    majority: Share
    weighted_majority: Share | None
    aggregations: dict[str, Choice]
    gains: dict[str, Interval]
    adaptive: tuple[Adaptive, ...]
    curve: tuple[CurvePoint, ...]
    cost: Cost | None
    provenance: dict[str, Any] = field(default_factory=dict)
    kind: str = "best-of-n"


def best_of(score: np.ndarray, value: np.ndarray, n: int) -> float:
    """Return the expected value of the sample of the largest score among n of M drawn without replacement.

    Parameters
    ----------
    score, value : np.ndarray
        (M,) each; samples of equal score are taken with equal chance.
    n : int
        1 to M. With ``score`` = ``value`` this is the chance that one of n is right (pass@n).
    """
    _, group = np.unique(-np.asarray(score, dtype=np.float64), return_inverse=True)
    size = np.bincount(group)
    mean = np.bincount(group, value) / size
    left = len(group) - np.concatenate([[0], np.cumsum(size)])  # samples at or below each group
    chance = [math.comb(a, n) - math.comb(b, n) for a, b in itertools.pairwise(left.tolist())]
    total = math.comb(len(group), n)
    return math.fsum(c / total * float(m) for c, m in zip(chance, mean, strict=True))


def subsets_of(m: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return subsets of n of m as rows (S, m) of 0 and 1: all if they are at most `SUBSETS`, else as many random ones."""
    if math.comb(m, n) <= SUBSETS:
        chosen = np.asarray(list(itertools.combinations(range(m), n)))
    else:
        chosen = np.argsort(rng.random((SUBSETS, m)), axis=1)[:, :n]
    rows = np.zeros((len(chosen), m))
    np.put_along_axis(rows, chosen, 1.0, axis=1)
    return rows


def voted(label: np.ndarray, weight: np.ndarray, value: np.ndarray, subsets: np.ndarray) -> float:
    """Return the mean over subsets of the value of the answer with the largest sum of weights.

    Parameters
    ----------
    label : np.ndarray
        (M,) number of each sample's answer, -1 for none, which does not vote.
    weight, value : np.ndarray
        (M,) nonnegative; (M,) in [0, 1]: an answer is worth the mean of its samples, which a checker may judge differently.
    subsets : np.ndarray
        (S, M). Tied answers are chosen with equal chance; without an answer the value is 0.
    """
    each = (label[:, None] == np.arange(label.max(initial=-1) + 1)).astype(np.float64)
    if each.shape[1] == 0:
        return 0.0
    count = subsets @ each
    votes = np.where(count > 0, subsets @ (each * weight[:, None]), -1.0)
    most = votes.max(axis=1, keepdims=True)
    first = (votes >= most - 1e-12 * np.maximum(most, 1.0)) & (count > 0)
    worth = (subsets @ (each * value[:, None])) / np.maximum(count, 1.0)
    return float((np.where(first, worth, 0.0).sum(axis=1) / np.maximum(first.sum(axis=1), 1)).mean())


def sizes(m: int) -> list[int]:
    """Return the n of the curve, up to m.

    >>> sizes(8), sizes(20)
    ([1, 2, 3, 4, 6, 8], [1, 2, 3, 4, 6, 8, 12, 16, 20])
    """
    usual = sorted({1, *(2**k for k in range(1, 20)), *(3 * 2**k for k in range(20))})
    return [*(n for n in usual if n < m), m]


def instance_n(p: np.ndarray, q: float = QUANTILE) -> np.ndarray:
    """Return N = ceil(log(1 - q) / log(1 - p)), infinite for p = 0 and 1 for p = 1.

    >>> instance_n(np.array([0.0, 0.25, 0.9, 1.0])).tolist()
    [inf, 9.0, 1.0, 1.0]
    """
    with np.errstate(divide="ignore"):
        ratio = np.log1p(-q) / np.log1p(-np.asarray(p, dtype=np.float64))
    return np.maximum(np.ceil(np.where(p <= 0, np.inf, ratio) - 1e-9), 1.0)


class _Columns:
    """The figures of every problem: (P,) arrays by method and n."""

    def __init__(
        self, problems: Sequence[ProblemSamples], aggregations: Sequence[str], rng: np.random.Generator
    ) -> None:
        self.problems, self.aggregations = problems, aggregations
        self.sizes = sizes(min(len(p.solutions) for p in problems))
        self.right = [np.asarray([s.right for s in p.solutions]) for p in problems]
        self.scores = {
            a: [np.asarray([s.scores[a] for s in p.solutions]) for p in problems] for a in aggregations
        }
        self.found: dict[tuple[str, int], np.ndarray] = {}
        labels = [_labels(p) for p in problems]
        for n in self.sizes:
            subsets = [subsets_of(len(r), n, rng) for r in self.right]
            self.found["pass_at_1", n] = np.asarray([r.mean() for r in self.right])
            self.found["oracle", n] = self.best(self.right, n)
            ones = [np.ones(len(r)) for r in self.right]
            self.found["majority", n] = self._voted(labels, ones, subsets)
            for a in aggregations:
                self.found[f"best_of_n {a}", n] = self.best(self.scores[a], n)
                self.found[f"weighted_majority {a}", n] = self._voted(labels, self.scores[a], subsets)

    def best(self, scores: Sequence[np.ndarray], n: "int | np.ndarray") -> np.ndarray:
        """Return (P,) what the best by ``scores`` is worth, of n samples, or of n (P,) of each problem."""
        each = np.broadcast_to(n, len(self.right))
        return np.asarray([best_of(s, r, int(k)) for s, r, k in zip(scores, self.right, each, strict=True)])

    def _voted(
        self, labels: Sequence[np.ndarray], weights: Sequence[np.ndarray], subsets: Sequence[np.ndarray]
    ) -> np.ndarray:
        each = zip(labels, weights, self.right, subsets, strict=True)
        return np.asarray([voted(*one) for one in each])


def _labels(problem: ProblemSamples) -> np.ndarray:
    """Return (M,) the number of each sample's answer, -1 for none."""
    known: dict[str, int] = {}
    answers = [s.answer for s in problem.solutions]
    return np.asarray([-1 if a is None else known.setdefault(a, len(known)) for a in answers])


def evaluate_best_of_n(
    samples: RecordedSamples,
    rng: np.random.Generator,
    chosen: str | None = None,
    cost: Cost | None = None,
    root: np.ndarray | None = None,
    q: float = QUANTILE,
) -> BestOfN:
    """Return best-of-n and the majorities on recorded samples, with intervals over problems.

    Parameters
    ----------
    samples : RecordedSamples
    rng : np.random.Generator
        Draws the subsets and the resamples.
    chosen : str, optional
        The aggregation that ``best_of_n`` is of; default: "last" if there is one, else the recorded one.
    cost : Cost, optional
        Of the verifier, if it was run here.
    root : np.ndarray, optional
        (P,) the model's probability of success at each problem.
    q : float
        For instance-adaptive scaling.

    Raises
    ------
    UserError
        If the recording has no scores of the aggregation that is asked for.
    """
    there = samples.aggregations
    if chosen is not None and chosen not in there:
        have = f"has only {', '.join(there)}" if there else "has no scores"
        raise UserError(
            f"`aggregate` {chosen} needs scores of steps, and the recording {have}",
            "leave `aggregate` out, or score the samples with `model`",
        )
    aggregate = chosen or (there[0] if there else "")
    columns = _Columns(samples.problems, there, rng)
    most = columns.sizes[-1]
    found = share_intervals({key: (value[:, None], first_mean) for key, value in columns.found.items()}, rng)

    def share(name: str) -> Share:
        points = tuple(_point(n, found[name, n]) for n in columns.sizes)
        last = points[-1]
        return Share(last.estimate, last.low, last.high, points)

    choices = {a: Choice(share(f"best_of_n {a}"), share(f"weighted_majority {a}")) for a in there}
    own = choices.get(aggregate)
    return BestOfN(
        source=samples.source,
        verifier=samples.verifier,
        policy=samples.policy,
        aggregate=aggregate,
        n=most,
        n_problems=len(samples.problems),
        n_samples=sum(len(p.solutions) for p in samples.problems),
        best_of_n=None if own is None else own.best_of_n,
        pass_at_1=share("pass_at_1"),
        oracle=share("oracle"),
        majority=share("majority"),
        weighted_majority=None if own is None else own.weighted_majority,
        aggregations=choices,
        gains=_gains(columns, aggregate, most, rng) if own else {},
        adaptive=_adaptive(columns, aggregate, root, q, rng),
        curve=_curve(samples, columns, aggregate, found, cost),
        cost=cost,
    )


def _point(n: int, share: Interval) -> Point:
    return Point(n, share.estimate, share.low, share.high)


def _gains(columns: _Columns, aggregate: str, n: int, rng: np.random.Generator) -> dict[str, Interval]:
    def of(name: str) -> np.ndarray:
        return columns.found[name, n]

    best, weighted = of(f"best_of_n {aggregate}"), of(f"weighted_majority {aggregate}")
    return differences(
        {
            "best_of_n - pass_at_1": (best, of("pass_at_1")),
            "best_of_n - majority": (best, of("majority")),
            "weighted_majority - majority": (weighted, of("majority")),
            "oracle - best_of_n": (of("oracle"), best),
        },
        rng,
    )


def _adaptive(
    columns: _Columns, aggregate: str, root: np.ndarray | None, q: float, rng: np.random.Generator
) -> tuple[Adaptive, ...]:
    """Return what instance-adaptive scaling would use, with p from the model's root value and in hindsight."""
    sources = {"hindsight": np.asarray([r.mean() for r in columns.right])}
    if root is not None and np.isfinite(root).all():
        sources = {"root value": root, **sources}
    most, rows = np.asarray([len(r) for r in columns.right]), []
    for name, p in sources.items():
        wanted = instance_n(p, q)
        n = np.minimum(wanted, most).astype(int)
        fixed = max(1, round(float(n.mean())))
        values = {"oracle": columns.best(columns.right, n)}
        if aggregate:
            scores = columns.scores[aggregate]
            values |= {
                "best": columns.best(scores, n),
                "fixed": columns.best(scores, np.minimum(fixed, most)),
            }
        found = share_intervals({key: (v[:, None], first_mean) for key, v in values.items()}, rng)
        rows.append(
            Adaptive(
                name, q, float(n.mean()), int((wanted > most).sum()), found.get("best"), found["oracle"], fixed,
                found.get("fixed"),
            )
        )  # fmt: skip
    return tuple(rows)


def _curve(
    samples: RecordedSamples,
    columns: _Columns,
    aggregate: str,
    found: dict[tuple[str, int], Interval],
    cost: Cost | None,
) -> tuple[CurvePoint, ...]:
    """Return every method at every n; a problem takes n times what a sample takes on average."""
    n_samples = sum(len(p.solutions) for p in samples.problems)
    generated = [s.tokens for p in samples.problems for s in p.solutions]
    a_sample = None if None in generated else math.fsum(t for t in generated if t is not None) / n_samples
    read = samples.value_tokens if cost is None else cost.tokens
    flops = samples.flops if cost is None else cost.flops
    names = {"pass_at_1": "pass_at_1", "majority": "majority", "oracle": "oracle"}
    if aggregate:
        names |= {name: f"{name} {aggregate}" for name in ("best_of_n", "weighted_majority")}
    return tuple(
        CurvePoint(
            n,
            {name: found[key, n] for name, key in names.items()},
            a_sample and a_sample * n,
            read and read / n_samples * n,
            flops and flops / n_samples * n,
        )
        for n in columns.sizes
    )

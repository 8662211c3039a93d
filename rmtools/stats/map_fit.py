"""Fit a monotone map of p to outcomes, choosing its form by cross-fitted log loss over prompts.

The map is trained toward the probability of success from the prefix, under the policy that drew the outcomes: the log loss is
least at E[outcome given p, depth]. Forms are ordered by their number of parameters. A form is chosen if no other has a log loss
on held-out prompts that is lower by more than two standard errors over prompts, and no simpler one is as good: a map by
depth, or with knots, needs data that tell it from the simpler one.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> x, prompt = rng.normal(size=4000), np.repeat(np.arange(200), 20)
>>> y = (rng.random(4000) < 1 / (1 + np.exp(-0.5 * x))).astype(float)
>>> found = fit_map(Outcomes(-np.logaddexp(0, -x), y, prompt, np.zeros(4000, dtype=int)), rng)
>>> found.form, round(found.map.platt[0], 1)
('platt', 0.5)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from rmtools.errors import UserError
from rmtools.particles.arguments import check_count
from rmtools.stats.bootstrap import cluster_sums, labels_of, refuse_nan
from rmtools.stats.monotone_map import MonotoneMap, log_odds, ramps

FORMS = ("identity", "platt", "piecewise")
DEPTHS = ("none", "offset", "each")
KNOTS = 5
RESOLVED = 2.0
"""Standard errors by which a form must be better than a simpler one."""
# Strengths of normal priors, in prompts: a depth's deviation from all depths, neighbouring slopes' from one another, and a
# weak one against infinite numbers where p separates the outcomes.
BETWEEN_DEPTHS, BETWEEN_SLOPES, WEAK = 0.5, 0.5, 0.05
LARGEST = 50.0


@dataclass(frozen=True)
class Outcomes:
    """n predictions with their outcomes.

    Attributes
    ----------
    log_p : np.ndarray
        (n,) nats.
    outcome : np.ndarray
        (n,) mean outcome, in [0, 1].
    prompt, depth : np.ndarray
        (n,) labels of prompts, resampled and held out as one; steps taken.
    weight, square : np.ndarray, optional
        (n,) number of outcomes behind each mean, default 1; mean of their squares, default the square of their mean.
    """

    log_p: np.ndarray
    outcome: np.ndarray
    prompt: np.ndarray
    depth: np.ndarray
    weight: np.ndarray | None = None
    square: np.ndarray | None = None


@dataclass(frozen=True)
class TriedForm:
    """A form that was tried: its log loss and Brier score on held-out prompts.

    ``behind`` is its log loss minus that of the best form, ``behind_se`` the standard error of this difference over prompts.
    """

    name: str
    log_loss: float
    brier: float
    behind: float
    behind_se: float


@dataclass(frozen=True)
class FittedMap:
    """A map with what speaks for it.

    Attributes
    ----------
    map : MonotoneMap
        Fitted on all prompts.
    form : str
        Its name, one of ``tried``.
    before, after : TriedForm
        No map, and this form, on held-out prompts.
    tried : tuple of TriedForm
        The simplest first.
    n_prompts, n_prefixes, folds : int
    n_outcomes : float
    """

    map: MonotoneMap
    form: str
    before: TriedForm
    after: TriedForm
    tried: tuple[TriedForm, ...]
    n_prompts: int
    n_prefixes: int
    n_outcomes: float
    folds: int

    @property
    def why(self) -> str:
        """Why this form, in words."""
        others = [t for t in self.tried if t.name not in (self.form, "identity")]
        if self.form == "identity":
            return "no form has a resolved lower log loss on held-out prompts than p as it is"
        if not others:
            return "the form that was asked for"
        if min(self.tried, key=lambda t: t.log_loss).name == self.form:
            return "it has the lowest log loss on held-out prompts, and no simpler form is within two standard errors"
        return (
            "the simplest form whose log loss on held-out prompts is within two standard errors of the lowest"
        )


@dataclass(frozen=True)
class _Data:
    """What a fit reads: log odds x, mean outcome y and square, weight w, depth, prompt 0..P-1, all (n,)."""

    x: np.ndarray
    y: np.ndarray
    square: np.ndarray
    w: np.ndarray
    depth: np.ndarray
    prompt: np.ndarray

    def take(self, chosen: np.ndarray) -> "_Data":
        return _Data(*(a[chosen] for a in (self.x, self.y, self.square, self.w, self.depth, self.prompt)))


def fit_map(
    outcomes: Outcomes, rng: np.random.Generator, form: str = "auto", by_depth: str = "auto", folds: int = 5
) -> FittedMap:
    """Fit a map, choosing its form.

    Parameters
    ----------
    outcomes : Outcomes
    rng : np.random.Generator
        Source of the folds.
    form : {"auto", "platt", "piecewise"}
        auto: also none, if p is as good as it is.
    by_depth : {"auto", "none"}
        none: one map for all depths.
    folds : int
        Parts of the prompts that are held out in turn; as many as there are prompts if these are fewer.

    Raises
    ------
    UserError
        If there are fewer than two prompts, all outcomes are equal, or a number is NaN or out of range.
    """
    if form not in ("auto", *FORMS[1:]):
        raise UserError(f"unknown `form` {form!r}", f"choose one of: auto, {', '.join(FORMS[1:])}")
    if by_depth not in ("auto", "none"):
        raise UserError(f"unknown `by_depth` {by_depth!r}", "choose one of: auto, none")
    check_count("folds", folds, 2, "each is held out once", fix=5)
    data, n_prompts = _checked(outcomes)
    folds = min(folds, n_prompts)
    fold = (rng.permutation(n_prompts) % folds)[data.prompt]
    names = [n for n in _names(data) if form in ("auto", n.partition(" ")[0]) or n == "identity"]
    names = [n for n in names if by_depth == "auto" or " by depth" not in n]
    total = cluster_sums(data.w, data.prompt)[:, 0]
    tried = _compared(names, *_held_out(data, names, fold), total)
    allowed = [t for t in tried if form == "auto" or t.name != "identity"]
    chosen = next(t for t in allowed if _as_good(t, allowed))
    return FittedMap(
        next(_fit(data, [chosen.name])),
        chosen.name,
        tried[0],
        chosen,
        tried,
        n_prompts,
        len(data.x),
        float(outcomes.weight.sum() if outcomes.weight is not None else len(data.x)),
        folds,
    )


def _checked(given: Outcomes) -> tuple[_Data, int]:
    """Return the data of a fit and the number of prompts; weights count prompts at a depth, on average."""
    y, n = np.asarray(given.outcome, dtype=np.float64), len(given.log_p)
    w = np.ones(n) if given.weight is None else np.asarray(given.weight, dtype=np.float64)
    if n == 0:
        raise UserError("there are no outcomes to fit a map to", "use rollouts with rewards")
    refuse_nan("outcome", y)
    if y.min() < 0 or y.max() > 1:
        raise UserError(f"outcomes are in [{y.min():g}, {y.max():g}]", "outcomes must be in [0, 1]")
    prompt, n_prompts = labels_of(given.prompt, n)
    if n_prompts < 2:
        raise UserError(
            "the rollouts are of one prompt: no prompt can be held out, and how good a map is cannot be known",
            "use rollouts of two prompts at least, better of 64 and more",
        )
    if y.min() == y.max():
        raise UserError(
            f"every outcome is {y[0]:g}: nothing tells where p is too high or too low",
            "use rollouts with right and wrong solutions: other prompts, or more trajectories",
        )
    depths = np.asarray(given.depth, dtype=np.int64)
    square = y**2 if given.square is None else np.asarray(given.square, dtype=np.float64)
    scale = n_prompts * len(np.unique(depths)) / w.sum()
    return _Data(log_odds(given.log_p), y, square, w * scale, depths, prompt), n_prompts


def _names(data: _Data) -> Iterator[str]:
    """Yield the forms, by their number of parameters; by depth only if there are several."""
    several = data.depth.min() < data.depth.max()
    yield "identity"
    for form in FORMS[1:]:
        yield form
        if several:
            yield f"{form} by depth (offset)"
            yield f"{form} by depth"


def _held_out(data: _Data, names: Sequence[str], fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sums over each prompt (C, P) of log loss and of squared error, by maps of C forms fitted on other folds."""
    log_q, log_p = np.empty((len(names), len(data.x))), -np.logaddexp(0.0, -data.x)
    for k in np.unique(fold):
        held = fold == k
        for of, found in zip(log_q, _fit(data.take(~held), names), strict=True):
            of[held] = found(log_p[held], data.depth[held])
    z, q = log_odds(log_q), np.exp(log_q)
    loss = data.w * (np.logaddexp(0.0, z) - data.y * z)
    square = data.w * (q**2 - 2 * q * data.y + data.square)
    return cluster_sums(loss.T, data.prompt).T, cluster_sums(square.T, data.prompt).T


def _compared(
    names: Sequence[str], losses: np.ndarray, squares: np.ndarray, total: np.ndarray
) -> tuple[TriedForm, ...]:
    """Return the forms with their mean losses, of sums over prompts (C, P) of weights (P,)."""
    mean = losses.sum(axis=1) / total.sum()
    best = int(np.argmin(mean))
    n = len(total)
    found = []
    for k, name in enumerate(names):
        behind = mean[k] - mean[best]
        spread = losses[k] - losses[best] - behind * total
        se = float(np.sqrt(n / (n - 1) * (spread @ spread)) / total.sum())
        found.append(
            TriedForm(
                name, float(mean[k]), float(squares[k].sum() / total.sum()), float(max(behind, 0.0)), se
            )
        )
    return tuple(found)


def _as_good(tried: TriedForm, among: Sequence[TriedForm]) -> bool:
    """Return whether a form is the best of ``among``, or not resolved from the best of all."""
    best = min(t.log_loss for t in among)
    return tried.log_loss <= best or tried.behind <= RESOLVED * tried.behind_se


def _fit(data: _Data, names: Sequence[str]) -> Iterator[MonotoneMap]:
    """Yield the map of each form, fitted on all of ``data``; those by depth share the map that they deviate from."""
    centre = float(np.average(data.x, weights=data.w))
    spread = float(np.sqrt(np.average((data.x - centre) ** 2, weights=data.w))) or 1.0
    u = replace(data, x=(data.x - centre) / spread)
    known: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for name in names:
        form, _, how = name.partition(" ")
        if form == "identity":
            yield MonotoneMap.identity()
            continue
        if form not in known:
            knots = _knots(u.x) if form == "piecewise" else np.zeros(0)
            columns = ramps(u.x, knots)
            start = np.r_[0.0, np.ones(columns.shape[1])]
            weak = WEAK * np.r_[0.01, np.ones(columns.shape[1])]
            known[form] = knots, columns, _minimised(columns, u, start, weak)
        knots, columns, pooled = known[form]
        fitted = _by_depth(columns, u, pooled, how) if how else [pooled]
        # Back to x: the first ramp is the only one that holds the centre.
        yield MonotoneMap(
            tuple(float(f[0] - f[1] * centre / spread) for f in fitted),
            tuple(tuple(map(float, f[1:] / spread)) for f in fitted),
            tuple(map(float, knots * spread + centre)),
        )


def _by_depth(columns: np.ndarray, data: _Data, pooled: np.ndarray, how: str) -> list[np.ndarray]:
    """Return intercept and slopes of each depth; of a depth without data those of all."""
    strength = np.full(len(pooled), BETWEEN_DEPTHS)
    if "offset" in how:
        strength[1:] = np.inf
    return [
        _minimised(columns[at], data.take(at), pooled, strength) if (at := data.depth == t).any() else pooled
        for t in range(int(data.depth.max()) + 1)
    ]


def _knots(x: np.ndarray) -> np.ndarray:
    """Return at most `KNOTS` different quantiles of x (n,), apart from one another and inside its range."""
    found: np.ndarray = np.unique(np.quantile(x, np.arange(1, KNOTS + 1) / (KNOTS + 1)))
    found = found[(found > x.min()) & (found < x.max())]
    return found[np.diff(found, prepend=-np.inf) > 1e-3]


def _minimised(columns: np.ndarray, data: _Data, prior: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Return intercept and slopes (1 + C,) that minimise the weighted log loss plus the priors', slopes at least 0.

    A strength of infinity keeps a number at its prior.
    """
    free = np.isfinite(strength)
    features = np.concatenate([np.ones((len(columns), 1)), columns], axis=1)
    fixed, ridge = features[:, ~free] @ prior[~free], strength[free]
    chosen, between = features[:, free], BETWEEN_SLOPES if free[1:].all() else 0.0

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        z, off = fixed + chosen @ theta, theta - prior[free]
        rest = np.exp(-np.logaddexp(0.0, -z)) - data.y
        value = data.w @ (np.logaddexp(0.0, z) - data.y * z) + 0.5 * ridge @ off**2
        slope = chosen.T @ (data.w * rest) + ridge * off
        steps = np.diff(theta[1:]) * between
        value += 0.5 * steps @ np.diff(theta[1:])
        slope[1:] -= np.diff(np.r_[0.0, steps, 0.0]) if between and len(theta) > 2 else 0.0
        return float(value), slope

    bounds = [(-LARGEST, LARGEST), *[(0.0, LARGEST)] * (int(free.sum()) - 1)]
    found = minimize(loss, prior[free], jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    result = prior.copy()
    result[free] = found.x
    return result

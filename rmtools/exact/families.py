"""Families of finite models with known solutions (docs/equations.md section 7).

Every function raises UserError if an argument is out of range.

>>> import rmtools as rm
>>> models = (rm.families.product(6, 2.0), rm.families.persistent(8, 0.1), rm.families.needle(3, 2))
>>> [round(rm.solve(m).bellman_error, 9) for m in models]
[0.5, 0.1, 63.0]
"""

import math

import numpy as np

from rmtools.errors import UserError
from rmtools.exact.finite_model import FiniteModel
from rmtools.particles.arguments import check_count, check_generator, check_number, is_number
from rmtools.particles.logspace import log_mean_columns
from rmtools.particles.tilt import Tilt

LARGEST_LOG = 700.0
# States whose arrays fit into a few GB; a layer of a chain takes as much memory as a hundred of them.
LOG10_STATES, PER_LAYER = 8, 100
KINDS = ("random_signs", "persistent", "terminal")


def product(horizon: int, ratio: float) -> FiniteModel:
    """Uniform bits with value ratio ** (number of ones), `ratio` > 0, as a chain over the number of ones.

    epsilon = max(rho, 1/rho) - 1 with rho = (1 + ratio) / 2. The bits of the target are independent, 1 with probability
    ratio / (1 + ratio).
    """
    _check_horizon(horizon)
    _check_size(math.log10((horizon + 1) * (horizon + 2) / 2), f"product({horizon})")
    if not is_number(ratio) or not 0 < ratio < np.inf:
        raise UserError(f"`ratio` must be positive and finite, got {ratio!r}", fix="ratio=2.0")
    ones = [np.arange(t + 1) for t in range(horizon + 1)]
    return FiniteModel(
        policy=[np.full((t + 1, 2), 0.5) for t in range(horizon)],
        log_value=[n * np.log(ratio) for n in ones],
        children=[n[:, None] + np.array([0, 1]) for n in ones[:-1]],
    )


def random_tree(
    horizon: int, branching: int, eps: float, tilt: Tilt | float, rng: np.random.Generator
) -> FiniteModel:
    """Full tree with Dirichlet(1) policy, uniform rewards under `tilt`, and Bellman error `eps` >= 0 with random signs.

    `branching` >= 2. A number for `tilt` is its floor.
    """
    policy = _random_policy(horizon, branching, rng)
    tilt = tilt if isinstance(tilt, Tilt) else Tilt(tilt)
    log_potential = tilt.log_potential(rng.random(branching**horizon))
    log_value = [*(np.zeros(len(p)) for p in policy), log_potential]
    return perturb(FiniteModel(policy, log_value), eps, "random_signs", rng)


def implicit(horizon: int, branching: int, rng: np.random.Generator) -> FiniteModel:
    """Full tree whose value is the ratio of another random policy to the base: epsilon = 0; the target is that policy."""
    policy = _random_policy(horizon, branching, rng)
    other = _random_policy(horizon, branching, rng)
    log_value = [np.zeros(1)]
    for p, q in zip(policy, other, strict=True):
        log_value.append((log_value[-1][:, None] + np.log(q) - np.log(p)).ravel())
    return FiniteModel(policy, log_value)


def needle(horizon: int, branching: int) -> FiniteModel:
    """No intermediate reward: value 1 before the end, potential 1 on one leaf, branching ** (-2 T) elsewhere.

    log(sigma2) grows by log(branching) per step. A chain of two states per layer: on the way to the leaf, or off it.
    """
    _check_horizon(horizon)
    _check_branching(branching)
    _check_size(math.log10(PER_LAYER * horizon), f"needle({horizon}, {branching})")
    flat = [np.zeros(1 if t == 0 else 2) for t in range(horizon)]
    potential = np.array([0.0, -2 * horizon * np.log(branching)])
    return _two_state_chain([1 / branching] * horizon, [*flat, potential])


def hidden_prefix(m: int, ratio: float) -> FiniteModel:
    """Lower-bound construction of arXiv 2602.01381 Appendix C: T = 3 m, one rewarded prefix of length 2 m.

    The value is 1 up to depth 2 m; after the hidden prefix every step multiplies it by `ratio` > 1, elsewhere by 1 /
    `ratio`. An integer ratio is the branching factor; otherwise the first step draws one of floor(ratio ** (2 m)) equally
    likely codes. ratio = L for Theorem 4.1, 1 + epsilon for Theorem 4.2. A chain of two states per layer: on the hidden
    prefix, or off it.
    """
    _check_horizon(m, "m")
    _check_size(math.log10(PER_LAYER * m), f"hidden_prefix({m})", "`m`")
    if not is_number(ratio) or not ratio > 1:
        raise UserError(f"`ratio` must exceed 1, got {ratio!r}: it is L, or 1 + epsilon", fix="ratio=2")
    if 2 * m * np.log(ratio) > LARGEST_LOG:
        raise UserError(
            f"hidden_prefix({m}, {ratio!r}) has {ratio!r}^{2 * m} codes, more than a float holds",
            fix="lower `m` or `ratio`",
        )
    if ratio ** (2 * m) < 2:
        raise UserError(
            f"hidden_prefix({m}, {ratio!r}) has one code of length {2 * m}: nothing is hidden",
            fix="raise `m` or `ratio` until ratio^(2 m) is at least 2",
        )
    if float(ratio).is_integer():
        stay = [1 / ratio] * (2 * m) + [1.0] * m
    else:
        stay = [1 / np.floor(ratio ** (2 * m))] + [1.0] * (3 * m - 1)
    depth = [max(0, t - 2 * m) for t in range(3 * m + 1)]
    log_value = [np.array([1.0, -1.0][: 1 if t == 0 else 2]) * d * np.log(ratio) for t, d in enumerate(depth)]
    return _two_state_chain(stay, log_value)


def persistent(horizon: int, eps: float) -> FiniteModel:
    """Errors of one sign along each trajectory: the family with the phase transition.

    V* = 1; the first step picks one of two classes; the value is (1 + eps) ** -min(t, T - t) on the first and the inverse
    on the second. sigma2 = sum_t sinh(min(t - 1, T - t + 1) log(1 + eps)) ** 2: exponential in T for constant eps, at
    most T sinh(c / 2) ** 2 for eps = c / T. `horizon` >= 2, `eps` >= 0.
    """
    check_count("horizon", horizon, 2, "the error grows and shrinks again", fix=8)
    _check_size(math.log10(PER_LAYER * horizon), f"persistent({horizon})")
    _check_eps(eps)
    depth = [min(t, horizon - t) for t in range(horizon + 1)]
    return FiniteModel(
        policy=[np.array([[0.5, 0.5]])] + [np.ones((2, 1))] * (horizon - 1),
        log_value=[np.zeros(1)] + [np.array([-1.0, 1.0]) * d * np.log1p(eps) for d in depth[1:]],
        children=[np.array([[0, 1]])] + [np.array([[0], [1]])] * (horizon - 1),
    )


def perturb(model: FiniteModel, eps: float, kind: str, rng: np.random.Generator | None = None) -> FiniteModel:
    """Replace the value of `model` by one with Bellman error exactly `eps`; policy and potential stay.

    Parameters
    ----------
    model : FiniteModel
        Its policy and potential are kept; its value is not used.
    eps : float
        The Bellman error, at least 0.
    kind : {"random_signs", "persistent", "terminal"}
        `random_signs`: V(s) = E[V(child)] (1 + eps) ** +-1, a random sign at every state.
        `persistent`: V = V* (1 + eps) ** -+min(t, T - t), T >= 2, the sign fixed by the first step (minus for the first
        half of the branches); on a chain the class is added to the state.
        `terminal`: random signs at the last step only, V consistent before.
    rng : np.random.Generator, optional
        Required for random signs.
    """
    if not isinstance(model, FiniteModel):
        raise UserError(
            f"`model` must be a FiniteModel, got {type(model).__name__}", "rmtools.families has some"
        )
    _check_eps(eps)
    if kind not in KINDS:
        raise UserError(f"unknown kind of perturbation {kind!r}", fix=f"choose one of {', '.join(KINDS)}")
    if kind == "persistent":
        return _perturb_persistent(model, eps)
    rng = check_generator(rng)
    depths = range(model.horizon) if kind == "random_signs" else [model.horizon - 1]
    log_value = [model.log_value[-1]]
    for t in reversed(range(model.horizon)):
        value = log_mean_columns(model.gather(t, log_value[-1]), model.log_policy[t])
        sign = rng.choice([-1.0, 1.0], size=len(value)) if t in depths else 0.0
        log_value.append(value + sign * np.log1p(eps))
    return FiniteModel(model.policy, log_value[::-1], model.children)


def _perturb_persistent(model: FiniteModel, eps: float) -> FiniteModel:
    horizon = model.horizon
    if horizon < 2:
        raise UserError(
            f"a persistent error needs at least 2 steps, got {horizon}", fix="use kind='terminal'"
        )
    if model.policy[0].shape[1] < 2:
        raise UserError("a persistent error needs two branches at the first step, one per class")
    split = _with_classes(model)
    log_value = [split.log_true_value[0]]
    for t in range(1, horizon + 1):
        # The second half of every layer is the second class.
        sign = np.where(np.arange(len(split.log_value[t])) < len(split.log_value[t]) // 2, -1.0, 1.0)
        log_value.append(split.log_true_value[t] + sign * min(t, horizon - t) * np.log1p(eps))
    return FiniteModel(split.policy, log_value, split.children)


def _with_classes(model: FiniteModel) -> FiniteModel:
    """Return the model with the class of the first step (which half of the branches) added to the state."""
    branching = model.policy[0].shape[1]
    if model.children is None and branching % 2 == 0:
        return model
    second = np.arange(branching) >= (branching + 1) // 2
    policy = [model.policy[0]]
    children = [model.child(0) + second * len(model.log_value[1])]
    for t in range(1, model.horizon):
        policy.append(np.tile(model.policy[t], (2, 1)))
        children.append(np.concatenate([model.child(t), model.child(t) + len(model.log_value[t + 1])]))
    log_value = [model.log_value[0], *(np.tile(v, 2) for v in model.log_value[1:])]
    return FiniteModel(policy, log_value, children)


def _two_state_chain(stay: list[float], log_value: list[np.ndarray]) -> FiniteModel:
    """State 0 stays with probability stay[t], else moves to the absorbing state 1."""
    policy = [np.array([[p, 1 - p], [0.0, 1.0]])[: 1 if t == 0 else 2] for t, p in enumerate(stay)]
    children = [np.array([[0, 1], [0, 1]])[: len(p)] for p in policy]
    return FiniteModel(policy, log_value, children)


def _random_policy(horizon: int, branching: int, rng: np.random.Generator) -> list[np.ndarray]:
    _check_horizon(horizon)
    _check_branching(branching)
    check_generator(rng)
    size = horizon * math.log10(branching) - math.log10(1 - 1 / branching)  # of a full tree
    _check_size(size, f"a tree of {horizon} steps with {branching} branches", "`horizon` or `branching`")
    return [rng.dirichlet(np.ones(branching), size=branching**t) for t in range(horizon)]


def _check_horizon(horizon: int, name: str = "horizon") -> None:
    check_count(name, horizon, 1, "it is a number of steps", fix=4)


def _check_size(log10_states: float, model: str, lower: str = "`horizon`") -> None:
    """Raise UserError if the states of `model` do not fit into memory; `lower` says which parameter to lower."""
    if log10_states > LOG10_STATES:
        raise UserError(
            f"{model} needs the memory of about 10^{log10_states:.1f} states, at most 10^{LOG10_STATES} are held",
            fix=f"lower {lower}",
        )


def _check_branching(branching: int) -> None:
    check_count("branching", branching, 2, "it is a number of branches")


def _check_eps(eps: float) -> None:
    check_number("eps", eps, 0, "it is a Bellman error", fix="eps=0.1")
    if eps == np.inf:
        raise UserError("`eps` must be finite, got inf: it is a Bellman error", fix="eps=0.1")

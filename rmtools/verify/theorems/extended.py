"""The extended space of Algorithm 2, enumerated: every pool that one particle can meet and every choice from it.

A point of the space is a run: at each step a pool of M branches and the candidate chosen. It is proposed with
probability q and has an estimate Zhat; the chain of accepted runs has the law q Zhat / Z, whose last state is a draw of
the target (docs/equations.md, section 4). Written out independently of the sampler.
"""

import itertools
from typing import Any

import numpy as np

from rmtools.core import FiniteModel, solve
from rmtools.particles.metropolis import log_acceptance


def enumerate_runs(model: FiniteModel, pool: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return proposal probability, Zhat and final leaf of every run, (R,) each."""
    runs = [(1.0, float(np.exp(model.log_value[0][0])), 0)]
    for t in range(model.horizon):
        value = np.exp(model.log_value[t])
        below = np.exp(model.gather(t, model.log_value[t + 1]))
        child, policy = model.child(t), model.policy[t]
        runs = [
            (
                q * float(np.prod(policy[s, list(c)])) * below[s, c[k]] / below[s, list(c)].sum(),
                z * below[s, list(c)].mean() / value[s],
                int(child[s, c[k]]),
            )
            for q, z, s in runs
            for c in itertools.product(range(policy.shape[1]), repeat=pool)
            for k in range(pool)
        ]
    q, z, leaf = (np.array(column) for column in zip(*runs, strict=True))
    return q, z, leaf


def transition(q: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return the chain's matrix (R, R): propose by q, accept as `metropolis` does."""
    log_z = np.log(z)
    kernel = q[None, :] * np.exp(log_acceptance(log_z[:, None], log_z[None, :]))
    np.fill_diagonal(kernel, 0.0)
    np.fill_diagonal(kernel, 1 - kernel.sum(axis=1))
    return kernel


def detailed_balance(model: FiniteModel, pool: int) -> dict[str, Any]:
    """Return the largest break of detailed balance, of the leaves' law, and of E[Zhat] = Z; all relative to 1."""
    q, z, leaf = enumerate_runs(model, pool)
    exact = solve(model)
    assert exact.target is not None
    total = float(np.exp(exact.log_z))
    stationary = q * z / total
    flow = stationary[:, None] * transition(q, z)
    leaves = np.bincount(leaf, stationary, minlength=len(exact.target))
    return {
        "runs": len(q),
        "balance": float(np.abs(flow - flow.T).max()),
        "marginal": float(np.abs(leaves - exact.target).max()),
        "unbiased": abs(float(q @ z) / total - 1),
    }


def law_after(model: FiniteModel, pool: int, mh_steps: int) -> np.ndarray:
    """Return the law of the final leaf after ``mh_steps`` proposals, (S_T,)."""
    q, z, leaf = enumerate_runs(model, pool)
    law = q @ np.linalg.matrix_power(transition(q, z), mh_steps)
    return np.bincount(leaf, law, minlength=len(model.log_value[-1]))

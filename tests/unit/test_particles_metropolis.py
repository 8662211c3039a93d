from dataclasses import replace

import numpy as np
import pytest

from rmtools.core import FiniteModel, Tilt, metropolis, product, random_tree, smc, solve
from rmtools.errors import UserError


def scripted(log_z, states):
    """A sampler whose runs have these estimates and one particle in this state, one run after the other."""
    model = FiniteModel([[[0.5, 0.5]], np.full((2, 2), 0.5)], [[0.0], [0.0] * 2, [0.0] * 4])
    root = model.particles(len(log_z[0]))
    template = smc(root, 1, rng=np.random.default_rng(0))
    runs = iter(zip(log_z, states, strict=True))

    def sampler(rng):
        z, state = next(runs)
        particles = replace(template.particles, state=np.array(state)[:, None])
        return replace(template, particles=particles, log_z=np.array(z, dtype=float))

    return sampler


def test_hand_computed_chain():
    # larger estimates are always accepted, zero never, anything positive from zero
    sampler = scripted(
        [[0.0, -np.inf, -np.inf, 5.0], [1.0, -3.0, -np.inf, -np.inf], [-900.0, 2.0, -np.inf, 6.0]],
        [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2]],
    )
    result = metropolis(sampler, 2, np.random.default_rng(0))
    assert result.accepted.tolist() == [[True, True, False, False], [False, True, False, True]]
    assert result.log_z.tolist() == [[0, -np.inf, -np.inf, 5], [1, -3, -np.inf, 5], [1, 2, -np.inf, 6]]
    assert result.proposed_log_z.tolist() == [[1, -3, -np.inf, -np.inf], [-900, 2, -np.inf, 6]]
    assert result.collect(lambda p: p.state[:, 0]).tolist() == [1, 2, 0, 2]


def test_runs_that_no_chain_holds_are_dropped():
    sampler = scripted(
        [[0.0, 0.0], [1.0, 1.0], [2.0, -900.0], [-900.0] * 2], [[0, 0], [1, 1], [2, 2], [3, 3]]
    )
    result = metropolis(sampler, 3, np.random.default_rng(0))
    assert len(result.runs) == 2
    assert result.run.tolist() == [1, 0]
    assert result.collect(lambda p: p.state[:, 0]).tolist() == [2, 1]
    assert [(groups.tolist(), p.shape) for groups, p in result.outputs()] == [([1], (2, 1)), ([0], (2, 1))]


def test_no_proposals_is_the_first_run():
    result = metropolis(scripted([[0.5]], [[3]]), 0, np.random.default_rng(0))
    assert result.accepted.shape == (0, 1)
    assert result.proposed_log_z.shape == (0, 1)
    assert result.log_z.tolist() == [[0.5]]
    assert result.collect(lambda p: p.state[:, 0]).tolist() == [3]


def test_acceptance_rate_is_the_ratio():
    groups = 20_000
    sampler = scripted([[0.0] * groups, [np.log(0.3)] * groups], [[0] * groups, [1] * groups])
    rate = metropolis(sampler, 1, np.random.default_rng(1)).accepted.mean()
    assert abs(rate - 0.3) < 4.5 * np.sqrt(0.21 / groups)


def test_refusals():
    model = product(3, 2.0)
    with pytest.raises(UserError, match="mh_steps"):
        metropolis(lambda rng: smc(model.particles(2), 1, rng=rng), -1, np.random.default_rng(0))
    with pytest.raises(UserError, match="estimates no Z"):
        metropolis(
            lambda rng: smc(model.particles(2), 1, resampling="top_k", rng=rng), 1, np.random.default_rng(0)
        )
    groups = iter([2, 3])
    with pytest.raises(UserError, match="3 groups after 2"):
        metropolis(lambda rng: smc(model.particles(next(groups)), 1, rng=rng), 1, np.random.default_rng(0))


@pytest.mark.parametrize(("n", "pool_size"), [(1, 2), (3, 1)])
def test_stationary_law_is_the_target(n, pool_size):
    model = random_tree(3, 2, 0.4, Tilt(0.1), np.random.default_rng(2))
    chains = 20_000
    rng = np.random.default_rng(3)
    result = metropolis(lambda rng: smc(model.particles(chains), n, pool_size, rng=rng), 25, rng)
    target = solve(model).target
    seen = np.bincount(result.collect(lambda p: p.state[:, 0]), minlength=8) / chains
    assert (np.abs(seen - target) <= 4.5 * np.sqrt(target * (1 - target) / chains)).all()

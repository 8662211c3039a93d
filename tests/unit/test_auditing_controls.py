"""The Monte-Carlo oracle: independent of the estimates it stands beside, on a tree where everything is known."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rmtools.auditing.arrays import PromptArrays, prompt_arrays
from rmtools.auditing.controls import monte_carlo_oracle
from rmtools.auditing.cost import cost_estimates
from rmtools.auditing.model_audit import Subject, calibrate
from rmtools.codec import to_json
from rmtools.data.rollouts import Rollout
from rmtools.errors import UserError
from rmtools.particles.tilt import Tilt
from rmtools.stats.bootstrap import bootstrap
from rmtools.stats.influence import influence_sd
from rmtools.stats.path_errors import ratio_bound_quantiles
from rmtools.stats.sigma2 import sigma2_parts

TILT = Tilt(0.2)


# Two steps "a" and "b", T = 3, "b" may end early.
HORIZON = 3
REWARD = {
    "aaa": 1.0,
    "aab": 0.0,
    "aba": 0.5,
    "abb": 0.0,
    "baa": 0.0,
    "bab": 1.0,
    "bb": 0.25,
}


def p_of_a(prefix):
    return {"": 0.4, "a": 0.7, "b": 0.55, "aa": 0.35, "ab": 0.5, "ba": 0.6}[prefix]


def leaves(prefix):
    """{leaf: probability} below ``prefix``."""
    if prefix in REWARD:
        return {prefix: 1.0}
    p = p_of_a(prefix)
    below = {leaf: p * q for leaf, q in leaves(prefix + "a").items()}
    return below | {leaf: (1 - p) * q for leaf, q in leaves(prefix + "b").items()}


def potential(reward):
    return TILT.floor + (1 - TILT.floor) * reward


def true_value(prefix):
    return sum(q * potential(REWARD[leaf]) for leaf, q in leaves(prefix).items())


def prefixes(t):
    """{prefix at depth t, ended ones absorbing: probability}."""
    found = Counter()
    for leaf, q in leaves("").items():
        found[leaf[:t]] += q
    return found


def law_of_value(prefix, m):
    """{V: probability} for V the mean potential of ``m`` completions of ``prefix``; phi itself where it ended."""
    if prefix in REWARD:
        return {potential(REWARD[prefix]): 1.0}
    law = Counter({0.0: 1.0})
    for _ in range(m):
        law, before = Counter(), law
        for total, q in before.items():
            for leaf, p in leaves(prefix).items():
                law[total + REWARD[leaf]] += p * q
    return {potential(total / m): q for total, q in law.items()}


def mean_inverse(prefix, m):
    return sum(q / v for v, q in law_of_value(prefix, m).items())


def exact_numerator(m):
    """A = sigma^2 + T times Z^2 of the oracle of ``m`` completions, a constant at the root."""
    total = sum(q * true_value(s) ** 2 for s, q in prefixes(1).items())
    for t in range(2, HORIZON + 1):
        mean = sum(q * true_value(s) for s, q in prefixes(t - 1).items())
        over = sum(q * mean_inverse(s[: t - 1], m) * true_value(s) ** 2 for s, q in prefixes(t).items())
        total += mean * over
    return total


def exact_influence(m):
    """E H and Var H under the target, the noise of the oracle's values part of the state."""
    z = true_value("")
    first = second = 0.0
    for leaf, p in leaves("").items():
        at = [leaf[:t] for t in range(HORIZON + 1)]
        weight = p * potential(REWARD[leaf]) / z
        # H = V*(s_1) / Z + V*(s_2) / V(s_1) + phi / V(s_2): the noise at the two depths is independent.
        for v, q in law_of_value(at[1], m).items():
            for w, r in law_of_value(at[2], m).items():
                h = true_value(at[1]) / z + true_value(at[2]) / v + true_value(at[3]) / w
                first += weight * q * r * h
                second += weight * q * r * h**2
    return first, second - first**2


def draw(rng, prompt, n, extra):
    """Rollouts of ``n`` trajectories with ``extra`` completions at every prefix."""
    laws = {s: (list(leaves(s)), list(leaves(s).values())) for s in ("", "a", "b", "aa", "ab", "ba")}

    def sample(prefix, size):
        names, p = laws[prefix]
        return [names[k] for k in rng.choice(len(names), size, p=p)]

    return [
        Rollout(
            prompt,
            prompt,
            list(leaf),
            REWARD[leaf],
            completions=[[REWARD[x] for x in sample(leaf[:t], extra)] for t in range(len(leaf))],
        )
        for leaf in sample("", n)
    ]


def parts(rows, oracle):
    arrays = PromptArrays.of(rows, oracle.log_value, HORIZON, TILT)
    return sigma2_parts(arrays.log_value, arrays.value_square, arrays.potential)


def with_exact_squares(oracle):
    """The same estimate with the true V*^2 at every prefix: what it is given the realised values."""
    arrays = PromptArrays.of(oracle.rows, oracle.log_value, HORIZON, TILT)
    square = [[true_value("".join(r.steps[:t])) ** 2 for t in range(HORIZON + 1)] for r in oracle.rows]
    return sigma2_parts(arrays.log_value, np.asarray(square), arrays.potential)


def removed(rows, oracle):
    """The rows with the completions that the oracle used, and those alone."""
    return [
        replace(
            r,
            completions=[
                list((Counter(a) - Counter(b)).elements())
                for a, b in zip(r.completions, k.completions, strict=True)
            ],
        )
        for r, k in zip(rows, oracle.rows, strict=True)
    ]


def score(differences):
    differences = np.asarray(differences)
    return differences.mean() / (differences.std(ddof=1) / np.sqrt(len(differences)))


@pytest.fixture(scope="module")
def replicates():
    """1,250 prompts of 4 trajectories with 4 extra completions, 2 of them in each value: negative controls lie 12 errors off."""
    rng = np.random.default_rng(11)
    rows = [draw(rng, "p", 4, 4) for _ in range(1250)]
    return [(r, monte_carlo_oracle(r, TILT, rng)) for r in rows]


def test_sigma2_of_the_oracle_is_unbiased(replicates):
    found = [parts(o.rows, o) for _, o in replicates]
    given = [with_exact_squares(o) for _, o in replicates]
    exact = exact_numerator(2)
    z_square = true_value("") ** 2
    # A perfect value costs less: the truth tested against is that of the noisy one.
    assert exact > 1.05 * exact_numerator(200)
    assert abs(score([p.numerator - exact for p in found])) < 4.5
    assert abs(score([p.numerator - exact for p in given])) < 4.5
    assert abs(score([p.numerator - g.numerator for p, g in zip(found, given, strict=True)])) < 4.5
    assert abs(score([p.z_square - z_square for p in found])) < 4.5


def test_the_own_outcome_in_the_value_is_biased(replicates):
    """The negative control: the outcome that a value has seen is not what the value was to expect."""
    found = []
    for rows, oracle in replicates:
        seen = []
        for r, v, used in zip(rows, oracle.log_value, removed(rows, oracle), strict=True):
            with_own = [potential(np.mean([*used.completions[t], r.reward])) for t in range(1, len(r.steps))]
            seen.append(np.r_[v[0], np.log(with_own), v[-1]])
        found.append(parts(oracle.rows, replace(oracle, log_value=seen)).numerator)
    # Three completions, independent of the outcome, would cost this.
    assert score(np.asarray(found) - exact_numerator(3)) < -4.5


def test_sigma2_alone_would_not_need_the_split(replicates):
    """V(s_t) meets V*^2 at other depths and of other trajectories only: completions may serve both."""
    exact = exact_numerator(2)
    assert abs(score([parts(removed(r, o), o).numerator - exact for r, o in replicates])) < 4.5
    assert abs(score([parts(r, o).numerator - exact for r, o in replicates])) < 4.5


def spread(rows, oracle):
    arrays = PromptArrays.of(rows, oracle.log_value, HORIZON, TILT)
    return influence_sd(arrays.log_value, arrays.potential, arrays.extra, arrays.present, arrays.ended)


def off(interval, exact):
    """How far an estimate is from the truth, in standard errors of its 95% interval."""
    return (interval.estimate - exact) / ((interval.high - interval.low) / (2 * 1.96))


def test_the_spread_of_h_needs_the_split():
    """The negative control: completions at s_t stand in h_t, and in the value that h_{t+1} is divided by."""
    rng = np.random.default_rng(12)
    rows = draw(rng, "p", 3000, 4)
    oracle = monte_carlo_oracle(rows, TILT, rng)
    mean, variance = exact_influence(2)
    assert mean == pytest.approx(exact_numerator(2) / true_value("") ** 2)
    assert abs(off(spread(oracle.rows, oracle).variance, variance)) < 4.5
    assert off(spread(removed(rows, oracle), oracle).variance, variance) < -4.5
    assert off(spread(rows, oracle).variance, variance) < -4.5


def test_shrinkage_costs_fewer_particles_and_stays_independent(replicates):
    rng = np.random.default_rng(13)
    oracles = [monte_carlo_oracle(r, TILT, rng, shrinkage=2.0) for r, _ in replicates]
    found = [parts(o.rows, o).numerator for o in oracles]
    given = [with_exact_squares(o).numerator for o in oracles]
    assert abs(score(np.subtract(found, given))) < 4.5
    assert score(np.asarray(found) - exact_numerator(2)) < -4.5
    assert oracles[0].name == "Monte-Carlo oracle, 2 completions and 2 of the root"
    oracle, (rows, _) = oracles[0], replicates[0]
    root = np.mean([x for r in rows for x in r.completions[0]])
    for r, v, used in zip(rows, oracle.log_value, removed(rows, oracle), strict=True):
        for t in range(1, len(r.steps)):
            shrunk = (sum(used.completions[t]) + 2 * root) / 4
            assert np.exp(v[t]) == pytest.approx(potential(shrunk))


def test_shrinkage_that_makes_no_sense_is_refused():
    rng = np.random.default_rng(0)
    rows = draw(rng, "p", 4, 4)
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(UserError, match="`shrinkage`"):
            monte_carlo_oracle(rows, TILT, rng, shrinkage=wrong)
    bare = [replace(r, completions=[[], *r.completions[1:]]) for r in rows]
    with pytest.raises(UserError, match="field completions: 1 prompts"):
        monte_carlo_oracle(bare, TILT, rng, shrinkage=1.0)


def test_completions_are_used_once():
    rng = np.random.default_rng(2)
    rows = draw(rng, "p", 20, 5)
    oracle = monte_carlo_oracle(rows, TILT, rng)
    for r, k, v, used in zip(rows, oracle.rows, oracle.log_value, removed(rows, oracle), strict=True):
        assert (k.prompt, k.steps, k.reward) == (r.prompt, r.steps, r.reward)
        assert k.completions[0] == []
        assert v[-1] == pytest.approx(np.log(potential(r.reward)))
        for t in range(1, len(r.steps)):
            assert (len(used.completions[t]), len(k.completions[t])) == (2, 3)
            assert np.exp(v[t]) == pytest.approx(np.mean([potential(x) for x in used.completions[t]]))
    everyone = np.mean([potential(x) for r in rows for x in r.completions[0]])
    assert [v[0] for v in oracle.log_value] == pytest.approx([np.log(everyone)] * 20)
    assert oracle.n_roots_from_outcomes == 0
    assert oracle.name == "Monte-Carlo oracle, 2 completions"
    # Which ones is drawn.
    other = monte_carlo_oracle(rows, TILT, rng)
    assert any((a != b).any() for a, b in zip(oracle.log_value, other.log_value, strict=True))


def test_the_root_does_not_enter_particle_costs():
    rng = np.random.default_rng(3)
    rows = draw(rng, "p", 6, 4)
    oracle = monte_carlo_oracle(rows, TILT, rng)
    moved = replace(oracle, log_value=[np.r_[v[0] - 1.7, v[1:]] for v in oracle.log_value])
    costs = [
        bootstrap(
            cost_estimates(o.rows, prompt_arrays(o.rows, o.scored(), TILT)).pooled(), np.random.default_rng(0)
        )
        for o in (oracle, moved)
    ]
    for name in ("sigma2", "influence"):
        a, b = (found[name] for found in costs)
        assert a is not None
        assert str(to_json(a)) == str(to_json(b))
    # Not for nothing: another depth does.
    moved = replace(
        oracle, log_value=[np.r_[v[0], v[1] * (1 + i), v[2:]] for i, v in enumerate(oracle.log_value)]
    )
    assert parts(oracle.rows, moved).numerator != pytest.approx(parts(oracle.rows, oracle).numerator)


def test_root_without_completions_of_the_prompt():
    rng = np.random.default_rng(4)
    rows = [r for p in "pq" for r in draw(rng, p, 5, 2)]
    bare = [replace(r, completions=[[], *r.completions[1:]]) if r.prompt == "q" else r for r in rows]
    oracle = monte_carlo_oracle(bare, TILT, rng)
    assert oracle.n_roots_from_outcomes == 1
    mean = np.mean([potential(r.reward) for r in rows[5:]])
    assert [v[0] for v in oracle.log_value[5:]] == pytest.approx([np.log(mean)] * 5)


def test_what_can_be_estimated_with_the_oracle():
    rng = np.random.default_rng(5)
    rows = [r for k in range(12) for r in draw(rng, f"p{k}", 4, 4)]
    oracle = monte_carlo_oracle(rows, TILT, rng)
    scored = oracle.scored()
    assert scored.prompt.tolist() == np.repeat(np.arange(12), 4).tolist()
    assert scored.horizon == HORIZON
    assert scored.child_log_value.shape == (sum(len(r.steps) for r in rows), 1)
    for i, v in enumerate(oracle.log_value):
        at = scored.prefix_trajectory == i
        assert scored.prefix_log_value[at].tolist() == v[:-1].tolist()
        assert scored.child_log_value[at, 0].tolist() == v[1:].tolist()
        assert scored.prefix_depth[at].tolist() == list(range(len(v) - 1))
    spread = cost_estimates(oracle.rows, prompt_arrays(oracle.rows, scored, TILT)).pooled()
    assert spread["sigma2"] is not None
    assert spread["influence"] is not None
    assert calibrate(scored, Subject("model", "", TILT)).bootstrap(rng).n == sum(
        len(v) for v in scored.own_log_value
    )
    bound = ratio_bound_quantiles(scored.prefix_log_value, scored.child_log_value, scored.child_present)
    assert bound.n == len(scored.prefix_depth)


def row(prompt, length, reward, completions=()):
    return Rollout(prompt, prompt, ["u \n"] * length, reward, completions=list(completions))


def test_too_few_completions_are_named():
    rows = [row("r0 . \n", 2, 1.0, [[], [1.0, 0.0]]), row("r1 . \n", 2, 1.0, [[], [1.0]])]
    with pytest.raises(UserError, match=r"field completions: row 1 \(prompt r1 \. \n\) has 1 after step 1"):
        monte_carlo_oracle(rows, TILT, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"field completions: row 0 .*\n.* has 0 after step 1"):
        monte_carlo_oracle([row("r0 . \n", 3, 1.0), row("r0 . \n", 1, 0.0)], TILT, np.random.default_rng(0))
    single = monte_carlo_oracle([row("a", 1, 1.0), row("a", 1, 0.0)], TILT, np.random.default_rng(0))
    np.testing.assert_allclose(np.exp(single.log_value), [[potential(0.5), 1], [potential(0.5), TILT.floor]])

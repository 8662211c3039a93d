"""Estimators against exact answers by simulation: unbiased where they claim it, intervals that cover."""

import math

import numpy as np
import pytest

from rmtools.core import solve
from rmtools.exact.families import random_tree
from rmtools.particles.smc import smc
from rmtools.particles.tilt import Tilt
from rmtools.stats.bellman_error import bellman_estimator
from rmtools.stats.bootstrap import (
    Estimator,
    bootstrap,
    bootstrap_all,
    cluster_bootstrap,
    cluster_sums,
    first_mean,
    ratio_of_means,
)
from rmtools.stats.empirical_sigma2 import measured_sigma2
from rmtools.stats.influence import influence_estimator, influence_sd
from rmtools.stats.path_errors import path_sums
from rmtools.stats.prefix_errors import prefix_errors
from rmtools.stats.quantiles import fraction_bound, quantile_interval
from rmtools.stats.sigma2 import sigma2, sigma2_estimator, sigma2_parts, value_square_estimate

Z_MAX = 4.5
BRANCHES = 2


class Population:
    """`size` asymmetric binary trees of one shape, everything exact in arrays (size, states)."""

    def __init__(self, size, horizon, rng, eps=0.3, floor=0.1):
        self.size, self.horizon, branch = size, horizon, BRANCHES
        self.policy = [rng.dirichlet(np.ones(branch) * 2, size=(size, branch**t)) for t in range(horizon)]
        easy = rng.beta(1, 1.5, size=(size, 1))
        reward = rng.beta(2 * easy + 0.05, 2 * (1 - easy) + 0.05, size=(size, branch**horizon))
        self.true = [np.zeros(0)] * horizon + [floor + (1 - floor) * reward]
        for t in reversed(range(horizon)):
            self.true[t] = (self.policy[t] * self.children(t, self.true[t + 1])).sum(-1)
        error = eps * rng.random((size, 1)) * np.array([1.0, -0.5])
        self.log_value = [
            np.log(v) + error[:, np.arange(v.shape[1]) % 2] + 0.1 * rng.normal(size=v.shape)
            for v in self.true[:-1]
        ]
        self.log_value.append(np.log(self.true[-1]))
        self.reach = [np.ones((size, 1))]
        for t in range(horizon):
            self.reach.append((self.reach[t][:, :, None] * self.policy[t]).reshape(size, -1))
        self.rho = [
            (
                self.policy[t]
                * np.exp(self.children(t, self.log_value[t + 1]) - self.log_value[t][..., None])
            ).sum(-1)
            for t in range(horizon)
        ]
        self.z = self.true[0][:, 0]
        self._solve()

    def children(self, t, layer):
        return layer.reshape(self.size, -1, BRANCHES)

    def _solve(self):
        """A, and the variance of H under the target, by enumeration."""
        self.numerator, h = np.zeros(self.size), np.zeros((self.size, 1))
        for t in range(self.horizon):
            value, after = np.exp(self.log_value[t]), self.children(t, self.true[t + 1])
            mean_value = (self.reach[t] * value).sum(1)
            second = (self.policy[t] * after**2).sum(-1)
            self.numerator += mean_value * (self.reach[t] * second / value).sum(1)
            step = (mean_value / self.z)[:, None, None] * after / value[..., None]
            h = (h[..., None] + step).reshape(self.size, -1)
        target = self.reach[-1] * self.true[-1] / self.z[:, None]
        mean = (target * h).sum(1)
        np.testing.assert_allclose(mean, self.numerator / self.z**2)
        self.variance = (target * (h - mean[:, None]) ** 2).sum(1)

    def truth(self):
        def average(f):
            return np.mean([(w * f(rho)).sum(1) for w, rho in zip(self.reach, self.rho, strict=False)])

        weight = self.z**2
        return {
            "squared": average(lambda rho: (rho - 1) ** 2),
            "log square": average(lambda rho: np.log(rho) ** 2),
            "z": self.z.mean(),
            "sigma2": (self.numerator - self.horizon * weight).sum() / weight.sum(),
            "influence": (weight * self.variance).sum() / weight.sum(),
        }

    def step(self, t, prompt, state, rng):
        first = self.policy[t][prompt, state][..., 0]
        return state * BRANCHES + (rng.random(state.shape) >= first)

    def complete(self, t, prompt, state, rng):
        for u in range(t, self.horizon):
            state = self.step(u, prompt, state, rng)
        return self.true[-1][prompt, state]

    def audit(self, prompts, n, k, r, rng):
        """Rollouts of n trajectories with k children and r completions at each prefix, own ones counted."""
        prompt = np.repeat(prompts[:, None], n, axis=1)
        path = [np.zeros_like(prompt)]
        for t in range(self.horizon):
            path.append(self.step(t, prompt, path[t], rng))
        log_value = np.stack([v[prompt, s] for v, s in zip(self.log_value, path, strict=True)], axis=-1)
        kids, extra = [], []
        for t in range(self.horizon):
            many = [np.repeat(path[t][..., None], m - 1, axis=-1) for m in (k, r)]
            drawn = np.concatenate(
                [path[t + 1][..., None], self.step(t, prompt[..., None], many[0], rng)], axis=-1
            )
            kids.append(self.log_value[t + 1][prompt[..., None], drawn])
            extra.append(self.complete(t, prompt[..., None], many[1], rng))
        phi = self.true[-1][prompt, path[-1]]
        return path, log_value, np.stack(kids, axis=2), np.stack(extra, axis=2), phi


def value_squares(extra, phi):
    """(C, n, T + 1) unbiased V*^2 at every prefix of the trajectories."""
    own = np.broadcast_to(phi[:, :, None, None], (*extra.shape[:3], 1))
    inner = value_square_estimate(np.concatenate([own, extra], axis=-1))
    return np.concatenate([inner, phi[:, :, None] ** 2], axis=-1)


def all_parts(log_value, extra, phi):
    square = value_squares(extra, phi)
    return [sigma2_parts(*row) for row in zip(log_value, square, phi, strict=True)]


def z_score(samples, truth):
    samples = np.asarray(samples, dtype=np.float64)
    return (samples.mean() - truth) / (samples.std(ddof=1) / math.sqrt(len(samples)))


ONE_TREE = Population(1, 4, np.random.default_rng(20), eps=0.5)


@pytest.mark.parametrize("k", [2, 4, 16])
def test_ratio_and_squared_error_are_unbiased_on_a_tree(k):
    tree, replicates = ONE_TREE, 6000
    path, log_value, kids, _, _ = tree.audit(
        np.zeros(replicates, int), 1, k, 2, np.random.default_rng(30 + k)
    )
    for t in range(tree.horizon):
        errors = prefix_errors(log_value[:, 0, t], kids[:, 0, t])
        rho = tree.rho[t][0, path[t][:, 0]]
        assert abs(z_score(errors.ratio - rho, 0)) < Z_MAX
        assert abs(z_score(errors.squared_error - (rho - 1) ** 2, 0)) < Z_MAX
    # A negative control: the plug-in square is far from unbiased.
    if k == 2:
        assert z_score((errors.ratio - 1) ** 2 - (rho - 1) ** 2, 0) > 10


@pytest.mark.parametrize("r", [2, 4, 16])
def test_value_squares_and_the_parts_of_sigma2_are_unbiased_on_a_tree(r):
    tree, n = ONE_TREE, 6
    path, log_value, _, extra, phi = tree.audit(np.zeros(3000, int), n, 2, r, np.random.default_rng(40 + r))
    square = value_squares(extra, phi)
    for t in range(tree.horizon + 1):
        exact = tree.true[t][0, path[t]] ** 2
        assert t == tree.horizon or abs(z_score((square[:, :, t] - exact)[:, 0], 0)) < Z_MAX
    parts = all_parts(log_value, extra, phi)
    assert abs(z_score([p.numerator for p in parts], tree.numerator[0])) < Z_MAX
    assert abs(z_score([p.z_square for p in parts], tree.z[0] ** 2)) < Z_MAX
    assert abs(z_score(phi.mean(axis=1), tree.z[0])) < Z_MAX
    assert z_score(phi.mean(axis=1) ** 2, tree.z[0] ** 2) > Z_MAX  # the square of a mean is not
    # The jackknife takes most of the bias off the ratio.
    results = [sigma2(p) for p in parts]
    exact = tree.numerator[0] / tree.z[0] ** 2 - tree.horizon
    bias = [
        abs(np.mean(x) - exact) for x in zip(*[(s.ratio, s.estimate.estimate) for s in results], strict=True)
    ]
    assert bias[1] < 0.5 * bias[0]


def test_path_sums_need_the_extra_children_alone():
    tree, n, k = ONE_TREE, 30000, 16
    path, log_value, kids, _, _ = tree.audit(np.zeros(n, int), 1, k + 1, 2, np.random.default_rng(45))
    rho = np.stack([tree.rho[t][0, path[t][:, 0]] for t in range(tree.horizon)], axis=1)
    total = np.log(rho).sum(axis=1)
    scores = []
    for children in (
        kids[:, 0, :, 1:],
        kids[:, 0, :, :-1],
    ):  # without, and with, the trajectory's own next step
        errors = prefix_errors(log_value[:, 0, :-1].ravel(), children.reshape(-1, k))
        sums = path_sums(errors, np.repeat(np.arange(n), tree.horizon))
        assert abs(z_score(sums.total - total, 0)) < Z_MAX
        scores.append(z_score(sums.total**2 - sums.noise - total**2, 0))
    assert abs(scores[0]) < Z_MAX
    assert scores[1] < -10


def test_parts_agree_with_the_finite_model_and_with_the_sampler():
    """The same sigma^2 three ways: exactly, from rollouts, and from runs of the sampler."""
    model = random_tree(4, 3, 0.3, Tilt(0.1), np.random.default_rng(50))
    exact, rng = solve(model), np.random.default_rng(51)
    layers = [model.particles(1)]
    for t in range(model.horizon):
        layers.append(layers[-1].extend(4000 if t == 0 else 1, rng))
    # Trajectories by one extension of 4000, completions of each prefix by extending it again.
    log_value = np.stack([np.broadcast_to(p.log_value()[0], 4000) for p in layers], axis=1)
    phi = np.exp(layers[-1].log_value()[0])
    square = np.stack([np.ones(4000)] * (model.horizon + 1), axis=1)
    square[:, -1] = phi**2
    for t in range(1, model.horizon):
        completions = [phi]
        for _ in range(3):
            again = layers[t]
            for _ in range(t, model.horizon):
                again = again.extend(1, rng)
            completions.append(np.exp(again.log_value()[0]))
        square[:, t] = value_square_estimate(np.stack(completions, axis=1))
    predicted = sigma2(sigma2_parts(log_value, square, phi))
    assert predicted.resolved
    assert predicted.estimate.contains(exact.sigma2)
    assert predicted.estimate.estimate == pytest.approx(exact.sigma2, rel=0.15)
    runs = smc(model.particles(2000), 60, resampling="multinomial", ess_threshold=1, rng=rng)
    measured = measured_sigma2(runs.log_z[:, None], 60, np.exp(exact.log_z), rng)
    assert measured.pooled.estimate == pytest.approx(exact.sigma2, rel=0.15)
    assert measured.pooled.contains(exact.sigma2)


def skewed_clusters(n_clusters, rng):
    """Unequal clusters with a cluster effect: sum and count, and the rows; the mean over rows is exp(1/2)."""
    size = rng.integers(1, 9, n_clusters)
    label = np.repeat(np.arange(n_clusters), size)
    rows = np.exp(0.9 * rng.normal(size=n_clusters)[label] + math.sqrt(0.19) * rng.normal(size=len(label)))
    return np.stack([rows, np.ones(len(rows))], axis=1), label


@pytest.mark.parametrize("n_clusters", [100, 200])
def test_cluster_bootstrap_covers_and_the_prefix_bootstrap_does_not(n_clusters):
    rng, replicates, truth = np.random.default_rng(60 + n_clusters), 400, math.exp(0.5)
    hits = np.zeros(2)
    for _ in range(replicates):
        rows, label = skewed_clusters(n_clusters, rng)
        intervals = [
            cluster_bootstrap(sums, ratio_of_means, rng, 400) for sums in (cluster_sums(rows, label), rows)
        ]
        hits += [interval.contains(truth) for interval in intervals]
    by_cluster, by_prefix = hits / replicates
    assert 0.91 <= by_cluster <= 0.985
    assert by_prefix < 0.85


def test_quantile_interval_and_fraction_bound_cover():
    rng, replicates = np.random.default_rng(70), 400
    hits = np.zeros(3)
    for _ in range(replicates):
        effect = rng.normal(size=150)
        values = np.repeat(effect, 4) + rng.normal(size=600)  # normal with variance 2
        label = np.repeat(np.arange(150), 4)
        for i, (q, z) in enumerate(((0.5, 0.0), (0.9, 1.2815515594))):
            hits[i] += quantile_interval(values, label, q).contains(math.sqrt(2) * z)
        bound = fraction_bound(effect)
        hits[2] += bound.error is not None and bound.error >= 1.2815515594  # holds for 90% of the population
    assert np.all((hits[:2] / replicates >= 0.91) & (hits[:2] / replicates <= 0.985))
    assert hits[2] / replicates >= 0.93


# Estimator and statistic of each asserted interval.
ASSERTED = {
    "squared": ("bellman", "ratio"),
    "log square": ("bellman", "corrected"),
    "z": ("z", "z"),
    "sigma2": ("sigma2", "sigma2"),
    "influence": ("influence", "variance"),
}


def audit_estimators(population, rng, n_prompts, n, k, r):
    prompts = rng.integers(population.size, size=n_prompts)
    _, log_value, kids, extra, phi = population.audit(prompts, n, k, r, rng)
    horizon = population.horizon
    errors = prefix_errors(log_value[:, :, :-1].ravel(), kids.reshape(-1, k))
    label, depth = np.repeat(np.arange(n_prompts), n * horizon), np.tile(np.arange(horizon), n_prompts * n)
    spread = [influence_sd(*row) for row in zip(log_value, phi, extra, strict=True)]
    return {
        "bellman": bellman_estimator(errors, label, depth, horizon),
        "sigma2": sigma2_estimator(all_parts(log_value, extra, phi)),
        "influence": influence_estimator(spread),
        "z": Estimator({"z": (phi.mean(axis=1, keepdims=True), first_mean)}, lambda found: found["z"]),
    }


def intervals(estimators, rng):
    """The asserted intervals alone: their statistics see the same resamples as in an audit, which has forty more."""
    return bootstrap_all({name: estimators[e].sums[part] for name, (e, part) in ASSERTED.items()}, rng, 400)


def test_intervals_by_themselves_are_those_of_the_audit():
    estimators = audit_estimators(
        Population(300, 3, np.random.default_rng(80)), np.random.default_rng(81), 60, 6, 16, 3
    )
    found = bootstrap(estimators, np.random.default_rng(1), 400)
    assert intervals(estimators, np.random.default_rng(1)) == {
        "squared": found["bellman"].ratio_error.mean_square,
        "log square": found["bellman"].corrected.mean_square,
        "z": found["z"],
        "sigma2": found["sigma2"].estimate,
        "influence": found["influence"].variance,
    }


@pytest.mark.slow
def test_intervals_of_an_audit_cover_the_population():
    population = Population(300, 3, np.random.default_rng(80))
    truth, rng, replicates = population.truth(), np.random.default_rng(81), 300
    hits, estimates = dict.fromkeys(truth, 0), {name: [] for name in truth}
    for _ in range(replicates):
        for name, interval in intervals(audit_estimators(population, rng, 60, 6, 16, 3), rng).items():
            hits[name] += interval.contains(truth[name])
            estimates[name].append(interval.estimate)
    coverage = {name: count / replicates for name, count in hits.items()}
    assert all(0.91 <= share <= 0.985 for share in coverage.values()), coverage
    for name in ("squared", "z"):
        assert abs(z_score(estimates[name], truth[name])) < Z_MAX


def test_not_resolved_is_said_where_good_children_are_rare():
    """A perfect value, f = .05, q = .1: the corrected RMS is far from 0, and the summary says not resolved."""
    rng, floor, q = np.random.default_rng(90), 0.05, 0.1
    value = np.log(floor + (1 - floor) * q)
    label = np.repeat(np.arange(300), 4)
    for k in (8, 16):
        child = np.where(rng.random((1200, k)) < q, 0.0, np.log(floor))
        summary = bellman_estimator(
            prefix_errors(np.full(1200, value), child), label, label * 0, 4
        ).bootstrap(rng, 400)
        assert summary.corrected.rms.low is not None
        assert summary.corrected.rms.low > 0.25
        assert not summary.resolved
        assert summary.ratio_error.mean_square.contains(0.0)
    # A value with an error, children of moderate spread: resolved, and right.
    errors = prefix_errors(rng.normal(0, 0.3, 1200), np.log(rng.gamma(20, 1 / 20, (1200, 16))))
    summary = bellman_estimator(errors, label, label * 0, 4).bootstrap(rng, 400)
    assert summary.resolved
    assert summary.corrected.rms.contains(0.3)

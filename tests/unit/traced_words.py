"""Particles of a few words a step, traced: small enough to work out by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from rmtools.codec import from_json
from rmtools.core import smc
from rmtools.sampling.trace import Trace, Tracer, trace_line, trees_at


def rng(seed=0):
    return np.random.default_rng(seed)


class Words:
    """A few words a step, written out; a prefix ends at "stop" or after ``horizon`` steps, each prompt its own way."""

    decoded = 0

    def __init__(self, texts, horizons, table=None):
        self.texts, self.horizons, self.table = texts, horizons, table

    @property
    def shape(self):
        return len(self.texts), len(self.texts[0])

    @property
    def ended(self):
        return np.asarray(
            [
                [x[-1:] == ["stop"] or len(x) == h for x in g]
                for g, h in zip(self.texts, self.horizons, strict=True)
            ]
        )

    def log_value(self):
        value = {"a": -0.1, "bb": -1.3, "stop": -0.7, "dead": -np.inf}
        return np.asarray([[sum((value[w] for w in x), 0.2) for x in g] for g in self.texts])

    def extend(self, pool_size, draws):
        words = self.table or ["a", "bb", "stop"]
        ended = self.ended
        return self.of(
            [
                [
                    x if ended[g, i] else [*x, str(draws.choice(words))]
                    for i, x in enumerate(row)
                    for _ in range(pool_size)
                ]
                for g, row in enumerate(self.texts)
            ]
        )

    def select(self, index):
        return self.of([[row[i] for i in at] for row, at in zip(self.texts, index.tolist(), strict=True)])

    def join(self, other):
        return self.of([a + b for a, b in zip(self.texts, other.texts, strict=True)])

    def of(self, texts):
        return Words(texts, self.horizons, self.table)

    def steps(self):
        return self.texts


def words(horizons=(5, 2, 4), table=None):
    return Words([[[]] for _ in horizons], horizons, table), [f"prompt {i}" for i in range(len(horizons))]


def run(root, prompts, how, seed=3):
    """The result and its traces; as written to a file and read again."""
    n, m, scheme, threshold = how
    tracer = Tracer(trees_at(root, prompts))
    result = smc(root, n, m, scheme, threshold, rng(seed), observe=tracer)
    settings = {"resampling": scheme, "ess_threshold": threshold}
    draws = result.draw(rng(seed))
    traces = [
        read_again(replace(t, draw=None if set(t.log_weights) == {None} else int(draws[g])))
        for g, t in enumerate(tracer.traces(result, settings))
    ]
    return result, traces


def read_again(trace):
    line = json.loads(json.dumps(trace_line(trace), allow_nan=False))
    return from_json(Trace, {k: v for k, v in line.items() if k not in ("schema_version", "kind")})


def value(x):
    return -np.inf if x is None else x


def log_mean(x):
    top = max(x)
    return top if top == -np.inf else top + np.log(np.mean(np.exp(np.asarray(x) - top)))


def check_tree(trace):
    """Every candidate continues its particle, every particle is one of its ancestor's candidates, no node is there twice."""
    n, m, nodes = trace.n_particles, trace.pool_size, trace.nodes
    before = [0] * n
    for step in trace.steps:
        for c, number in enumerate(step.candidates):
            parent = before[c // m]
            assert number == parent or nodes[number].parent == parent
        for number, a in zip(step.particles, step.ancestors, strict=True):
            assert number in step.candidates[a * m : (a + 1) * m]
        before = step.particles
    assert len({(x.parent, x.text, x.log_value) for x in nodes}) == len(nodes)
    assert {c for step in trace.steps for c in step.candidates} == set(range(1, len(nodes)))


def replayed(trace):
    """The texts of the final particles, by going through the ancestors from the last step to the first."""
    found = []
    for i in range(trace.n_particles):
        texts, at = [], i
        for t in reversed(range(len(trace.steps))):
            step = trace.steps[t]
            number = step.particles[at]
            if t == 0 or number not in trace.steps[t - 1].particles:
                texts.append(trace.nodes[number].text)
            at = step.ancestors[at]
        found.append(texts[::-1])
    return found


def weights_by_hand(trace):
    """Log increments of every step, normalised final log weights and log Z from the nodes' values alone."""
    n, m = trace.n_particles, trace.pool_size
    known = [value(x.log_value) for x in trace.nodes]
    log_weight, log_z, at, increments = np.zeros(n), known[0], [0] * n, []
    for step in trace.steps:
        row = []
        for i in range(n):
            pool = step.candidates[i * m : (i + 1) * m]
            still = (pool[0] == at[i] and trace.nodes[at[i]].ended) or known[at[i]] == -np.inf
            row.append(0.0 if still else log_mean([known[c] for c in pool]) - known[at[i]])
        increments.append(row)
        log_weight = log_weight + row
        w = np.exp(log_weight)
        assert step.ess == pytest.approx(w.sum() ** 2 / (w**2).sum() if w.any() else 0.0)
        if step.resampled:
            log_z += log_mean(log_weight)
            log_weight = np.zeros(n)
        at = step.particles
    total = log_mean(log_weight)
    return increments, log_weight - total - np.log(n), log_z + total


def check_weights(trace, result, g):
    increments, log_weights, log_z = weights_by_hand(trace)
    for t, row in enumerate(increments):
        np.testing.assert_allclose(row, result.log_increments[t, g], atol=1e-9)
        np.testing.assert_allclose(row, [value(x) for x in trace.steps[t].log_increments], atol=1e-9)
    np.testing.assert_allclose(log_weights, result.log_weights[g], atol=1e-9)
    np.testing.assert_allclose(log_weights, [value(x) for x in trace.log_weights], atol=1e-9)
    assert log_z == pytest.approx(result.log_z[g]) == trace.log_z

"""Particles of a few words a step, traced: small enough to work out by hand."""

import json

import numpy as np
import pytest

from rmtools.core import smc
from rmtools.sampling.trace import Traced, trace_records


def rng(seed=0):
    return np.random.default_rng(seed)


class Words:
    """A few words a step, written out; a prefix ends at "stop" or after ``horizon`` steps, each prompt its own way."""

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
    """The result and its records; as written to a file and read again."""
    n, m, scheme, threshold = how
    result = smc(Traced.start(root, prompts), n, m, scheme, threshold, rng(seed))
    settings = {"resampling": scheme, "ess_threshold": threshold}
    records = trace_records(result.particles, result, settings, result.draw(rng(seed)))
    return result, [json.loads(json.dumps(r, allow_nan=False)) for r in records]


def value(x):
    return -np.inf if x is None else x


def log_mean(x):
    top = max(x)
    return top if top == -np.inf else top + np.log(np.mean(np.exp(np.asarray(x) - top)))


def check_tree(record):
    """Copies sum to N, every candidate continues its particle, every particle is one of its ancestor's candidates."""
    n, m = record["n_particles"], record["pool_size"]
    before = [0] * n
    for step in record["steps"]:
        nodes = {x["id"]: x for x in step["nodes"]}
        assert sum(x["copies"] for x in step["nodes"]) == n
        assert len({(x["parent"], x["text"], x["log_value"]) for x in step["nodes"]}) == len(nodes)
        assert set(step["candidates"]) == set(nodes)
        for c, number in enumerate(step["candidates"]):
            parent = before[c // m]
            assert number == parent or nodes[number]["parent"] == parent
        for number, a in zip(step["particles"], step["ancestors"], strict=True):
            assert number in step["candidates"][a * m : (a + 1) * m]
        assert step["unique_ancestors"] == len(set(step["ancestors"]))
        before = step["particles"]


def replayed(record):
    """The texts of the final particles, by going through the ancestors from the last step to the first."""
    found = []
    for i in range(record["n_particles"]):
        texts, at = [], i
        for t in reversed(range(len(record["steps"]))):
            step = record["steps"][t]
            nodes = {x["id"]: x for x in step["nodes"]}
            new = t == 0 or step["particles"][at] not in {x["id"] for x in record["steps"][t - 1]["nodes"]}
            if new:
                texts.append(nodes[step["particles"][at]]["text"])
            at = step["ancestors"][at]
        found.append(texts[::-1])
    return found


def weights_by_hand(record):
    """Log increments of every step, normalised final log weights and log Z from the nodes' values alone."""
    n, m = record["n_particles"], record["pool_size"]
    known = {0: value(record["root"]["log_value"])}
    log_weight, log_z, at, increments = np.zeros(n), known[0], [0] * n, []
    for step in record["steps"]:
        known |= {x["id"]: value(x["log_value"]) for x in step["nodes"]}
        ended = {x["id"] for x in step["nodes"] if x["ended"]}
        row = []
        for i in range(n):
            pool = step["candidates"][i * m : (i + 1) * m]
            still = (pool[0] == at[i] and at[i] in ended) or known[at[i]] == -np.inf
            row.append(0.0 if still else log_mean([known[c] for c in pool]) - known[at[i]])
        increments.append(row)
        log_weight = log_weight + row
        w = np.exp(log_weight)
        assert step["ess"] == pytest.approx(w.sum() ** 2 / (w**2).sum() if w.any() else 0.0)
        if step["resampled"]:
            log_z += log_mean(log_weight)
            log_weight = np.zeros(n)
        at = step["particles"]
    total = log_mean(log_weight)
    return increments, log_weight - total - np.log(n), log_z + total


def check_weights(record, result, g):
    increments, log_weights, log_z = weights_by_hand(record)
    for t, row in enumerate(increments):
        np.testing.assert_allclose(row, result.log_increments[t, g], atol=1e-9)
        np.testing.assert_allclose(row, [value(x) for x in record["steps"][t]["log_increments"]], atol=1e-9)
    np.testing.assert_allclose(log_weights, result.log_weights[g], atol=1e-9)
    np.testing.assert_allclose(log_weights, [value(x) for x in record["log_weights"]], atol=1e-9)
    assert log_z == pytest.approx(result.log_z[g]) == record["log_z"]

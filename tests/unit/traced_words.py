"""Particles of a few words a step, traced: small enough to work out by hand."""

import json

import numpy as np

from rmtools.core import smc
from rmtools.lm.trace import Traced, trace_records


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

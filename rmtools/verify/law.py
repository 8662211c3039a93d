"""Compare stepwise decoding with the policy's law: with one-shot ``generate`` and with enumeration."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rmtools.data.collect import Branching, Collector
from rmtools.data.tasks import Task
from rmtools.lm.enumerate import tabulate
from rmtools.lm.generate import generate_once
from rmtools.lm.policy import Policy
from rmtools.lm.steps import StepTokenizer
from rmtools.lm.value import ConstantValue
from rmtools.particles.tilt import Tilt


@dataclass(frozen=True)
class LawCheck:
    """Stepwise decoding beside its two references.

    Attributes
    ----------
    samples, batch : int
        Solutions drawn each way, and how many in one batch.
    well_formed_stepwise, well_formed_generate : float
        Shares of solutions whose first T steps are well-formed.
    ragged : int
        Stepwise solutions with a step whose number of tokens differs from the task's steps.
    horizon : int
        Depth of the enumeration.
    paths : list of dict
        Per prompt ``samples``, ``cells``, ``statistic`` and ``p_value`` of a chi-square test of path frequencies against
        exact probabilities. Paths outside the table are one cell; cells of fewer than 5 expected are pooled.
    """

    samples: int
    batch: int
    well_formed_stepwise: float
    well_formed_generate: float
    ragged: int
    horizon: int
    paths: list[dict[str, float]]


def check_law(
    policy: Policy,
    task: Task,
    prompts: Sequence[str],
    rng: np.random.Generator,
    samples: int = 2048,
    batch: int = 256,
    horizon: int = 3,
    path_samples: int = 4096,
) -> LawCheck:
    """Draw ``samples`` solutions stepwise and by ``generate`` in batches of ``batch``; test paths of ``horizon`` steps.

    At least samples / batch prompts are needed: one fills a batch. The first four are enumerated.
    """
    used = list(prompts[: samples // batch])
    rows = Collector(policy, task, Branching(batch), rng).collect(used, prompts_per_batch=1)
    usual = len(policy.steps.step_ids((task.step_choices(used[0], []) or [rows[0].steps[0]])[0]))
    ragged = sum(any(len(policy.steps.step_ids(s)) != usual for s in r.steps) for r in rows)
    good = [task.well_formed(policy.steps.written(r.steps)) for r in rows]
    width = policy.steps.settings.max_steps * usual
    once = [s for p in used for s in generate_once(policy, [p] * batch, width, rng)[0]]
    alike = [task.well_formed(policy.steps.written(s[: policy.steps.settings.max_steps])) for s in once]
    paths = [path_test(policy, task, p, horizon, path_samples, rng) for p in prompts[:4]]
    return LawCheck(len(rows), batch, float(np.mean(good)), float(np.mean(alike)), ragged, horizon, paths)


def path_test(
    policy: Policy, task: Task, prompt: str, horizon: int, samples: int, rng: np.random.Generator
) -> dict[str, float]:
    """Test the frequencies of the first ``horizon`` steps against their exact probabilities (chi-square)."""
    settings = dataclasses.replace(policy.steps.settings, max_steps=horizon)
    steps = StepTokenizer(policy.steps.tokenizer, settings, policy.steps.end_ids)
    short = Policy(policy.model, steps, policy.law, policy.name)
    table = tabulate(
        short,
        ConstantValue(0.5, short.steps, Tilt(0.01)),
        prompt,
        task.step_choices(prompt, []) or [],
        lambda prompt, steps: 1.0,
        1e-4,
    )
    rows = Collector(short, task, Branching(samples), rng).collect([prompt])
    seen = Counter(tuple(r.steps) for r in rows)
    p = np.append(table.path_probability, max(0.0, 1 - table.path_probability.sum()))
    counts = np.asarray([seen[tuple(path)] for path in table.paths], dtype=float)
    return chi_square(np.append(counts, samples - counts.sum()), samples * p)


def chi_square(observed: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Return the chi-square test of counts, the rarest cells pooled until every cell expects 5 or more.

    Raises
    ------
    ValueError
        If fewer than two cells are left: there is nothing to test.
    """
    from scipy.stats import chi2

    order = np.argsort(expected)
    observed, expected = observed[order], expected[order]
    pooled = int(np.searchsorted(np.cumsum(expected), 5.0)) + 1
    pooled = max(pooled, int((expected < 5).sum()))
    observed = np.append(observed[pooled:], observed[:pooled].sum())
    expected = np.append(expected[pooled:], expected[:pooled].sum())
    if len(observed) < 2:
        raise ValueError("the policy has one path only: there is no law to test")
    statistic = float(np.sum((observed - expected) ** 2 / expected))
    return {
        "samples": float(observed.sum()),
        "cells": float(len(observed)),
        "statistic": statistic,
        "p_value": float(chi2.sf(statistic, len(observed) - 1)),
    }

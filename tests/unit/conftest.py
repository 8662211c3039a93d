"""Rollouts to train on, and what a checkpoint trained on them remembers."""

import copy
from dataclasses import replace

import numpy as np
import pytest


@pytest.fixture(scope="module")
def rollouts(policy, task, prompts):
    """The policy's own, with outcomes of both kinds in both halves: it seldom succeeds."""
    from rmtools.data.collect import Branching, Collector

    rng = np.random.default_rng(0)
    rows = Collector(policy, task, Branching(3, 3, 2), rng).collect(prompts)
    return [replace(r, reward=float(i % 3 == 0)) for i, r in enumerate(rows)]


@pytest.fixture
def remembered(policy_folder, settings, rollouts, tmp_path):
    from test_training_trainer import config

    from rmtools.data.rollouts import RolloutMetadata, Rollouts
    from rmtools.lm.checkpoint import fingerprint
    from rmtools.training.provenance import checkpoint_settings

    weights = fingerprint(policy_folder)
    metadata = RolloutMetadata(str(policy_folder), weights, "crossing", 3, settings, 1.6, 5)
    return checkpoint_settings(str(policy_folder), Rollouts(rollouts, metadata, "rollouts"), config(tmp_path))


@pytest.fixture(scope="session")
def uneven(policy):
    """The policy with the end token at a fifth of the mass of every token: solutions end at any depth."""
    from rmtools.lm.policy import Policy

    model = copy.deepcopy(policy.model)
    forward = model.forward

    def ending(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits[..., policy.steps.eos_id] = out.logits.logsumexp(-1) - 1.6
        return out

    model.forward = ending
    return Policy(model, policy.steps, name="uneven")

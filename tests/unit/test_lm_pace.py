"""What an interruption may lose: blocks and shards of a large model on a processor are small, those of a small one are not."""

from types import SimpleNamespace

import pytest
import torch

from rmtools.data.collect import Branching
from rmtools.jobs.rollouts import usual_shard
from rmtools.lm.pace import MOST_SECONDS, SLOW_CORE, prompts_in_time
from rmtools.lm.steps import StepSettings
from rmtools.sampling.sample_prompts import Source, settings_for, usual_block

CPU = torch.device("cpu")


class Weights:
    """Stands for a policy or a value model of some size."""

    device = CPU

    def __init__(self, count, steps=None):
        self.count, self.steps = count, steps
        self.model = self

    def parameters(self):
        return [torch.empty(self.count, device="meta")]


def test_counts_by_hand():
    tokens, weights = 1000, 10**8
    most = int(MOST_SECONDS * SLOW_CORE / (tokens * weights))
    assert most == 18
    assert prompts_in_time([Weights(weights)], tokens, 1, CPU) == most
    assert prompts_in_time([Weights(weights), Weights(weights)], tokens, 1, CPU) == most // 2
    assert prompts_in_time([Weights(weights)], tokens, 5, CPU) == 15
    assert prompts_in_time([Weights(weights)], tokens, 30, CPU) == most
    assert prompts_in_time([Weights(weights)], 10**9, 1, CPU) == 1
    for unlimited in (([Weights(weights)], torch.device("cuda")), ([SimpleNamespace()], CPU)):
        assert prompts_in_time(unlimited[0], 10**9, 1, unlimited[1]) > 10**9


@pytest.mark.parametrize(
    ("branching", "tokens"),
    [
        (Branching(8), 8 * 256),
        (Branching(8, children=3), 8 * 256 * 3),
        (Branching(4, completions=3), 4 * 256 * (1 + 2 * 5)),
        (Branching(4, children=3, completions=2, depths=2), int(4 * 256 * (1 + 2 * 0.2 + 1))),
    ],
)
def test_tokens_of_branches(branching, tokens):
    assert branching.tokens(StepSettings("\n", 10, 64)) == tokens
    assert branching.tokens(StepSettings("\n", 10, 8)) == pytest.approx(tokens * 80 / 256, abs=1)


@pytest.mark.parametrize(("weights", "shard"), [(10**5, 64), (135 * 10**6, 6), (10**10, 1)])
def test_shards_by_the_size_of_the_model(weights, shard):
    policy = Weights(weights, SimpleNamespace(settings=StepSettings("\n", 10, 64)))
    assert usual_shard(policy, Branching(8), batch=6) == shard


def test_a_batch_larger_than_a_shard_is_one():
    policy = Weights(10**5, SimpleNamespace(settings=StepSettings("\n", 10, 64)))
    assert usual_shard(policy, Branching(1), batch=100) == 100


def test_blocks_by_the_size_of_the_models(policy, value, prompts, monkeypatch):
    source, settings = Source(policy, value), settings_for("smc", n_particles=8)
    assert usual_block(settings, source, prompts) == usual_block(settings) == 64
    assert usual_block(settings, source, []) == 64
    tokens = policy.steps.settings.max_steps * policy.steps.settings.max_step_tokens
    weights = sum(p.numel() for m in (policy.model, value.model) for p in m.parameters())
    monkeypatch.setattr("rmtools.lm.pace.SLOW_CORE", 5 * weights * min(tokens, 256) * 8 / MOST_SECONDS)
    assert usual_block(settings, source, prompts) == 5
    assert usual_block(settings_for("smc", n_particles=8, mh_steps=4), source, prompts) == 1

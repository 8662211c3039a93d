"""A job: blocks of prompts, differences of settings, generators; and which process this is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rmtools.data.collect import Branching
from rmtools.data.shards import PLAN_FILE
from rmtools.errors import UserError
from rmtools.files import write_json
from rmtools.jobs.job import Job, differences, prompts_hash, read_plan
from rmtools.jobs.processes import Process, local_rank, this_process
from rmtools.jobs.rollouts import RolloutSettings, ShardCounts
from rmtools.lm.steps import StepSettings
from rmtools.seeds import block_generator, generator

SETTINGS = RolloutSettings(
    verb="rollout",
    policy="policy",
    policy_fingerprint="abc",
    device="cpu",
    task="crossing",
    task_sha256="",
    horizon=3,
    steps=StepSettings("\n", 3, 6),
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    branching=Branching(4, 2, 3, 2),
    seed=5,
    prompts=10,
    prompts_sha256="0123",
    removed_prompts=1,
    batch_size=2,
    shard_size=4,
    format="parquet",
)


def plan_of(**changes):
    settings = replace(SETTINGS, **changes)
    return Job(Path("unused"), settings, settings.shards, ShardCounts).plan


@pytest.mark.parametrize("shard_size", [1, 3, 5, 10, 11])
def test_blocks_cover_the_prompts_once(shard_size):
    shards = replace(SETTINGS, shard_size=shard_size).shards
    prompts = list(range(10))
    assert [p for i in range(shards.count) for p in prompts[shards.of(i)]] == prompts
    assert all(prompts[shards.of(i)] for i in range(shards.count))
    assert shards.name(0) == f"train-00000-of-{shards.count:05d}.parquet"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 0.7}, "temperature (1.0 there, 0.7 now)"),
        ({"branching": Branching(4, 2, 3)}, 'depths (2 there, "all" now)'),
        ({"branching": Branching(4, 9, 3, 2)}, "children (2 there, 9 now)"),
        ({"steps": StepSettings("\n", 3, 7)}, "max_step_tokens (6 there, 7 now)"),
        ({"prompts_sha256": "4567"}, 'prompts_sha256 ("0123" there, "4567" now)'),
        ({"policy_fingerprint": "def"}, 'policy_fingerprint ("abc" there, "def" now)'),
        ({"format": "jsonl"}, 'format ("parquet" there, "jsonl" now)'),
        ({"seed": 6}, "seed (5 there, 6 now)"),
    ],
)
def test_differences_are_named(tmp_path, change, words):
    write_json(tmp_path / PLAN_FILE, plan_of())
    old = read_plan(tmp_path)
    assert old is not None
    assert differences(old, plan_of()) == []
    assert differences(old, plan_of(**change)) == [words]


def test_the_name_of_a_policy_counts_only_where_its_weights_are_not_known():
    def named(*policies):
        one, two = (plan_of(policy=p, policy_fingerprint=f) for p, f in policies)
        return differences(one, two)

    assert named(("a", "123"), ("./a", "123")) == []
    assert named(("a", ""), ("b", "")) == ['policy ("a" there, "b" now)']


def test_a_plan_that_is_none(tmp_path):
    assert read_plan(tmp_path) is None
    for text, words in (("{", "not valid JSON"), ("[]", "no plan of rollouts"), ('{"a": 1}', "no plan")):
        (tmp_path / PLAN_FILE).write_text(text)
        with pytest.raises(UserError, match=words):
            read_plan(tmp_path)


def test_every_shard_has_a_generator_of_its_own():
    """Also not that of the prompts, nor that of another verb or seed."""
    made = [generator("rollout", 0), generator("audit", 0)]
    made += [block_generator(v, s, i) for v in ("rollout", "audit") for s in (0, 1) for i in range(50)]
    assert len({g.integers(2**63) for g in made}) == len(made)
    one, two = (block_generator("rollout", 3, 7).integers(2**63, size=4) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_the_prompts_hash_prompts_knows_their_order_borders_and_answers():
    kinds = (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""])
    hashes = {prompts_hash(p, [r] * len(p)) for p in kinds for r in (None, "1", "2")}
    assert len(hashes) == 12


def test_which_process_this_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert this_process() == Process(0, 1)
    assert this_process().main
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert this_process() == Process(3, 4)
    assert local_rank() == 1
    assert not this_process().main

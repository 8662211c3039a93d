"""Rollouts and audits with a policy behind a server: the command, killed runs, the law of the rows, and refusals."""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checks import check_error

import rmtools as rm
from rmtools.data.collect import Branching
from rmtools.data.rollouts import read_rollouts
from rmtools.jobs.rollouts import Sharding
from rmtools.lm.steps import StepTokenizer
from rmtools.serving import retry
from rmtools.serving.capabilities import Capabilities, RequestTemplate
from rmtools.serving.endpoint import Endpoint, ServerSettings
from rmtools.serving.server import ServerPolicy

BRANCHES = ("--trajectories", 3, "--children", 3, "--completions", 2, "--horizon", 3, "--max-step-tokens", 6)


@pytest.fixture
def rollout(run, policy_folder, prompts_file, tmp_path):
    """``rollout("--server", url)``: the result, and the folder."""
    out = tmp_path / "rollouts"

    def call(*more, named=("--tokenizer", policy_folder)):
        return run("rollout", *named, "--prompts", prompts_file, *BRANCHES, "--out", out, *more), out

    return call


def test_rollouts_from_a_server(rollout, server, run):
    """Complete rows, what was found out in the metadata, and a second start that finds them finished."""
    url = server.url("llama")
    result, out = rollout("--server", url)
    assert result.code == 0, result.err
    assert "up to 8 in one request" in result.out
    assert "told by llama.cpp's own /completion" in result.out
    assert "requests sent again" in result.out
    rows, metadata = read_rollouts(out)
    assert len(rows) == 9
    for row in rows:
        assert 1 <= len(row.steps) == len(row.children) == len(row.completions) <= 3
        assert all(len(c) == 2 for c in row.children)
        assert all(len(c) == 1 for c in row.completions)
    assert metadata.policy == f"tiny at {url}"
    assert (metadata.server["urls"], metadata.server["stops"], metadata.server["seeds"]) == (
        [url],
        "native",
        False,
    )
    before = sorted(p.read_bytes() for p in out.rglob("*.parquet"))
    again, _ = rollout("--server", server.url("trimmed"))
    assert again.code == 0, again.err
    assert "finished already" in again.out, "the address of a server may change"
    assert sorted(p.read_bytes() for p in out.rglob("*.parquet")) == before


def test_an_audit_with_the_policy_behind_a_server(run, value_folder, server, tmp_path):
    out = tmp_path / "audit"
    few = ("--prompts", 2, "--trajectories", 4, "--children", 4, "--completions", 2)
    result = run("audit", "--model", value_folder, "--server", server.url("vllm"), *few, "--out", out)
    assert result.code == 0, result.err
    report = json.loads((out / "audit.json").read_text())
    assert report["provenance"]["policy"] == f"tiny at {server.url('vllm')}"
    assert len(read_rollouts(out / "rollouts")[0]) == 8


def test_options_that_contradict_each_other(rollout, run, value_folder, server, policy_folder, tmp_path):
    check_error(rollout(named=())[0], "no policy is named", "--policy", "--server")
    check_error(rollout("--server", "http://x", "--policy", policy_folder)[0], "both name a policy")
    check_error(rollout("--policy", policy_folder)[0], "--tokenizer needs --server")
    result, out = rollout("--server", server.url("vllm"), named=())
    check_error(result, "'tiny' is no folder here", "--tokenizer")
    check_error(rollout("--server", server.url("nameless"))[0], "no list of models", "--server-model")
    check_error(rollout("--server", server.url("vllm"), "--top-k", 5)[0], "top_k 5", "--server")
    check_error(
        rollout("--server", server.url("seedless-3"), "--server-seed")[0],
        "engine has stopped",
        "leave --server-seed out",
    )
    two = ("--server", server.url("vllm"), "--server", "http://127.0.0.1:9/v1")
    check_error(rollout(*two)[0], "no server answers at http://127.0.0.1:9/v1")
    assert not out.exists()
    implicit = (
        "--model",
        f"implicit:{policy_folder}",
        "--server",
        server.url("vllm"),
        "--out",
        tmp_path / "a",
    )
    check_error(run("audit", *implicit, "--task", "crossing"), "which a server does not give", "--policy")


def policy_at(url, tokenizer, settings):
    """Return the policy behind a server of which everything is known: a child process must open its own connections."""
    can = Capabilities({"top_k": -1}, "applied", "text", 16, counts="right")
    source = Endpoint(url, np.random.default_rng(0), ServerSettings(concurrency=4))
    return ServerPolicy(
        source,
        RequestTemplate("tiny", 1.0, ("\n",), special=False, can=can),
        StepTokenizer(tokenizer, settings),
        64,
    )


def collect(url, tokenizer, settings, task, prompts, out):
    from rmtools.cli.rollout import make_rollouts

    with Path(os.devnull).open("w") as null:
        sys.stdout = sys.stderr = null
        policy = policy_at(url, tokenizer, settings)
        make_rollouts(policy, task, str(prompts), Branching(2, 2, 2, 2), out, 4, Sharding(shard_size=1))


def test_killed_with_its_server_until_done(server, tokenizer, settings, task, tmp_path, prompts, monkeypatch):
    """The server dies in every seventh answer, the run at random moments: the rows of a run without interruption."""
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.05)
    file, fork = tmp_path / "prompts.jsonl", multiprocessing.get_context("fork")
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts[:6]))
    begun = time.monotonic()

    def started(kind, out):
        process = fork.Process(target=collect, args=(server.url(kind), tokenizer, settings, task, file, out))
        process.start()
        return process

    process = started("vllm", tmp_path / "whole")
    process.join()
    assert process.exitcode == 0
    seconds, rng, kills = time.monotonic() - begun, np.random.default_rng(3), 0
    while not (tmp_path / "killed" / "metadata.json").exists():
        process = started("mortal", tmp_path / "killed")
        process.join(rng.uniform(0, 1.5 * seconds) + 0.1 * kills * seconds)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += process.exitcode != 0
    assert kills > 0
    rows, whole = (read_rollouts(tmp_path / name)[0] for name in ("killed", "whole"))
    assert rows == whole
    assert len(rows) == 12


def test_rollouts_from_python(server, policy_folder, task, prompts):
    policy = rm.connect(server.url("vllm"), policy_folder, rm.StepSettings("\n", 3, 6))
    rollouts = rm.collect_rollouts(policy, list(prompts[:2]), task=task, trajectories=4)
    assert len(rollouts) == 8
    assert rollouts.metadata.server["model"] == "tiny"
    assert policy.requests == 2, "all trajectories of a prompt are one request"
    policy.close()

"""Samples that are killed, shared by processes, begun with other arguments: the same file in the end, or a refusal."""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checks import check_error, without_seconds

from rmtools.errors import UserError
from rmtools.jobs.job import prompts_hash
from rmtools.jobs.lock import held
from rmtools.jobs.processes import Process
from rmtools.jobs.samples import SampleFile, SamplePlan
from rmtools.sampling.sample_prompts import SamplerSettings, sample_prompts, settings_for, usual_block

N_PROMPTS, BLOCK = 20, 2
BLOCKS = N_PROMPTS // BLOCK
ALONE = Process()
SETTINGS = SamplerSettings(4, 2)


@pytest.fixture(scope="module")
def many(task):
    return task.prompts(N_PROMPTS, np.random.default_rng(1))[0]


@pytest.fixture(scope="module")
def many_file(many, tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in many))
    return path


def plan_of(prompts, settings=SETTINGS, seed=4, block=BLOCK, **more):
    fixed = {
        "model": "prm",
        "model_fingerprint": "m",
        "policy": "policy",
        "policy_fingerprint": "p",
        "device": "cpu",
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "floor": 0.05,
        "task": "crossing",
        "task_sha256": "",
        "horizon": 3,
        "accuracy": None,
    }
    from rmtools.lm.steps import StepSettings

    return SamplePlan(
        **{**fixed, **more},
        steps=StepSettings("\n", 3, 6),
        sampler=settings,
        seed=seed,
        prompts=len(prompts),
        prompts_sha256=prompts_hash(prompts, [None] * len(prompts)),
        block_size=block,
    )


class NoBar:
    def __init__(self, label, total):
        pass

    def __enter__(self):
        return lambda n: None

    def __exit__(self, *error):
        pass


def make(policy, value, task, prompts, out, process=ALONE, overwrite=False, settings=SETTINGS, seed=4):
    """What ``rmtools sample`` does, with models that are loaded already."""

    def draw(block, rng):
        drawn = sample_prompts(policy, value, block, settings, rng, task.reward, answer=task.answer)
        return ((record, []) for record in drawn)

    return SampleFile(out, plan_of(prompts, settings, seed), process).make(prompts, draw, NoBar, overwrite)


@pytest.fixture(scope="module")
def whole(policy, value, task, many, tmp_path_factory):
    """A run without interruption: its bytes, and its seconds."""
    out = tmp_path_factory.mktemp("whole") / "s.jsonl"
    start = time.perf_counter()
    assert make(policy, value, task, many, out)
    return without_seconds(out), time.perf_counter() - start


def folder_of(out):
    return out.parent / f".{out.name}.parts"


def blocks(out):
    return len(list(folder_of(out).glob("data/block-*")))


def check_same(out, whole, many):
    assert without_seconds(out) == whole[0]
    assert [json.loads(x)["prompt"] for x in out.read_text().splitlines()] == many
    assert [p.name for p in out.parent.iterdir() if p.name.startswith(f".{out.name}")] == []


def start(target, *args):
    """Fork: the child has torch and the models already."""
    process = multiprocessing.get_context("fork").Process(target=quietly, args=(target, *args))
    process.start()
    return process


def quietly(target, *args):
    with Path(os.devnull).open("w") as null:
        sys.stdout = sys.stderr = null
        target(*args)


def test_the_file_does_not_depend_on_who_draws(whole, policy, value, task, many, tmp_path):
    """Every block from its own generator: three processes, in whatever order, one alone."""
    out = tmp_path / "s.jsonl"
    args = (policy, value, task, many, out)
    three = [start(make, *args, Process(i, 3)) for i in (2, 0, 1)]
    for process in three:
        process.join()
        assert process.exitcode == 0
    check_same(out, whole, many)
    assert len(set(whole[0].splitlines())) == N_PROMPTS


def test_killed_while_islands_are_added(policy, value, task, many, tmp_path):
    """Every prompt stops at its own number of islands; the file of a run that was killed is that of one that was not."""
    settings = settings_for("smc", n_particles=4, until="logz=.1", token_budget=1500)
    prompts = many[:6]
    assert make(policy, value, task, prompts, tmp_path / "whole.jsonl", settings=settings)
    whole = (without_seconds(tmp_path / "whole.jsonl"),)
    assert len({json.loads(line)["until"]["islands"] for line in whole[0].splitlines()}) > 1
    out = tmp_path / "s.jsonl"
    for done in (1, 2):  # of three blocks
        process = start(make, policy, value, task, prompts, out, ALONE, False, settings)
        while blocks(out) < done and process.is_alive():
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert done <= blocks(out) < 3
        assert not out.exists()
    kept = {path: path.stat().st_mtime_ns for path in folder_of(out).glob("data/block-*")}
    seen = []

    def draw(block, rng):
        seen.append(block)
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        drawn = sample_prompts(policy, value, block, settings, rng, task.reward, answer=task.answer)
        return ((record, []) for record in drawn)

    assert SampleFile(out, plan_of(prompts, settings), ALONE).make(prompts, draw, NoBar)
    assert seen == [prompts[4:]]
    check_same(out, whole, prompts)


def test_killed_at_random_moments(whole, policy, value, task, many, tmp_path):
    """Twelve kills or more, alone and in pairs, most of them with a part of the blocks done."""
    rng = np.random.default_rng(11)
    kills = parts = attempts = 0
    while kills < 12:
        out = tmp_path / f"s{attempts}.jsonl"
        args = (policy, value, task, many, out)
        while not out.exists():
            size = 1 + attempts % 2
            running = [start(make, *args, Process(i, size)) for i in range(size)]
            running[0].join(rng.uniform(0, 4 * whole[1] / BLOCKS))
            for process in running:
                process.kill()
                process.join()
                assert process.exitcode in (0, -signal.SIGKILL)
            kills += running[0].exitcode != 0
            parts += 0 < blocks(out) < BLOCKS
        # A kill after the file was in place may leave a folder to sweep.
        finished = start(make, *args)
        finished.join()
        assert finished.exitcode == 0
        check_same(out, whole, many)
        attempts += 1
    assert parts >= 6
    print(f"{kills} kills, {parts} in the middle, {attempts} runs")


def dying(call, after, *args):
    """Sample, and die by SIGKILL before or after the ``call``-th file is moved into its place."""
    replace, count = Path.replace, 0

    def counted(self, target):
        nonlocal count
        count += 1
        if count == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(self, target)
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = counted
    make(*args)


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_at_every_kind_of_rename(whole, policy, value, task, many, tmp_path, after):
    """The plan's, the first block's tally and file, the last block's, the file itself."""
    last = 1 + 2 * BLOCKS + 1
    for call in (1, 2, 3, last - 1, last):
        out = tmp_path / f"{call}.jsonl"
        args = (policy, value, task, many, out)
        process = start(dying, call, after, *args)
        process.join()
        assert process.exitcode == -signal.SIGKILL, call
        assert out.exists() == (call == last and after)
        make(*args)
        check_same(out, whole, many)


def removing_is_deadly(call, *args):
    """Sample, and die before the ``call``-th thing of the finished folder is removed."""
    from rmtools.jobs import job

    remove, count = job.remove, 0

    def counted(path):
        nonlocal count
        count += args[-1].exists()
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)
        remove(path)

    job.remove = counted
    make(*args)


def test_killed_while_putting_away(whole, policy, value, task, many, tmp_path):
    """The file is whole; the same command sweeps, and one with other arguments replaces it where that is asked for."""
    for call in (1, 2, 3):
        for seed in (4, 5):
            out = tmp_path / f"{call}-{seed}.jsonl"
            process = start(removing_is_deadly, call, policy, value, task, many, out)
            process.join()
            assert process.exitcode == -signal.SIGKILL
            assert folder_of(out).exists()
            assert without_seconds(out) == whole[0]
            if seed == 5:
                with pytest.raises(UserError, match="is there already"):
                    make(policy, value, task, many, out, seed=seed)
            assert make(policy, value, task, many, out, seed=seed, overwrite=seed == 5) == (seed == 5)
            assert not folder_of(out).exists()
            assert (without_seconds(out) == whole[0]) == (seed == 4)


def leave_blocks(policy, value, task, many, out):
    """Kill a run once it has a block."""
    process = start(make, policy, value, task, many, out)
    while not blocks(out) and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert 0 < blocks(out) < BLOCKS


def test_leftovers_of_other_arguments(whole, policy, value, task, many, tmp_path):
    """Refused by naming what differs, replaced where that is asked for; nothing is lost by the refusal."""
    out = tmp_path / "s.jsonl"
    leave_blocks(policy, value, task, many, out)
    before = blocks(out)
    with pytest.raises(UserError, match=r"seed \(4 there, 5 now\).*`overwrite`"):
        make(policy, value, task, many, out, seed=5)
    with pytest.raises(UserError, match=r"n_particles \(4 there, 5 now\)"):
        make(policy, value, task, many, out, settings=SamplerSettings(5, 2))
    with pytest.raises(UserError, match=r"prompts \(20 there, 3 now\)"):
        make(policy, value, task, many[:3], out)
    assert blocks(out) == before
    make(policy, value, task, many, out)
    check_same(out, whole, many)
    leave_blocks(policy, value, task, many, tmp_path / "t.jsonl")
    make(policy, value, task, many, tmp_path / "t.jsonl", seed=5, overwrite=True)
    assert without_seconds(tmp_path / "t.jsonl") != whole[0]


def test_blocks_without_a_plan_are_nobodys(policy, value, task, many, tmp_path):
    """Another seed's run does not take them for its own."""
    out, fresh = tmp_path / "s.jsonl", tmp_path / "t.jsonl"
    leave_blocks(policy, value, task, many, out)
    (folder_of(out) / "plan.json").unlink()
    make(policy, value, task, many, out, seed=5)
    make(policy, value, task, many, fresh, seed=5)
    assert without_seconds(out) == without_seconds(fresh)


def test_a_kill_behind_the_end_leaves_nothing_for_good(whole, policy, value, task, many, tmp_path):
    """The file is in place and the plan gone; the lock and an unfinished file were left."""
    out = tmp_path / "s.jsonl"
    make(policy, value, task, many, out)
    scratch = folder_of(out) / ".partial"
    (scratch / "0").mkdir(parents=True)
    (scratch / "0.lock").touch()
    (scratch / "0" / "block-00000.jsonl").touch()
    make(policy, value, task, many, out)
    check_same(out, whole, many)


def test_broken_blocks_are_drawn_again(whole, policy, value, task, many, tmp_path):
    out = tmp_path / "s.jsonl"
    leave_blocks(policy, value, task, many, out)
    for file in folder_of(out).glob("data/block-*"):
        file.write_bytes(file.read_bytes()[:-9])
    make(policy, value, task, many, out)
    check_same(out, whole, many)


def test_a_second_run_is_refused(policy, value, task, many, tmp_path):
    out = tmp_path / "s.jsonl"
    with (
        held(folder_of(out), ALONE),
        pytest.raises(UserError, match=r"another run.*s\.jsonl"),
    ):
        make(policy, value, task, many, out)
    assert make(policy, value, task, many, out)


def test_processes_without_work_and_late_ones_just_end(policy, value, task, many, tmp_path, monkeypatch):
    """Without a block of its own; after the file is finished; and one that waits while it is being finished."""
    out = tmp_path / "s.jsonl"
    assert make(policy, value, task, many, out, Process(BLOCKS, BLOCKS + 1))
    assert not folder_of(out).exists()
    waiting = start(make, policy, value, task, many, out, Process(1, 2))
    make(policy, value, task, many, out)
    waiting.join(300)
    assert waiting.exitcode == 0
    assert make(policy, value, task, many, out, Process(1, 2)) is False
    assert not folder_of(out).exists()
    monkeypatch.setattr("rmtools.jobs.job.PATIENCE", 0.0)
    with pytest.raises(UserError, match="main process"):
        make(policy, value, task, many, tmp_path / "t.jsonl", Process(1, 2))


def test_a_block_that_comes_after_the_file_is_swept(whole, policy, value, task, many, tmp_path):
    """Of a process that found its blocks gone because the main one had just joined them."""
    out = tmp_path / "s.jsonl"
    make(policy, value, task, many, out)
    file = SampleFile(out, plan_of(many), Process(1, 2))
    (folder_of(out) / "data").mkdir(parents=True)
    (folder_of(out) / "data" / "block-00001.jsonl").write_text("late")
    file._tidy(claimed=True)
    check_same(out, whole, many)


def test_an_error_on_the_way_keeps_finished_blocks_only(whole, policy, value, task, many, tmp_path):
    """And leaves no folder where there is none of them, so that other arguments are no contradiction."""
    out = tmp_path / "s.jsonl"

    class Failing:
        answer = task.answer

        def __init__(self, after):
            self.left = after

        def reward(self, prompt, steps):
            self.left -= 1
            if self.left < 0:
                raise UserError("the judge has gone", "wait")
            return task.reward(prompt, steps)

    with pytest.raises(UserError, match="judge has gone"):
        make(policy, value, Failing(3), many, out)
    assert not folder_of(out).exists()
    with pytest.raises(UserError, match="judge has gone"):
        make(policy, value, Failing(4 * BLOCK * 3 + 1), many, out)
    assert blocks(out) == 3
    make(policy, value, task, many, out)
    check_same(out, whole, many)


def real_command(words, rank, size, told):
    """Run ``rmtools`` as a launcher's process of this rank does."""
    from rmtools.cli import main

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    sys.argv = ["rmtools", *words]
    with told.open("w") as sys.stdout, Path(os.devnull).open("w") as sys.stderr:
        main.run()


def test_the_real_command_by_two_processes_and_killed(run, value_folder, many_file, tmp_path):
    """Two as a launcher starts them: one report, the file of one process; so is a run that was killed on the way."""

    def command(out):
        options = ("--model", value_folder, "--prompts", many_file, "-n", 4, "--block-size", 2, "--out", out)
        return [str(x) for x in ("sample", *options)]

    assert run(*command(tmp_path / "one.jsonl")).code == 0
    one = without_seconds(tmp_path / "one.jsonl")
    fork = multiprocessing.get_context("fork").Process
    told = [tmp_path / f"told{rank}" for rank in range(2)]
    two = [fork(target=real_command, args=(command(tmp_path / "two.jsonl"), r, 2, told[r])) for r in range(2)]
    for process in two:
        process.start()
    for process in two:
        process.join()
        assert process.exitcode == 0
    assert [t.read_text().count("20 prompts in") for t in told] == [1, 0]
    assert without_seconds(tmp_path / "two.jsonl") == one

    out = tmp_path / "killed.jsonl"
    running = fork(target=real_command, args=(command(out), 0, 1, told[0]))
    running.start()
    while not blocks(out) and running.is_alive():
        time.sleep(0.001)
    running.kill()
    running.join()
    assert running.exitcode == -signal.SIGKILL
    check_error(run(*command(out), "--seed", 1), "other arguments", "seed (0 there, 1 now)", "--overwrite")
    result = run(*command(out))
    assert result.code == 0, result.err
    assert without_seconds(out) == one
    assert not folder_of(out).exists()


def test_the_usual_block_is_a_batch():
    assert usual_block(SamplerSettings(16)) == 64
    assert usual_block(settings_for("guided", n_particles=32, pool_size=8)) == 16
    assert usual_block(SamplerSettings(100_000)) == 1
    # With a budget a prompt takes many runs; with one of time prompts run one by one.
    assert usual_block(SamplerSettings(16, max_tokens=1000)) == 16
    assert usual_block(SamplerSettings(16, max_seconds=1)) == 1

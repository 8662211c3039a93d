"""Rollouts that are killed, shared by processes, begun with other arguments: the same rows in the end, or a refusal."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checks import Result, check_error

from rmtools.cli import main
from rmtools.data.rollouts import read_rollouts
from rmtools.data.shards import find_shards
from rmtools.errors import UserError
from rmtools.jobs.job import Job
from rmtools.jobs.lock import held
from rmtools.jobs.processes import Process

ROOT = Path(__file__).parents[2]
N_PROMPTS = 20
BRANCHES = ("--trajectories", 3, "--children", 2, "--completions", 2, "--depths", 2, "--shard-size", 2)
SHARDS = N_PROMPTS // 2
ALONE = Process()


@pytest.fixture(scope="module")
def many_prompts(task, tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    prompts, _ = task.prompts(N_PROMPTS, np.random.default_rng(1))
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    return path


def arguments(policy_folder, prompts, out, *more):
    words = (
        "rollout",
        "--policy",
        policy_folder,
        "--prompts",
        prompts,
        "--horizon",
        3,
        "--max-step-tokens",
        6,
    )
    return [str(w) for w in (*words, *BRANCHES, "--seed", 4, "--out", out, *more)]


def collect(policy, task, prompts, out, form="parquet", process=ALONE):
    """Do in this process what ``rmtools rollout`` does, with a policy that is loaded already."""
    from rmtools.cli.rollout import make_rollouts
    from rmtools.data.collect import Branching
    from rmtools.jobs.rollouts import Sharding

    sharding = Sharding(shard_size=2, form=form)
    make_rollouts(policy, task, str(prompts), Branching(3, 2, 2, 2), out, 4, sharding, process)


@pytest.fixture(scope="module")
def whole(policy, task, many_prompts, tmp_path_factory):
    """A run without interruption: its folder, and its seconds."""
    out = tmp_path_factory.mktemp("whole") / "rollouts"
    start = time.perf_counter()
    collect(policy, task, many_prompts, out)
    return out, time.perf_counter() - start


def tree(folder):
    """Return every file below ``folder`` with its content, and every folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
        if p.name not in ("metadata.json", "plan.json")
    }


def check_same(out, whole):
    """Identical rows, each prompt once, no file too many; plan and metadata alike but for the policy's name."""
    rows, metadata = read_rollouts(out)
    expected, told = read_rollouts(whole)
    assert rows == expected
    assert metadata == told
    ids = [r.prompt_id for r in rows]
    assert len(set(ids)) * 3 == len(ids) == N_PROMPTS * 3
    assert tree(out) == tree(whole)
    assert sorted(p.name for p in out.iterdir()) == ["data", "metadata.json", "plan.json", "tally"]


def start(target, *args):
    """Fork: the child has torch and the policy already."""
    process = multiprocessing.get_context("fork").Process(target=quietly, args=(target, *args))
    process.start()
    return process


def quietly(target, *args):
    with Path(os.devnull).open("w") as null:
        sys.stdout = sys.stderr = null
        target(*args)


def partial(out):
    """Return whether a shard is there and another is not."""
    return 0 < len(list((out / "data").glob("train-*"))) < SHARDS


def killed_until_done(out, rng, mean_delay, *args):
    """Start again and again, SIGKILL after random delays; return the kills, and how many left a part behind."""
    kills = parts = 0
    while not (out / "metadata.json").exists():
        process = start(collect, *args)
        process.join(rng.uniform(0, 2 * mean_delay))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += process.exitcode != 0
        parts += process.exitcode != 0 and partial(out)
    # A kill after the metadata were written may leave an empty folder to sweep.
    process = start(collect, *args)
    process.join()
    assert process.exitcode == 0
    return kills, parts


def test_killed_at_random_moments(whole, policy, task, many_prompts, tmp_path):
    """Ten kills or more, most of them in the middle of the work; samples, made by the same job, are killed as well."""
    folder, seconds = whole
    rng = np.random.default_rng(11)
    kills = parts = attempts = 0
    while kills < 10:
        out = tmp_path / f"attempt{attempts}"
        found = killed_until_done(out, rng, seconds / SHARDS * 1.5, policy, task, many_prompts, out)
        kills, parts, attempts = kills + found[0], parts + found[1], attempts + 1
        check_same(out, folder)
    assert parts >= 5
    print(f"{kills} kills, {parts} in the middle, {attempts} runs")


def dying(call, after, *args):
    """Collect, and die by SIGKILL before or after the ``call``-th file is moved into its place."""
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
    collect(*args)


@pytest.mark.parametrize("after", [pytest.param(False, marks=pytest.mark.slow), True])
def test_killed_at_every_rename(whole, policy, task, many_prompts, tmp_path, after):
    """The plan's, those of the first shard's two files, the last shard's, the metadata's."""
    last = 1 + 2 * SHARDS + 1
    for call in (1, 2, 3, last - 1, last):
        out = tmp_path / f"{call}"
        process = start(dying, call, after, policy, task, many_prompts, out)
        process.join()
        assert process.exitcode == -signal.SIGKILL, call
        collect(policy, task, many_prompts, out)
        check_same(out, whole[0])


def test_the_real_command_killed(run, whole, policy_folder, many_prompts, tmp_path):
    """Once a shard is there; then the same command finishes."""
    words = arguments(policy_folder, many_prompts, tmp_path / "r")
    command = [sys.executable, "-m", "rmtools", *words]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "r").glob("data/train-00000*")) and running.poll() is None:
        time.sleep(0.002)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert partial(tmp_path / "r")
    result = run(*words)
    assert result.code == 0, result.err
    assert f"60 trajectories of {N_PROMPTS} prompts" in result.out
    check_same(tmp_path / "r", whole[0])


def rank_of_two(rank, words, said):
    """Run the command as a launcher's process of this rank does: accelerate's and torchrun's set these variables."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    sys.argv = ["rmtools", *words]
    with said.open("w") as sys.stdout, Path(os.devnull).open("w") as sys.stderr:
        main.run()


def test_several_processes(whole, policy_folder, many_prompts, tmp_path):
    """Two that a launcher starts: each line once, the same rows as one process."""
    words = arguments(policy_folder, many_prompts, tmp_path / "r")
    fork = multiprocessing.get_context("fork").Process
    processes = [fork(target=rank_of_two, args=(rank, words, tmp_path / f"{rank}")) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    said = "".join((tmp_path / f"{rank}").read_text() for rank in range(2))
    assert [line.split()[:2] for line in said.strip().splitlines()] == [
        ["policy", "in"],
        ["60", "trajectories"],
    ]
    check_same(tmp_path / "r", whole[0])


def test_processes_that_come_and_go(whole, policy, task, many_prompts, tmp_path):
    """Three processes, all killed; then two, of which the one not in charge is late; then one alone."""
    out = tmp_path / "r"
    args = (policy, task, many_prompts, out, "parquet")
    three = [start(collect, *args, Process(i, 3)) for i in range(3)]
    while not list((out / "data").glob("train-*")):
        time.sleep(0.002)
    for process in three:
        process.kill()
        process.join()
    assert (out / ".partial").exists()
    assert partial(out)
    two = [start(collect, *args, Process(i, 2)) for i in range(2)]
    for process in two:
        process.join()
        assert process.exitcode == 0
    check_same(out, whole[0])
    collect(*args)
    check_same(out, whole[0])


def test_a_main_process_that_is_left_alone(policy, task, many_prompts, tmp_path, monkeypatch, capsys):
    """Its own shards are kept, nothing is called finished, and the next start does the rest."""
    monkeypatch.setattr("rmtools.jobs.job.PATIENCE", 0.0)
    monkeypatch.setattr("rmtools.jobs.job.POLL", 3.0)
    with pytest.raises(
        UserError, match=r"have not written 5 blocks .*train-00001-of-00010.*same command again"
    ):
        collect(policy, task, many_prompts, tmp_path / "r", process=Process(0, 2))
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["data", "plan.json", "tally"]
    with pytest.raises(UserError, match="no metadata"):
        read_rollouts(tmp_path / "r")
    capsys.readouterr()
    collect(policy, task, many_prompts, tmp_path / "r", process=Process(1, 2))
    assert capsys.readouterr().out == ""
    assert len(read_rollouts(tmp_path / "r")[0]) == 60


@pytest.mark.parametrize("rank", [0, 5])
def test_a_second_run_in_the_same_folder_is_refused(policy, task, many_prompts, tmp_path, rank):
    """Also where only a worker of it is left; what the first one is about is not touched."""
    out = tmp_path / "r"
    collect(policy, task, many_prompts, out)
    with held(out, Process(rank, 6)):
        (out / ".partial" / str(rank) / "half").write_text("a shard in the making")
        with pytest.raises(UserError, match="another run"):
            collect(policy, task, many_prompts, out)
        assert (out / ".partial" / str(rank) / "half").exists()
    collect(policy, task, many_prompts, out)
    assert not (out / ".partial").exists()


def test_rollouts_that_others_work_on_are_not_replaced(run, policy_folder, many_prompts, tmp_path):
    command = arguments(policy_folder, many_prompts, tmp_path / "r")
    assert run(*command).code == 0
    before = tree(tmp_path / "r")
    with held(tmp_path / "r", Process(1, 2)):
        check_error(run(*command, "--seed", 5, "--overwrite"), "another run is at work")
    assert tree(tmp_path / "r") == before


def test_a_process_without_a_main_one(policy, task, many_prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("rmtools.jobs.job.PATIENCE", 0.0)
    with pytest.raises(UserError, match="main process"):
        collect(policy, task, many_prompts, tmp_path / "r", process=Process(1, 2))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_finished_shards_are_kept_and_broken_ones_made_again(
    whole, policy, task, many_prompts, tmp_path, monkeypatch, form, capsys
):
    out = tmp_path / "r"
    collect(policy, task, many_prompts, out, form)
    before, metadata = tree(out), (out / "metadata.json").stat().st_mtime_ns
    assert read_rollouts(out)[0] == read_rollouts(whole[0])[0]
    shards, written, put = find_shards(out), [], Job.put
    monkeypatch.setattr(Job, "put", lambda self, i, *a: (written.append(i), put(self, i, *a)))
    capsys.readouterr()
    collect(policy, task, many_prompts, out, form)
    assert written == []
    assert "finished already; 60 trajectories of 20 prompts" in capsys.readouterr().out
    assert (out / "metadata.json").stat().st_mtime_ns == metadata

    shards[1].write_bytes(shards[1].read_bytes()[:-20])
    shards[2].write_bytes(b"")
    shards[4].unlink()
    (out / "tally" / "00005.json").unlink()
    (out / "tally" / "00006.json").write_text("{")
    (out / "tally" / "00007.json").write_text('{"rows": 3}')
    (out / ".partial" / "0" / "old").mkdir(parents=True)
    (out / ".partial" / "7").mkdir()
    collect(policy, task, many_prompts, out, form)
    assert written == [1, 2, 4, 5, 6, 7]
    assert tree(out) == before
    (out / "metadata.json").unlink()
    collect(policy, task, many_prompts, out, form)
    assert len(written) == 6
    assert read_rollouts(out)[0] == read_rollouts(whole[0])[0]


def test_another_batch_may_be_left_out_when_going_on(policy, task, many_prompts, tmp_path):
    """Sizes that are not given again are those of the plan."""
    from rmtools.cli.rollout import make_rollouts
    from rmtools.data.collect import Branching
    from rmtools.jobs.rollouts import Sharding

    def make(sharding, **kwargs):
        make_rollouts(policy, task, str(many_prompts), Branching(2), tmp_path / "r", 4, sharding)

    make(Sharding(batch_size=3, shard_size=7))
    make(Sharding())
    plan = json.loads((tmp_path / "r" / "plan.json").read_text())
    assert (plan["batch_size"], plan["shard_size"]) == (3, 7)
    with pytest.raises(UserError, match=r"batch_size \(3 there, 4 now\)"):
        make(Sharding(batch_size=4))


def test_other_arguments_are_refused_or_replace(run, policy_folder, many_prompts, prompts_file, tmp_path):
    command = arguments(policy_folder, many_prompts, tmp_path / "r")
    assert run(*command).code == 0
    before = tree(tmp_path / "r")
    for change, word in (
        (("--seed", 5), "seed (4 there, 5 now)"),
        (("--children", 3), "children (2 there, 3 now)"),
        (("--depths", "all"), 'depths (2 there, "all" now)'),
        (("--prompts", prompts_file), "prompts (20 there, 3 now)"),
        (("--format", "jsonl"), "format"),
        (("--max-step-tokens", 7), "max_step_tokens"),
    ):
        check_error(run(*command, *change), word, "other arguments", "--out", "--overwrite")
        assert tree(tmp_path / "r") == before
    result = run(*command, "--seed", 5, "--format", "jsonl", "--overwrite")
    assert result.code == 0, result.err
    assert read_rollouts(tmp_path / "r")[1].seed == 5
    assert all(p.suffix == ".jsonl" for p in find_shards(tmp_path / "r"))
    result = run(*command, "--seed", 5, "--format", "jsonl", "--overwrite")
    assert "finished already" in result.out


def test_nothing_of_a_users_is_overwritten(run, policy_folder, many_prompts, tmp_path):
    """A plan of something else, rollouts without a plan, rollouts of an older release."""
    for name, text in (("plan.json", '{"summer": "Wales"}'), ("metadata.json", '{"schema_version": 1}')):
        out = tmp_path / name
        (out / "data").mkdir(parents=True)
        (out / "data" / "photo").write_text("Snowdon")
        (out / name).write_text(text)
        for more in ((), ("--overwrite",)):
            result = run(*arguments(policy_folder, many_prompts, out, *more))
            check_error(result, "choose another folder", out)
            assert (out / "data" / "photo").read_text() == "Snowdon"
            assert (out / name).read_text() == text
            assert len(list(out.iterdir())) == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--depths", 0), ["--depths", "all"]),
        (("--depths", "some"), ["--depths", "all"]),
        (("--format", "csv"), ["--format", "parquet, jsonl"]),
        (("--batch-size", 0), ["--batch-size", "must be at least 1"]),
        (("--shard-size", -3), ["--shard-size", "must be at least 1"]),
    ],
)
def test_wrong_options(run, policy_folder, many_prompts, tmp_path, more, words):
    check_error(run(*arguments(policy_folder, many_prompts, tmp_path / "r", *more)), *words)
    assert not (tmp_path / "r").exists()


def test_errors_of_several_processes(run, monkeypatch, policy_folder, many_prompts, tmp_path):
    """One that is not in charge speaks late and says which it is."""
    monkeypatch.setattr("rmtools.cli.errors.SILENCE", 0.3)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    began = time.perf_counter()
    result = run(*arguments(policy_folder, many_prompts, tmp_path / "r", "--format", "csv"))
    assert time.perf_counter() - began > 0.3
    assert isinstance(result, Result)
    check_error(result, "process 1 of 2: --format has no choice 'csv'")

"""Branching rollouts: counts, laws, seeds; and what scoring them gives."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from assets import real_tokenizer
from scipy import stats

import rmtools as rm
from rmtools.data.collect import Branching, Collector, prompt_id, prompts_per_batch
from rmtools.data.rollouts import Child, Rollout
from rmtools.data.scoring import score_rollouts
from rmtools.data.tasks import Arithmetic, Counting, Crossing
from rmtools.errors import UserError
from rmtools.lm.policy import Policy
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.value import ConstantValue
from rmtools.particles.tilt import Tilt
from rmtools.training.metrics import held_out_metrics


def collect(policy, task, prompts, branching, seed=0, **kwargs):
    return Collector(policy, task, branching, np.random.default_rng(seed)).collect(prompts, **kwargs)


@pytest.fixture(scope="module")
def warm(policy):
    """Hot enough that some trajectories leave the format and some end early."""
    return Policy(policy.model, policy.steps, 1.6)


@pytest.fixture(scope="module")
def rows(warm, prompts, task):
    return collect(warm, task, prompts, Branching(4, 3, 2))


def test_counts(rows, prompts, task):
    assert [r.prompt for r in rows] == [p for p in prompts for _ in range(4)]
    assert all(r.prompt_id == prompt_id(r.prompt) for r in rows)
    for r in rows:
        assert 1 <= len(r.steps) <= task.horizon
        assert len(r.children) == len(r.completions) == len(r.steps)
        assert all(len(at) == 2 for at in r.children)
        assert all(len(at) == 1 for at in r.completions)
        assert r.reward == task.reward(r.prompt, r.steps)


def test_children_know_whether_they_ended(rows, task):
    for r in rows:
        for t, at in enumerate(r.children):
            for child in at:
                assert (child.reward is not None) == child.ended
                assert child.ended == (t + 1 == task.horizon or child.text.endswith("<eos>"))
                if child.ended:
                    assert child.reward == task.reward(r.prompt, [*r.steps[:t], child.text])


def test_the_text_is_what_the_policy_saw(rows, warm):
    """Ragged, early and malformed steps included: prompt and steps concatenated give the same ids."""
    for r in rows:
        assert warm.steps.encode(r.prompt, r.steps).exact
        assert all(r.steps)
        for at in r.children:
            assert all(c.text for c in at)
    assert len({len(warm.steps.step_ids(s)) for r in rows for s in r.steps}) > 1
    assert any(
        s.endswith("<eos>") for r in rows for s in [*r.steps, *(c.text for at in r.children for c in at)]
    )


def test_no_branches_without_being_asked(policy, prompts, task):
    rows = collect(policy, task, prompts[:2], Branching(3))
    assert len(rows) == 6
    assert all(not r.children and not r.completions for r in rows)


def test_branches_at_some_depths(warm, prompts, task):
    """Two depths of three; those after the end of a short trajectory are lost, not moved."""
    rows = collect(warm, task, prompts, Branching(12, 3, 2, 2))
    branched = [[len(at) for at in r.children] for r in rows]
    assert {n for at in branched for n in at} == {0, 2}
    assert branched == [[2 * len(at) for at in r.completions] for r in rows]
    assert all(len(r.children) == len(r.steps) for r in rows)
    whole = [at for at in branched if len(at) == 3]
    assert {tuple(at) for at in whole} == {(0, 2, 2), (2, 0, 2), (2, 2, 0)}
    assert all(sum(at) == 4 for at in whole)
    short = [at for at in branched if len(at) < 3]
    assert short
    assert {sum(at) for at in short} <= {0, 2, 4}


def test_as_many_depths_as_steps_are_all(policy, prompts, task):
    rows = collect(policy, task, prompts[:3], Branching(3, 2, 2))
    assert rows == collect(policy, task, prompts[:3], Branching(3, 2, 2, 3))
    assert rows == collect(policy, task, prompts[:3], Branching(3, 2, 2, 9))


def test_depths_are_chosen_blindly():
    """Every depth of every trajectory equally often, every row with its number."""
    chosen = Branching(1, 2, 1, 3).draw_depths(40_000, 7, np.random.default_rng(3))
    assert (chosen.sum(axis=1) == 3).all()
    assert np.abs(chosen.mean(axis=0) - 3 / 7).max() < 4.5 * np.sqrt(3 / 7 * 4 / 7 / 40_000)


def test_branched_prefixes_are_a_fair_sample(warm, prompts, task):
    """Own step and alternatives are exchangeable at the depths that were chosen, in trajectories of every length.

    At depth 1 of 3, where some trajectories end: the share of own next steps that end there is that of the
    alternatives. Choosing depths among those of the finished trajectory would count ending ones more often.
    """
    rows = collect(warm, task, prompts[:1], Branching(3000, 2, 1, 1), 8)
    at = [(len(r.steps) == 2, r.children[1][0].ended) for r in rows if len(r.steps) > 1 and r.children[1]]
    own, other = np.mean(at, axis=0)
    assert len(at) > 500
    assert 0.005 < other < 0.9
    p = (own + other) / 2
    assert abs(own - other) < 4.5 * np.sqrt(2 * p * (1 - p) / len(at))


def test_batches_and_progress(policy, prompts, task):
    told = []
    rows = collect(policy, task, prompts[:5], Branching(2), prompts_per_batch=2, progress=told.append)
    assert told == [2, 2, 1]
    assert [r.prompt for r in rows] == [p for p in prompts[:5] for _ in range(2)]


def test_same_seed_same_rollouts(policy, prompts, task):
    one, two, other = (collect(policy, task, prompts[:3], Branching(3, 2, 2), s) for s in (0, 0, 1))
    assert one == two
    assert one != other


def test_own_step_and_alternatives_are_exchangeable(policy, prompts, task):
    """At the root the own step, each alternative and the first draw of a completion have one law.

    Over 40 seeds of 1,500 rows the p-values were uniform (Kolmogorov-Smirnov .79), one more seed gave .0008: the level
    is that of |z| < 4.5, with twice the rows.
    """
    rows = collect(policy, task, prompts[:1], Branching(3000, 3, 1), 4)
    columns = [[r.steps[0] for r in rows], *([r.children[0][k].text for r in rows] for k in range(2))]
    kinds = sorted({s for c in columns for s in c})
    table = np.asarray([[c.count(k) for k in kinds] for c in columns], float)
    common = table.sum(0) >= 15
    table = np.concatenate([table[:, common], table[:, ~common].sum(1, keepdims=True)], axis=1)
    assert common.sum() >= 3
    assert stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue > 7e-6


def test_own_step_and_alternative_are_independent_given_the_prefix(policy, prompts, task):
    rows = collect(policy, task, prompts[:1], Branching(3000, 2, 1), 5)
    own, other = [r.steps[0] for r in rows], [r.children[0][0].text for r in rows]
    p = np.asarray([(own.count(k) + other.count(k)) / 6000 for k in set(own) | set(other)])
    agree = np.mean([a == b for a, b in zip(own, other, strict=True)])
    assert abs(agree - (p**2).sum()) < 4.5 * np.sqrt((p**2).sum() / 3000)


def test_completions_have_the_law_of_the_reward(policy, prompts, task):
    """From the root, extra completions succeed as often as trajectories do."""
    rows = collect(policy, task, prompts[3:4], Branching(1500, 1, 2), 6)
    own = np.mean([r.reward for r in rows])
    extra = np.mean([r.completions[0][0] for r in rows])
    assert 0.02 < own < 0.9
    assert abs(own - extra) < 4.5 * np.sqrt(2 * own * (1 - own) / 1500)
    # At the last prefix given success so far, a completion is one step.
    assert all(len(c) == 1 and c[0] in (0.0, 1.0) for r in rows for c in r.completions)


def test_tokens_and_cut_steps_are_counted(policy, prompts, task):
    steps = StepTokenizer(policy.steps.tokenizer, StepSettings("\n", 3, max_step_tokens=2))
    collector = Collector(Policy(policy.model, steps), task, Branching(2), np.random.default_rng(0))
    rows = collector.collect(prompts[:2])
    emitted = sum(len(steps.step_ids(s)) for r in rows for s in r.steps)
    assert collector.tally.tokens == emitted
    assert (
        collector.tally.truncated == sum(not s.endswith(("\n", "<eos>")) for r in rows for s in r.steps) > 0
    )


def test_steps_cut_at_the_end_of_the_context_are_counted(policy, prompts, task):
    """A prompt that leaves room for one or two tokens: no step of theirs is whole unless it ends there."""
    model = copy.deepcopy(policy.model)
    model.config.max_position_embeddings = len(policy.steps.prompt_ids(prompts[0])) + 2
    collector = Collector(Policy(model, policy.steps), task, Branching(8), np.random.default_rng(0))
    rows = collector.collect(prompts[:1])
    cut = [s for r in rows for s in r.steps if not s.endswith(("\n", "<eos>"))]
    assert collector.tally.truncated == len(cut) > 0
    assert all(len(policy.steps.step_ids(s)) <= 2 for s in cut)


@pytest.mark.parametrize(("longest", "warned"), [(1, True), (64, False)])
def test_rollouts_of_cut_steps_warn(policy, prompts, task, caplog, longest, warned):
    steps = StepTokenizer(policy.steps.tokenizer, StepSettings("\n", 3, longest))
    with caplog.at_level("WARNING"):
        rm.collect_rollouts(Policy(policy.model, steps), prompts[:2], task=task, trajectories=2)
    assert any("steps were cut" in m for m in caplog.messages) == warned


def test_a_named_task_has_the_steps_of_a_policy_that_is_given(policy, prompts):
    found = rm.collect_rollouts(
        policy, [{"prompt": prompts[0], "answer": "1"}], task="answers", trajectories=2
    )
    assert found.metadata.horizon == policy.steps.settings.max_steps
    assert len(found) == 2


@pytest.mark.parametrize("name", ["trajectories", "children", "completions"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(UserError, match=name):
        Branching(**{name: 0})
    with pytest.raises(UserError, match="depths"):
        Branching(depths=0)


SHORT = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: not enough"),
    MemoryError(),
]


@pytest.mark.parametrize("error", SHORT, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("branching", [Branching(2), Branching(2, 2)], ids=["plain", "branching"])
def test_too_little_memory_halves_a_batch(policy, prompts, task, monkeypatch, caplog, error, branching):
    """In the middle of a batch: what it drew is neither kept nor counted."""
    step, solutions = policy.decode_step, policy.decode_solutions

    def short_step(state, node, generator):
        if len(node) > 4 and int(state.n_steps.max()) == 1:
            raise error
        return step(state, node, generator)

    def short_solutions(state, node, generator):
        if len(node) > 4:
            raise error
        return solutions(state, node, generator)

    monkeypatch.setattr(policy, "decode_step", short_step)
    monkeypatch.setattr(policy, "decode_solutions", short_solutions)
    collector = Collector(policy, task, branching, np.random.default_rng(0))
    rows = collector.collect(prompts[:5])
    assert [r.prompt for r in rows] == [p for p in prompts[:5] for _ in range(2)]
    drawn = [len(ids) for r in rows for ids in (*r.ids, *(c.ids for at in r.children for c in at))]
    assert collector.tally.tokens == sum(drawn)
    assert collector.tally.steps == len(drawn)
    assert "5 prompts" in caplog.text
    monkeypatch.setattr(policy, "decode_solutions", lambda *args: 1 / 0)
    monkeypatch.setattr(policy, "decode_step", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        collector.collect(prompts[:2])


@pytest.mark.parametrize("error", SHORT, ids=lambda e: type(e).__name__)
def test_too_little_memory_for_a_single_prompt(policy, prompts, task, monkeypatch, error):
    def full(*args):
        raise error

    monkeypatch.setattr(policy, "start", full)
    with pytest.raises(UserError, match=r"one prompt.*trajectories"):
        collect(policy, task, prompts[:5], Branching(2))


def test_the_default_batch(policy, prompts, monkeypatch):
    """32 on the CPU; on a GPU what fits, less with more branches, one at least."""
    assert prompts_per_batch(policy, Branching(), prompts) == 32
    memory = SimpleNamespace(total_memory=1 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    monkeypatch.setattr(Policy, "device", torch.device("cuda"))
    found = [
        prompts_per_batch(policy, b, prompts) for b in (Branching(8), Branching(8, 16), Branching(999_999))
    ]
    assert found[0] > 8 * found[1] / 2 > found[2] == 1
    # By hand: 2 layers of 2 heads of 8, keys and values in fp32, 12 + 3 * 6 tokens; 16 sequences a prompt.
    sequence = 2 * (2 * 2 * 2 * 8 * 4) * 30 + 16 * policy.model.config.vocab_size
    weights = 4 * sum(p.numel() for p in policy.model.parameters())
    assert found[0] == ((1 << 30) - weights) // 2 // (16 * sequence)


def test_a_prompt_id_is_stable():
    assert prompt_id("r2 . \n") == prompt_id("r2 . \n") != prompt_id("r3 . \n")
    assert len(prompt_id("é")) == 12


# Scoring


@pytest.mark.parametrize("terminal", ["verifier", "model"])
def test_scored_rollouts_by_hand(value, task, terminal):
    """Two ragged trajectories: every value in its place, ended ones by what the terminal names."""
    rows = [
        Rollout(
            "a",
            "r2 . \nc13 . \n",
            ["s r2 \n", "u x \n"],
            0.25,
            [[Child("d x \n", False, None)], [Child("s x \n", True, 0.0), Child("s r2 \n", True, 1.0)]],
        ),
        Rollout("b", "r1 . \n", ["u r2 \n"], 1.0, [[Child("\n", True, 0.5)]]),
        Rollout("a", "r2 . \nc13 . \n", ["u x \n", "s x \n"], 0.0),
    ]
    scored = score_rollouts(rows, value, terminal)
    assert scored.prompt.tolist() == [0, 1, 0]
    assert scored.prefix_trajectory.tolist() == [0, 0, 1, 2, 2]
    assert scored.prefix_depth.tolist() == [0, 1, 0, 0, 1]
    assert scored.prefix_prompt.tolist() == [0, 0, 1, 0, 0]
    assert scored.child_present.tolist() == [
        [True, True, False],
        [True] * 3,
        [True, True, False],
        [True, False, False],
        [True, False, False],
    ]

    def alone(prompt, steps):
        return value.score([value.steps.encode(prompt, steps)])[0].log_value[-1]

    def end(row, steps, reward):
        return (
            float(value.tilt.log_potential(np.asarray(reward)))
            if terminal == "verifier"
            else alone(row.prompt, steps)
        )

    a, b, c = rows
    expected = [
        [alone(a.prompt, a.steps[:1]), alone(a.prompt, ["d x \n"]), 0],
        [end(a, a.steps, 0.25), end(a, ["s r2 \n", "s x \n"], 0.0), end(a, ["s r2 \n", "s r2 \n"], 1.0)],
        [end(b, b.steps, 1.0), end(b, ["\n"], 0.5), 0],
        [alone(c.prompt, c.steps[:1]), 0, 0],
        [end(c, c.steps, 0.0), 0, 0],
    ]
    np.testing.assert_allclose(scored.child_log_value, expected, atol=1e-5)
    np.testing.assert_allclose(scored.log_value[0][-1], end(a, a.steps, 0.25), atol=1e-5)
    np.testing.assert_allclose(scored.own_log_value[0][-1], alone(a.prompt, a.steps), atol=1e-5)
    np.testing.assert_allclose(scored.prefix_log_value, np.concatenate([v[:-1] for v in scored.log_value]))
    assert scored.horizon == 2


def test_held_out_metrics_of_a_constant(step_tokenizer, rows):
    """Brier score by hand; the mean square error corrected."""
    scorer = ConstantValue(0.25, step_tokenizer, Tilt(0.05))
    found = held_out_metrics(rows, scorer)
    n = [len(r.steps) + 1 for r in rows]
    reward = np.repeat([r.reward for r in rows], n)
    assert found["brier"] == pytest.approx(np.mean((0.25 - reward) ** 2))
    assert found["rms_log_bellman"] == pytest.approx(np.sqrt(max(0.0, found["mean_square_log_bellman"])))


def test_held_out_metrics_at_some_depths_are_those_of_the_branched_prefixes(policy, prompts, task, value):
    """Depths without alternatives do not count as prefixes without error; without any there is no such metric."""
    some = collect(policy, task, prompts, Branching(6, 3, 1, 1), 2)
    assert any(at for r in some for at in r.children)
    scored = score_rollouts(some, value)
    square = scored.errors().log_error_square
    branched = np.asarray([len(at) > 0 for r in some for at in r.children])
    np.testing.assert_array_equal(scored.errors().resolved, branched)
    found = held_out_metrics(some, value)
    assert found["mean_square_log_bellman"] == pytest.approx(square[branched].mean())
    none = held_out_metrics([Rollout("a", prompts[0], ["u r2 \n"], 1.0)], value)
    assert "rms_log_bellman" not in none
    assert "brier" in none


# How a solution ends is no matter of its verifier


@pytest.mark.parametrize(("name", "end"), [("mistral", "[/INST]"), ("deepseek_v3", None), ("smollm2", None)])
def test_verifiers_read_solutions_without_the_end_token(name, end):
    """Of whatever form: `[/INST]`, DeepSeek's full-width bars, `<|im_end|>`."""
    tokenizer = real_tokenizer(name)
    more = [] if end is None else [tokenizer.convert_tokens_to_ids(end)]
    steps = StepTokenizer(tokenizer, StepSettings("\n", 3), more)
    token = end or tokenizer.eos_token
    assert token in steps.end_texts
    box = "A box holds 2 eggs, 1 book and 4 shells. How many things are in the box?\n"
    counted = ["2 + 1 = 3\n", "3 + 4 = 7\n"]
    for last in (f"Total: 7{token}", f"Total: 7 {token}", f"Total: 7{token}\n"):
        written = steps.written([*counted, last])
        assert written[:2] == counted
        assert written[2].rstrip() == "Total: 7"
    total = steps.step_text([*steps.step_ids("Total: 7"), steps.end_ids[-1]])
    assert total != "Total: 7"
    solution = steps.written([*counted, total])
    assert Counting(3).reward(box, solution) == 1
    assert Counting(3).answer(box, solution) == "7"
    grid, sums = "r2 . \nc13 . \nc02 . \n", "3 + 4 \n2 - 5 \n"
    assert Crossing(2).reward(grid, steps.written(["s r2 \n", f"d r1 {token}"])) == 1
    assert Arithmetic(2).reward(sums, steps.written(["= 7 . \n", f"= 7 . {token}"])) == 1
    assert steps.written(["a\n", token]) == ["a\n", ""]
    assert steps.written(["a\n", "b\n"]) == ["a\n", "b\n"]
    assert steps.written([]) == []

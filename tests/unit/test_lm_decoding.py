"""Whole solutions without waiting at the end of a step: the law and the steps of decoding step by step."""

import numpy as np
import pytest
import torch
from scipy import stats

from rmtools.lm.policy import Policy
from rmtools.lm.steps import StepSettings, StepTokenizer

N = 60


def at_root(policy, prompts, count=N):
    """State of ``prompts``, and ``count`` particles at each."""
    state = policy.start([policy.steps.prompt_ids(p) for p in prompts])
    return state, torch.arange(len(prompts)).repeat_interleave(count)


def step_by_step(policy, state, node, generator):
    """What `decode_solutions` returns, from `decode_step` alone."""
    found = [[] for _ in node]
    while not bool(state.ended[node].all()):
        step = policy.decode_step(state, node, generator)
        rows = [[i for i in row if i >= 0] for row in step.tokens.tolist()]
        for own, u in zip(found, step.node.tolist(), strict=True):
            own += [rows[u]] if rows[u] else []
        state, node = step.state, step.node
    return found


def by_definition(steps, ids):
    """Steps of the tokens of a solution, one token after the other."""
    found, begun, before = [], [], []
    for i in ids:
        begun.append(i)
        if steps.ends(begun, before) or steps.closes(begun) or len(begun) == steps.settings.max_step_tokens:
            found.append(begun)
            begun, before = [], [*before, *begun]
    return [*found, begun] if begun else found


SETTINGS = {
    "lines": StepSettings("\n", 3, 6),
    "cut at two tokens": StepSettings("\n", 5, 2),
    "a delimiter in two tokens": StepSettings("r1 \n", 4, 9),
    "tokens": StepSettings("\n", 4, 3, end="tokens"),
    "a stop text": StepSettings("\n", 4, 6, stop=("r2",)),
    "a stop text over the end of a step": StepSettings("\n", 4, 6, stop=("\ns r",)),
    "a stop text over two ends of steps": StepSettings("\n", 5, 2, stop=("r1 \ns r",)),
    "one step": StepSettings("\n", 1, 6),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_are_those_of_the_definition(policy, uneven, prompts, generator, name):
    """And none is longer, and no solution goes on, than the settings say."""
    settings = SETTINGS[name]
    steps = StepTokenizer(policy.steps.tokenizer, settings)
    free = Policy(uneven.model, steps, 1.5)
    state, node = at_root(free, prompts)
    found = free.decode_solutions(state, node, generator(0))
    assert len(found) == len(node)
    assert all(1 <= len(s) <= settings.max_steps for s in found)
    assert len({len(s) for s in found}) > 1 or settings.max_steps == 1
    for solution in found:
        ids = [i for step in solution for i in step]
        assert by_definition(steps, ids) == solution
        ends = [k for k, step in enumerate(solution) if steps.ends(step, ids[: sum(map(len, solution[:k]))])]
        assert ends in ([], [len(solution) - 1])
        assert ends or len(solution) == settings.max_steps
    if settings.stop:
        stopped = [s for s in found if not set(s[-1]) & set(steps.end_ids) and len(s) < settings.max_steps]
        assert stopped
        assert all(any(t in "".join(map(steps.step_text, s)) for t in settings.stop) for s in stopped)


def test_the_law_is_that_of_steps_one_by_one(uneven, prompts, generator):
    """Solutions of one prompt drawn both ways, rows leaving the batch at every depth."""
    state, node = at_root(uneven, prompts[:1], 3000)
    both = [
        [tuple(map(tuple, s)) for s in draw(state, node, generator(seed))]
        for draw, seed in ((uneven.decode_solutions, 1), (lambda *a: step_by_step(uneven, *a), 2))
    ]
    assert len({len(s) for s in both[0]}) == 3
    for key in (lambda s: s, lambda s: tuple(map(len, s)), lambda s: s[0]):
        kinds = sorted({key(s) for s in both[0] + both[1]})
        place = {k: i for i, k in enumerate(kinds)}
        table = np.stack([np.bincount([place[key(s)] for s in own], minlength=len(kinds)) for own in both])
        common = table.sum(0) >= 10
        table = np.concatenate([table[:, common], table[:, ~common].sum(1, keepdims=True)], axis=1)
        table = table[:, table.sum(0) > 0]
        assert table.shape[1] > 4
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_each_particle_continues_its_own_prefix(policy, prompts, generator):
    """Nearly greedy decoding has one solution a prompt, whoever asks in which order."""
    greedy = Policy(policy.model, policy.steps, 1e-3)
    state, _ = at_root(greedy, prompts)
    alone = [step_by_step(greedy, *at_root(greedy, [p], 1), generator(0))[0] for p in prompts]
    order = np.random.default_rng(0).integers(len(prompts), size=40)
    found = greedy.decode_solutions(state, torch.as_tensor(order), generator(0))
    assert found == [alone[i] for i in order]
    assert len({str(s) for s in alone}) > 2


def test_prefixes_go_on_from_where_they_are(uneven, prompts, generator):
    """From the second step, some ended: they draw nothing, the others end in time, and the state stays usable."""
    state, node = at_root(uneven, prompts)
    first = uneven.decode_step(state, node, generator(3))
    ended = first.state.ended[first.node].tolist()
    rest = uneven.decode_solutions(first.state, first.node, generator(4))
    assert rest == uneven.decode_solutions(first.state, first.node, generator(4))
    assert 0 < sum(ended) < len(ended)
    assert all((len(r) == 0) == e for r, e in zip(rest, ended, strict=True))
    assert max(map(len, rest)) == 2
    over = uneven.decode_step(first.state, first.node, generator(5))
    assert bool((over.tokens >= 0).any())


def test_nothing_is_left_to_draw(policy, prompts, generator):
    state, node = at_root(policy, prompts[:2], 3)
    while not bool(state.ended.all()):
        step = policy.decode_step(state, node, generator(0))
        state, node = step.state, step.node
    assert policy.decode_solutions(state, node, generator(0)) == [[]] * 6


def test_the_end_of_the_context_ends_solutions(policy, generator):
    steps = StepTokenizer(policy.steps.tokenizer, StepSettings("u \n", 50, 40))
    free = Policy(policy.model, steps)
    state = free.start([[4] * 55])
    found = free.decode_solutions(state, torch.zeros(200, dtype=torch.long), generator(0))
    assert all(sum(map(len, s)) <= 64 - 55 for s in found)
    assert any(sum(map(len, s)) == 64 - 55 for s in found)
